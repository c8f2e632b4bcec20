"""Language models chosen from MLflow stores: what a selection means, what counts, what goes wrong."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from pareto_store import STEPS, add_other, add_run, add_sweep, evaluation_metrics, new_store

from calm_lightning.errors import TrackingError
from calm_lightning.metrics import names
from calm_lightning.tracking.reading.places import Place, find_place, open_place
from calm_lightning.tracking.reading.selection import read_run, select_runs, split_selection
from sweeps.front.tracked import series_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = new_store(tmp_path_factory.mktemp("store"))
    add_sweep(place, "sweet-spot-sample-1a2b3c4d", [None, 2, 4], seeds=2)
    add_sweep(place, "small-sample-99999999", [8], experiment="other")
    add_other(place, "autoencoder")
    add_other(place, "evaluation", brier=5.0)
    add_run(place, 4, seed=7, params={"optim.lr": 0.5}, tags={"note": "a::b"})
    return place


def names_of(selection: str, store: Place, **more: object) -> list[str]:
    return sorted(run.name for run in select_runs([selection], store, **more))  # type: ignore[arg-type]


SWEET_SPOT = sorted(f"{stage}-s{seed}" for stage in ("baseline-baseline", "calm-K2", "calm-K4") for seed in (0, 1))


@pytest.mark.parametrize(
    "selection",
    [
        "sweet-spot-sample-1a2b3c4d",
        "sweet-spot",
        "tags.study = 'sweet-spot-sample-1a2b3c4d'",
        "tags.study LIKE 'sweet-spot%'",
    ],
)
def test_a_study_is_meant_by_its_name_by_how_that_begins_and_by_a_filter(store: Place, selection: str) -> None:
    assert names_of(selection, store) == SWEET_SPOT


def test_filters_runs_and_everything(store: Place) -> None:
    assert names_of("tags.K = '4' and params.seed = '1'", store) == ["calm-K4-s1"]
    assert names_of("calm-K8-s0", store) == ["calm-K8-s0"]
    [one] = select_runs(["calm-K8-s0"], store)
    assert names_of(one.run_id[:10], store) == ["calm-K8-s0"]
    assert names_of("", store) == sorted([*SWEET_SPOT, "calm-K8-s0", "calm-K4-s7"])
    assert names_of("", store, experiments=["other"]) == ["calm-K8-s0"]
    assert names_of("tags.note = 'a::b'", store) == ["calm-K4-s7"]


def test_a_sweeps_run_means_the_runs_below_it(store: Place) -> None:
    parent = read_run("tags.stage = 'sweep' and tags.study LIKE 'sweet%'", store)
    assert parent.points == ()
    assert names_of(parent.run_id, store) == SWEET_SPOT


def test_all_evaluations_are_read(store: Place) -> None:
    [run] = select_runs(["calm-K2-s1"], store)
    assert [point.step for point in run.points] == list(STEPS)
    logged = {metric.key: metric.value for metric in evaluation_metrics(800, 2, 0.05, 0.1, 2e12)}
    point = run.points[4]
    assert point.brier_lm == logged[names.BRIER_LM]
    assert point.train_flops == logged[names.TRAIN_FLOPS_TOTAL]
    assert point.brier == tuple(logged[name] for name in names.BRIER_N)
    assert run.status == "FINISHED"
    assert run.experiment == "calm"
    assert run.started is not None


def test_progress_is_told_up_to_the_end(store: Place) -> None:
    told: list[tuple[int, int, str]] = []
    select_runs(["sweet-spot"], store, progress=lambda done, of, what: told.append((done, of, what)))
    assert told[-1][0] == told[-1][1] > 0
    assert {what for _, _, what in told} == {"sweet-spot"}


def test_a_copy_and_a_run_that_two_sweeps_share_count_once(tmp_path: Path, store: Place) -> None:
    here, there = new_store(tmp_path / "here"), new_store(tmp_path / "there")
    shared = {"calm.identity": "one"}
    add_run(here, 4, study="a-1", tags=shared)
    add_run(here, 4, study="b-1", tags=shared)
    add_run(there, 4, tags=shared, steps=[*STEPS, 3200])
    add_run(there, 2)
    assert len(select_runs(["a-1", "b-1"], here)) == 1
    runs = select_runs(["", f"{tmp_path / 'there'}::"], here)
    assert len(runs) == 2
    assert max(len(run.points) for run in runs) == len(STEPS) + 1  # of two copies, the one that knows more


def test_stores_are_meant_by_uri_and_by_directory(tmp_path: Path) -> None:
    place = new_store(tmp_path)
    add_run(place, 4)
    (tmp_path / "runs").mkdir()
    elsewhere = find_place(tmp_path / "nowhere")
    for store in (str(tmp_path), str(tmp_path / "runs"), str(tmp_path / "mlruns"), place.uri):
        assert len(select_runs([f"{store}::tags.K = '4'"], elsewhere)) == 1
    assert split_selection("http://[::1]:5000::tags.K = '4'", place) == (Place("http://[::1]:5000"), "tags.K = '4'")
    assert split_selection("tags.note = 'a::b'", place) == (place, "tags.note = 'a::b'")


def test_an_evaluation_that_is_half_logged_does_not_count(tmp_path: Path) -> None:
    place = new_store(tmp_path)
    run_id = add_run(place, 4, status="RUNNING")
    half = evaluation_metrics(9999, 4, 0.0, 0.1, 0.0)[:3]
    open_place(place).log_batch(run_id, metrics=half)
    [run] = select_runs([""], place)
    assert [point.step for point in run.points] == list(STEPS)


def test_older_tags_are_read(tmp_path: Path) -> None:
    place = new_store(tmp_path)
    old = {"calm.study": "old-1", "calm.stage": "calm", "calm.slug": "K4", "calm.K": "4", "calm.model": "CALM K=4"}
    add_run(place, 4, tags=old)
    [run] = select_runs(["old-1"], place)
    assert run.tag("study") == "old-1"
    assert series_of(run).label == "CALM K=4"


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ("tags.K == 4 or x", ["MLflow cannot read the filter", "write it like"]),
        ("tags.K = '3'", ["stage baseline, calm", "K 2, 4, 8", "study small-sample-99999999, sweet-spot"]),
        ("s", ["is meant by 's'", "language models have"]),
        ("/nowhere::", ["there is no MLflow store at /nowhere/mlruns/mlflow.db"]),
        ("nowhere.db::tags.K = '4'", ["there is no MLflow store at"]),
    ],
)
def test_what_can_be_mended_is_one_sentence(store: Place, selection: str, words: list[str]) -> None:
    with pytest.raises(TrackingError) as caught:
        select_runs([selection], store)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_beginning_of_several_studies_is_not_guessed(tmp_path: Path) -> None:
    place = new_store(tmp_path)
    add_run(place, 4, study="twins-1")
    add_run(place, 4, study="twins-2")
    with pytest.raises(TrackingError, match=r"2 studies .*twins-1, twins-2"):
        select_runs(["twins"], place)


def test_a_server_that_is_away_is_told_of_at_once(store: Place) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(TrackingError, match="nothing answers at"):
        select_runs([f"http://127.0.0.1:{port}::tags.K = '4'"], store)
    assert time.monotonic() - start < 10


def test_a_series_knows_its_point_of_the_search_space(store: Place) -> None:
    series = {(one.label, one.seed): one for one in map(series_of, select_runs(["sweet-spot"], store))}
    one = series["CALM K=4", 1]
    assert one.K == 4
    assert one.values == {"model.K": 4}
    assert one.setting("model.l") == 128
    assert one.setting("autoencoder.kl_clip") == 0.5
    assert one.slug == series["CALM K=4", 0].slug != series["CALM K=2", 0].slug
    assert one.parameters > 100_000
    baseline = series["baseline", 0]
    assert (baseline.stage, baseline.K) == ("baseline", None)
    assert baseline.slug != one.slug


def test_only_seeds_make_no_difference_between_models(tmp_path: Path) -> None:
    place = new_store(tmp_path)
    add_run(place, 4, seed=0)
    add_run(place, 4, seed=1)
    add_run(place, 4, seed=0, params={"optim.lr": 0.5})
    add_run(place, 4, seed=0, params={"data.workers": 3, "data.corpus": "/elsewhere"}, tags={"calm.identity": "again"})
    slugs = [series_of(run).slug for run in select_runs([""], place)]
    assert len(set(slugs)) == 2


def test_a_run_that_goes_on_is_no_finished_training(tmp_path: Path) -> None:
    place = new_store(tmp_path)
    add_run(place, 4, status="RUNNING")
    add_run(place, 2, status="KILLED")
    states = {series.K: series for series in map(series_of, select_runs([""], place))}
    assert states[4].state == states[2].state == "unfinished"
    assert "running" in states[4].reason

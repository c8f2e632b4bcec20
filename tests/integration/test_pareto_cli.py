"""`calm pareto` on real stores: fronts and comparisons of runs whose learning curves are known exactly."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import pandas as pd
import pytest
import typer
from pareto_store import STEPS, add_run, add_sweep, new_store, score
from typer.testing import CliRunner

from calm_lightning.cli import pareto
from calm_lightning.cli.main import FrontDoor
from calm_lightning.tracking.reading.places import Place
from calm_lightning.tracking.store import quiet_environment

app = typer.Typer(cls=FrontDoor)
app.add_typer(pareto.app, name="pareto")
STUDY = "sweet-spot-sample-1a2b3c4d"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project directory with a store of two sweeps, and its (empty) directory of runs."""
    directory = tmp_path_factory.mktemp("project")
    place = new_store(directory)
    add_sweep(place, STUDY, [None, 2, 4], seeds=3)
    (directory / "runs").mkdir()
    return directory


def calm(project: Path, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["pareto", *arguments, "--work-dir", str(project / "runs")])
    assert result.exit_code == code, result.output
    assert not result.stderr or code
    return " ".join(result.output.split())


def document(project: Path, *arguments: str) -> Any:
    return json.loads(calm(project, *arguments, "--json"))


def test_the_front_of_a_study(project: Path) -> None:
    text = calm(project, "front", "sweet-spot")
    assert "3 models in 9 runs · sweet-spot-sample-1a2b3c4d · seeds 0, 1, 2" in text
    assert "What a score costs to train" in text
    assert "What it costs to use" in text
    found = document(project, "front", "sweet-spot")
    assert (found["models"], found["runs"]) == (3, 9)
    # K = 4 is cheapest per token and highest at its last evaluation; the others stand where it has not been yet
    last = found["inference"]["front"]
    assert [point["model"] for point in last] == ["CALM K=4"]
    best = found["training"]["front"][-1]
    assert best["model"] == "CALM K=4"
    assert best["brier_lm"] == pytest.approx(score(4, best["flops"]))
    assert best["seeds"] == 3
    assert len(best["runs"]) == 3
    assert best["share_of_redraws"] == 1.0
    volume = found["training"]["hypervolume"]
    assert volume["low"] < volume["value"] < volume["high"]


def test_the_reference_of_hypervolumes_can_be_set(project: Path) -> None:
    own, far = (
        document(project, "front", "sweet-spot", *more)["training"] for more in ([], ["--at-reference", "1e15"])
    )
    assert far["reference_flops"] == 1e15
    assert far["hypervolume"]["value"] > own["hypervolume"]["value"]


def test_files_of_a_front(project: Path, tmp_path: Path) -> None:
    text = calm(project, "front", "sweet-spot", "--out", str(tmp_path / "out"))
    names = ["front.csv", "front.html", "front.json", "front.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert all(str(tmp_path / "out" / name) in text for name in names)
    height, width, _ = matplotlib.image.imread(tmp_path / "out" / "front.png").shape
    assert width > height > 800
    page = (tmp_path / "out" / "front.html").read_text()
    assert "Plotly.newPlot" in page
    assert 'src="http' not in page
    frame = pd.read_csv(tmp_path / "out" / "front.csv")
    assert len(frame) == 9 * len(STEPS)
    assert set(frame["store"]) == {f"sqlite:///{project / 'mlruns' / 'mlflow.db'}"}
    assert json.loads((tmp_path / "out" / "front.json").read_text()) == document(project, "front", "sweet-spot")


def test_a_known_saving_is_found(project: Path) -> None:
    """log10 of the costs of s: 12.2 + s / 2.5 for K = 4 and 12.3 + s / 2 for the baseline, so their difference is
    -0.1 - 0.1 s."""
    found = document(project, "compare", "tags.K = '4'", "tags.stage = 'baseline'", "--at", "2")["training"]
    at = found["at"]["saving"]
    assert at["value"] == pytest.approx(1 - 10**-0.3, abs=1e-6)
    assert at["low"] < at["value"] < at["high"]
    mean = found["mean_saving"]
    middle = (mean["from_brier_lm"] + mean["to_brier_lm"]) / 2
    assert mean["value"] == pytest.approx(1 - 10 ** (-0.1 - 0.1 * middle), abs=1e-6)
    assert mean["low"] < mean["value"] < mean["high"]


def test_a_sentence_to_quote(project: Path) -> None:
    arguments = ("tags.K = '4'", "tags.stage = 'baseline'", "--from", "1", "--to", "3")
    text = calm(project, "compare", *arguments, "--name-a", "CALM", "--name-b", "Transformer")
    assert "CALM needs 50 % [" in text
    assert "] fewer training FLOPs than Transformer at equal BrierLM (over BrierLM 1.00 to 3.00)." in text
    back = calm(project, "compare", *reversed(arguments[:2]))
    assert "more training FLOPs than B at equal BrierLM" in back


def test_selections_are_joined_where_filters_cannot_say_or(project: Path) -> None:
    found = document(project, "compare", "tags.K = '4' | tags.K = '2'", "tags.stage = 'baseline'")
    assert (found["a"]["runs"], found["b"]["runs"]) == (6, 3)


def test_the_shared_baseline_is_told_of(project: Path) -> None:
    text = calm(project, "compare", "sweet-spot", "tags.stage = 'baseline'")
    assert "1 model is in both A and B" in text


def test_files_of_a_comparison(project: Path, tmp_path: Path) -> None:
    calm(project, "compare", "tags.stage = 'calm'", "tags.stage = 'baseline'", "--out", str(tmp_path))
    names = ["compare.csv", "compare.html", "compare.json", "compare.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert matplotlib.image.imread(tmp_path / "compare.png").std() > 0.05
    page = (tmp_path / "compare.html").read_text()
    assert "fewer training FLOPs than B" in page
    assert 'src="http' not in page
    assert pd.read_csv(tmp_path / "compare.csv")["set"].value_counts().to_dict() == {
        "A": 6 * len(STEPS),
        "B": 3 * len(STEPS),
    }


def test_fronts_without_a_common_score_give_no_number(tmp_path: Path) -> None:
    place = new_store(tmp_path)
    add_run(place, 4, study="low-1", steps=(0, 100, 200), params={"model.d": 64})
    add_run(place, 4, study="high-1", steps=(0, 6400, 12800))
    text = calm(tmp_path, "compare", "low", "high")
    assert "The scores of the two fronts do not overlap over training FLOPs" in text
    assert "at equal BrierLM (over" not in text
    document_ = document(tmp_path, "compare", "low", "high")
    assert document_["training"]["mean_saving"] is None


def test_runs_of_two_stores_stand_on_one_front(project: Path, tmp_path: Path) -> None:
    place = new_store(tmp_path)
    add_sweep(place, "other-sample-99999999", [8])
    found = document(project, "front", "sweet-spot", f"{tmp_path}::tags.K = '8'")
    assert (found["models"], found["runs"]) == (4, 10)


def test_scores_that_were_not_measured_alike_are_told_of(tmp_path: Path) -> None:
    place = new_store(tmp_path)
    add_run(place, 4, tags={"corpus": "aaaaaaaa11"})
    add_run(place, 2, tags={"corpus": "bbbbbbbb22"}, params={"evaluation.start_stride": 1})
    text = calm(tmp_path, "front")
    assert "2 different corpora (aaaaaaaa, bbbbbbbb)" in text
    assert "Scores were not measured alike" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("front", "tags.K = '7'"), "its 9 language models have stage baseline, calm; study"),
        (("front", "tags.K = 7 or 8"), "MLflow cannot read the filter"),
        (("front", "--experiment", "nowhere"), "there is no experiment 'nowhere'"),
        (("front", "/nowhere::"), "there is no MLflow store at"),
        (("compare", "tags.K = '4'", "tags.K = '2'", "--from", "99"), "is not on both fronts: choose --from and --to"),
        (("front", "--out", "/proc/nowhere"), "cannot be written"),
    ],
)
def test_what_can_be_mended_is_one_sentence(project: Path, arguments: tuple[str, ...], sentence: str) -> None:
    text = calm(project, *arguments, code=2)
    assert sentence in text
    assert text.startswith("error: ")


def test_models_without_a_score_have_no_front(tmp_path: Path) -> None:
    place = new_store(tmp_path)
    add_run(place, 4, shift=-99.0)
    assert "no front" in calm(tmp_path, "front")
    assert "no model of A scores above 0" in calm(tmp_path, "compare", "", "", code=2)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Place, str]]:
    place = new_store(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", place.uri, "--port", str(port)]
    environment = {**os.environ, **quiet_environment()}
    process = subprocess.Popen(
        [*command, "--workers", "1"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield place, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_a_server_gives_the_same_front_with_links(server: tuple[Place, str], tmp_path: Path) -> None:
    place, uri = server
    add_sweep(place, STUDY, [None, 4], seeds=2)
    local = document(tmp_path, "front", STUDY)
    served = document(tmp_path, "front", f"{uri}::tags.study = '{STUDY}'")
    for found in (local, served):
        for kind in ("training", "inference"):
            for point in found[kind]["front"]:
                runs = point.pop("runs")
                assert all(run["run_id"] for run in runs)
                if found is served:
                    assert all(run["url"].startswith(f"{uri}/#/experiments/") for run in runs)
    assert local == served

"""Runs of any origin: which compare, which are seeds of one model, and whether their commands repeat them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_sweeps import baseline, evaluation, record, run

from calm_lightning.config import RunConfig, identity, load_config
from calm_lightning.errors import SweepError
from sweeps.front.series import Series
from sweeps.report.findings import find
from sweeps.report.gathering import gather
from sweeps.report.headline import gap_in_words, headline
from sweeps.report.seeds import Difference
from sweeps.report.sources import protocols
from sweeps.report.sources.commands import train_command
from sweeps.report.sources.folders import read_environment
from sweeps.report.sources.material import Material
from sweeps.report.sources.report import make_report
from sweeps.report.sources.run import FINISHED, UNFINISHED, ReportedRun, metrics_of
from sweeps.report.sources.saving import check_place
from sweeps.report.sources.series import series_of

PROTOCOL = {"corpus": "a" * 64, "split": "val", "tokenizer": "t", "name": "aligned", "block_tokens": 96}
PROTOCOL |= {"start_stride": 24, "temperature": 1.0, "samples": 8, "model": {"autoencoder": "ae"}}


def reported(
    *overrides: str,
    stage: str = "calm",
    name: str = "",
    scores: Sequence[float] = (1.0, 2.0),
    protocol: Mapping[str, Any] = PROTOCOL,
    state: str = FINISHED,
) -> ReportedRun:
    """A run as it is read from a directory."""
    given = ["model.vocabulary=257", "model.K=2", "data.block_tokens=96", "trainer.precision=32-true", *overrides]
    config = load_config(given, stage=stage)
    points = tuple(evaluation(10 * number, 1e12 * (number + 1), score) for number, score in enumerate(scores))
    return ReportedRun(
        name=name or f"{stage}-K{config.model.K}-s{config.seed}",
        stage=stage,
        state=state,
        resolved=asdict(config),
        evaluations={point.step: metrics_of(point) for point in points},
        points=() if stage == "autoencoder" else points,
        identity=identity(config, corpus="c"),
        protocol=protocol,
        autoencoder="ae" if stage == "calm" else "",
    )


def material(*runs: ReportedRun) -> Material:
    models = {one.key: one for one in runs if one.stage != "autoencoder"}
    below = {one.key: one for one in runs if one.stage == "autoencoder"}
    return Material(loose=models, autoencoders=below, asked=set(below))


# which compare


@settings(max_examples=60)
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "corpus": st.sampled_from("ab"),
                "block_tokens": st.sampled_from([96, 192]),
                "start_stride": st.sampled_from([None, 24]),
            },
        ),
        max_size=8,
    )
)
def test_groups_hold_every_run_once_and_nothing_that_contradicts(known: list[dict[str, Any]]) -> None:
    runs = [ReportedRun(str(number), "calm", FINISHED, {}, {}, protocol=one) for number, one in enumerate(known)]
    groups = protocols.comparable(runs)
    assert sorted(int(one.name) for group in groups for one in group) == list(range(len(runs)))
    assert [len(group) for group in groups] == sorted((len(group) for group in groups), reverse=True)
    for group in groups:
        for name in protocols.DECISIVE:
            assert len({repr(one.protocol[name]) for one in group if name in one.protocol}) <= 1


def test_what_differs_between_groups_is_named() -> None:
    other = {**PROTOCOL, "corpus": "b" * 64, "tokenizer": "u", "block_tokens": 2048}
    runs = [reported("data.corpus=corpora/one"), reported("data.corpus=corpora/two", "seed=1", protocol=other)]
    groups = protocols.comparable(runs)
    assert protocols.differences(groups) == ["corpus", "tokenizer", "tokens per block"]
    assert protocols.in_words(groups[0], groups) == "corpus one (aaaaaaaa), tokens per block 96"
    assert protocols.minor_differences([runs[0], replace(runs[0], protocol={**PROTOCOL, "samples": 2})]) == [
        "Not the same for all scores: samples per position (2, 8)."
    ]


def test_runs_that_do_not_compare_are_ranked_apart() -> None:
    other = {**PROTOCOL, "corpus": "b" * 64}
    found = make_report(material(reported(), reported("seed=1"), reported("seed=2", protocol=other)), "calm report ...")
    assert [len(group.runs) for group in found.groups] == [2, 1]
    assert found.apart == ("corpus",)
    assert [len(group.findings.models[0].runs) for group in found.groups] == [2, 1]


# which are seeds of one model, and what was varied


def test_seeds_are_one_model_and_a_decided_key_follows() -> None:
    runs = [
        reported(f"model.K={K}", f"model.l={32 * K}", f"optim.lr={lr}", f"seed={seed}", f"trainer.max_steps={100 * K}")
        for K in (2, 4)
        for lr in (1e-3, 2e-3)
        for seed in (0, 1)
    ]
    found = series_of(runs, {})
    assert len({one.slug for one in found}) == 4
    assert {tuple(one.values) for one in found} == {("model.K", "optim.lr")}
    assert found[0].settings["model.l"] == 64
    assert found[0].settings["trainer.max_steps"] == 200
    assert len({one.label for one in found}) == 4
    assert {one.seed for one in found} == {0, 1}
    (report,) = make_report(material(*runs), "").groups
    assert report.findings.free == ("model.K", "optim.lr")
    assert all(len(model.runs) == 2 for model in report.findings.models)
    assert {"model.l", "trainer.max_steps"} <= set(report.findings.slices[0].contrasts[0].following)


def test_what_makes_no_other_run_is_not_varied() -> None:
    runs = [reported("data.workers=0"), reported("data.workers=2", "seed=1", "tracking.mlflow=false", "work_dir=w")]
    found = series_of(runs, {})
    assert [one.values for one in found] == [{}, {}]
    assert len({one.slug for one in found}) == 1


def test_how_the_autoencoder_was_trained_tells_models_apart_but_its_seed_does_not() -> None:
    below = {
        name: reported(f"optim.lr={lr}", f"seed={seed}", stage="autoencoder")
        for name, lr, seed in (("a", 1e-3, 0), ("b", 1e-3, 1), ("c", 5e-3, 0))
    }
    runs = [replace(reported(f"seed={number}"), autoencoder=name) for number, name in enumerate(below)]
    found = series_of(runs, below)
    assert found[0].slug == found[1].slug != found[2].slug
    assert found[2].values == {"autoencoder.optim.lr": 5e-3}


def test_baselines_know_nothing_of_K() -> None:
    (found,) = series_of([reported("model.N=3", stage="baseline")], {})
    assert set(found.settings) == {"model.d", "model.layers", "optim.lr"}


# commands


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 3),
        "model.N": st.integers(2, 20),
        "model.alpha": st.sampled_from([0.5, 1.0, 1.75]),
        "optim.lr": st.floats(1e-6, 1e-1),
        "optim.betas": st.sampled_from(["[0.9,0.95]", "[0.8,0.999]"]),
        "data.weights": st.sampled_from(["{}", "{books: 0.5, news: 2}"]),
        "evaluation.every_steps": st.integers(0, 50),
        "trainer.max_steps": st.integers(1, 10**6),
        "trainer.gradient_clip_val": st.sampled_from(["null", "0.5"]),
        "data.corpus": st.sampled_from(["corpora/x", "a place/with spaces, and commas"]),
    },
)


@settings(max_examples=25, deadline=None)
@given(CHANGES, st.sampled_from(["autoencoder", "calm", "baseline"]))
def test_a_command_gives_the_same_run_again(changes: dict[str, Any], stage: str) -> None:
    given_config = load_config([f"{key}={value}" for key, value in changes.items()], stage=stage)
    given_config = replace(given_config, autoencoder_run="/far/away/runs/autoencoder/autoencoder-K4-0123456789")
    one = ReportedRun("r", stage, FINISHED, asdict(given_config), {})
    calm, train, named, *arguments = shlex.split(train_command(one))
    assert (calm, train, named) == ("calm", "train", stage)
    again = load_config(arguments, stage=stage)
    assert identity(again, corpus="c") == identity(given_config, corpus="c")
    assert again.data.corpus == given_config.data.corpus
    if stage == "calm":
        assert again.autoencoder_run == "runs/autoencoder/autoencoder-K4-0123456789"


def test_defaults_are_not_repeated() -> None:
    one = ReportedRun("r", "baseline", FINISHED, asdict(replace(RunConfig(), stage="baseline")), {})
    assert train_command(one) == "calm train baseline"


# the paragraph of findings


def findings_of(*series: Series) -> list[str]:
    return headline(find(gather([record(series)]), importance=False))


def test_a_difference_beyond_its_errors_is_a_number_and_one_within_is_none() -> None:
    far = Difference(2.0, 0.5, math.inf, 1.0, 3.0, False)
    assert gap_in_words(far) == "2.00 points [1.00, 3.00] above"
    assert gap_in_words(replace(far, value=-2.0, low=-3.0, high=-1.0)) == "2.00 points [1.00, 3.00] below"
    near = replace(far, value=0.1, low=-0.2, high=0.4)
    assert gap_in_words(near) == "not to be told apart (difference +0.10 points [-0.20, +0.40]) from"


def test_calm_is_compared_with_the_baseline_at_equal_cost_and_equal_score() -> None:
    costs = [1e13 * 2**number for number in range(6)]
    scores = [1.0 + number for number in range(6)]
    quick = run(scores, {"model.K": 4}, flops=[cost / 4 for cost in costs], se=0.01, inference=1e6)
    slow = baseline(scores, flops=costs, se=0.01, inference=3e6)
    text = " ".join(findings_of(quick, slow))
    assert "CALM K=4 is 2.00 points [1.97, 2.03] above baseline." in text, "four times cheaper is two doublings"
    assert "CALM costs 75 % fewer training FLOPs [" in text
    assert "3 times fewer FLOPs than baseline" in text
    text = " ".join(findings_of(replace(quick, label="CALM"), replace(slow, points=quick.points, label="b")))
    assert "not to be told apart" in text
    assert "neither measurably more nor fewer" in text


def test_what_is_not_there_is_said() -> None:
    assert "scores above BrierLM 0" in " ".join(findings_of(run([0.0], {"model.K": 1}), run([0.0], {"model.K": 2})))
    assert "has BrierLM 0 after 10 steps" in " ".join(findings_of(run([0.0], {})))
    alone = " ".join(findings_of(run([4.0], {}, state="unfinished")))
    assert "reaches BrierLM 4.00 [3.61, 4.39] (95 %), a single run" in alone
    assert "Not trained to the end yet" in alone


def test_nothing_to_report_is_one_sentence() -> None:
    begun = reported(scores=(0.0,), state=UNFINISHED)
    with pytest.raises(SweepError, match=r"no evaluation of calm-K2-s0 \(unfinished after 0 of 1,000 steps\) is there"):
        make_report(material(replace(begun, evaluations={}, points=())), "")


# small things


def test_a_page_goes_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place, part in (
        (tmp_path, "is a directory"),
        (tmp_path / "file", "is no report"),
        (tmp_path / "file" / "below.html", "is no directory"),
    ):
        with pytest.raises(SweepError, match=part):
            check_place(place)
    check_place(tmp_path / "new" / "page.html")


def test_environment_is_read_back() -> None:
    from calm_lightning.tracking.provenance import environment, provenance

    facts, packages = read_environment(environment())
    assert facts == {name: provenance()[name] for name in facts}
    assert {"python", "cpu"} <= facts.keys()
    assert any(line.startswith("torch==") for line in packages.splitlines())
    assert read_environment("") == ({}, "")


def test_the_switch_exchanges_every_x_and_nothing_else() -> None:
    from sweeps.report.web.front import curves_chart

    found = find(gather([record([run([1.0, 2.0], {"model.K": 2}), run([1.0], {"model.K": 4}), baseline()])]))
    chart = curves_chart(found)
    flops, tokens, seconds = (button.args for button in chart.layout.updatemenus[0].buttons)
    assert [list(trace.x) for trace in chart.data] == flops[0]["x"]
    for x, axis in (tokens, seconds):
        assert [len(values) for values in x["x"]] == [len(trace.x) for trace in chart.data]
        assert set(axis) == {"xaxis.title.text", "xaxis.tickformat", "xaxis.autorange"}
    assert tokens[0]["x"][1][:2] == [1e5, 2e5]
    assert seconds[0]["x"][1][:2] == [10.0, 20.0]

"""Sweep files, and the run configurations that their points stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from calm_lightning.errors import ConfigError
from calm_lightning.flops.count import for_stage
from sweeps.config import SweepConfig, find_sweep, list_sweeps, load_sweep, sweep_to_yaml
from sweeps.space.points import axes, axes_of, digest, points

PLACES = (Path("corpora/x"), Path("runs"))


def sample(*overrides: str) -> SweepConfig:
    return load_sweep(find_sweep("k4-sweet-spot", "sample"), overrides)


@pytest.mark.parametrize("name", list_sweeps())
def test_every_sweep_that_comes_along_makes_valid_runs(name: str) -> None:
    made = points(load_sweep(find_sweep(*name.split("/"))), *PLACES)
    assert [point.label for point in made] == ["baseline", "CALM K=1", "CALM K=2", "CALM K=4", "CALM K=8"]
    stride = {point.model.evaluation.start_stride for point in made}
    blocks = {(point.model.data.block_tokens, point.model.data.eval_max_blocks) for point in made}
    samples = {point.model.evaluation.samples for point in made}
    assert len(stride) == len(blocks) == len(samples) == 1, "compared models must be scored alike"
    for point in made[1:]:
        assert point.autoencoder is not None
        assert point.autoencoder.model.K == point.model.model.K == point.values["model.K"]
        assert point.autoencoder.stage == "autoencoder"


def test_overrides_reach_the_stage_they_name() -> None:
    made = points(sample("calm.trainer.max_steps=7", "all.model.d=96", "autoencoder.autoencoder.d=64"), *PLACES)
    baseline, calm = made[0], made[1]
    assert calm.autoencoder is not None
    assert [point.model.trainer["max_steps"] for point in made[1:]] == [7] * 4, "also where the file has exceptions"
    assert baseline.model.trainer["max_steps"] != 7
    assert baseline.model.model.d == calm.model.model.d == 96
    assert calm.autoencoder.autoencoder.d == 64
    assert calm.model.autoencoder_run == ""
    assert calm.language_model("runs/ae").autoencoder_run == "runs/ae"


def test_a_grid_of_two_keys_and_exceptions_for_some_points(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(
        "name: grid\n"
        "include_baseline: false\n"
        "space: {model: {K: [2, 3], l: [16, null]}}\n"
        "per_value:\n"
        "  - {when: {model: {K: 3}}, autoencoder: {trainer: {max_steps: 5}}, calm: {optim: {lr: 0.5}}}\n"
    )
    made = points(load_sweep(path), *PLACES)
    assert [point.slug for point in made] == ["K2-l16", "K2-lNone", "K3-l16", "K3-lNone"]
    assert [point.model.optim.lr == 0.5 for point in made] == [False, False, True, True]
    assert [point.autoencoder.trainer["max_steps"] for point in made if point.autoencoder] == [1000, 1000, 5, 5]
    assert [point.autoencoder.model.l for point in made if point.autoencoder] == [16, None, 16, None]
    assert axes_of(made) == {"model.K": [2, 3], "model.l": [16, None]}


def test_presets_of_a_section_come_first() -> None:
    made = points(sample("calm.presets=[calm-m]", "calm.model.d=1056", "space.model.K=[4]"), *PLACES)
    assert (made[1].model.model.heads, made[1].model.model.d) == (16, 1056), "the sweep's own keys win over presets"
    assert made[1].model.trainer["accumulate_grad_batches"] == 32
    assert made[0].model.trainer["accumulate_grad_batches"] == 1


def test_the_study_is_named_by_what_changes_its_numbers() -> None:
    def name(*overrides: str, corpus: str = "c", work_dir: str = "runs") -> str:
        return digest(points(sample(*overrides), Path("x"), Path(work_dir)), corpus)

    assert name() == name(work_dir="elsewhere") == name("tracking.mlflow=false", "title=other")
    assert len({name(), name("calm.trainer.max_steps=9"), name(corpus="d"), name("space.model.K=[2]")}) == 4


def test_a_sweep_survives_being_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(sweep_to_yaml(sample("calm.optim.lr=0.25")))
    assert load_sweep(path) == sample("calm.optim.lr=0.25")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["calmm.model.d=3"], "unknown key calmm"),
        (["calm.model.dd=3"], r"sweep, calm of CALM K=1: .*unknown key model\.dd"),
        (["space.model.K=[5]"], r"sweep, calm of CALM K=5: .*block_tokens=384 is not a multiple of model\.K=5"),
        (["space.model.K=4"], "must be a list"),
        (["space.model.K=[4,4]"], "a value twice"),
        (["name=a/b"], "names a directory"),
        (["space.model.K=[]"], "at least one value"),
    ],
)
def test_impossible_sweeps_are_one_sentence(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        points(sample(*overrides), *PLACES)


def test_unknown_sweeps_are_named() -> None:
    with pytest.raises(ConfigError, match="known: k4-sweet-spot/mini, k4-sweet-spot/sample"):
        find_sweep("k5", "sample")
    with pytest.raises(ConfigError, match="does not exist"):
        find_sweep("k4-sweet-spot", "nowhere.yaml")


def test_a_sweep_of_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nothing.yaml"
    path.write_text("include_baseline: false\n")
    with pytest.raises(ConfigError, match="nothing to train"):
        load_sweep(path)


def test_axes_are_flat() -> None:
    assert axes(sample()) == {"model.K": [1, 2, 4, 8]}


def test_the_sample_gives_every_language_model_the_same_training_flops() -> None:
    spent = []
    for point in points(sample(), *PLACES):
        run, auto = point.model, (point.autoencoder or point.model).autoencoder
        report = for_stage(run.stage, run.model, auto, 257, run.data.block_tokens)
        tokens = run.trainer["max_steps"] * run.data.batch_tokens
        spent.append(tokens * report.training_per_token_total)
    assert max(spent) / min(spent) < 1.03

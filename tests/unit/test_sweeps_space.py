"""Sweep files, search spaces, and the run configurations that their points stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calm_lightning.errors import ConfigError
from calm_lightning.flops.count import for_stage
from sweeps.config import SweepConfig, find_sweep, list_sweeps, load_sweep, nested, sweep_to_yaml
from sweeps.space.expressions import evaluate
from sweeps.space.parameters import Parameter, parameters
from sweeps.space.points import Point, PointMaker, grid
from sweeps.validation import study_name, validate_sweep

PLACES = (Path("corpora/x"), Path("runs"))


def sample(*overrides: str) -> SweepConfig:
    return load_sweep(find_sweep("k4-sweet-spot", "sample"), overrides)


def points(sweep: SweepConfig, corpus: Path, work_dir: Path, vocabulary: int | None = None) -> list[Point]:
    """The baseline, where there is one, and all points of a grid."""
    maker = PointMaker(sweep, corpus, work_dir, vocabulary)
    made = [maker.baseline()] if sweep.include_baseline else []
    return made + [maker.make(values) for values in grid(maker)]


def write(folder: Path, text: str) -> SweepConfig:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return load_sweep(path)


def trained(folder: Path, text: str) -> list[Point]:
    return points(write(folder, "name: s\ninclude_baseline: false\n" + text), *PLACES, vocabulary=257)


@pytest.mark.parametrize("name", [name for name in list_sweeps() if name.startswith("k4-sweet-spot")])
def test_the_sweet_spot_makes_valid_runs(name: str) -> None:
    made = points(load_sweep(find_sweep(*name.split("/"))), *PLACES, vocabulary=257)
    assert [point.label for point in made] == ["baseline", "CALM K=1", "CALM K=2", "CALM K=4", "CALM K=8"]
    for point in made[1:]:
        assert point.autoencoder is not None
        assert point.autoencoder.model.K == point.model.model.K == point.values["model.K"]
        assert point.autoencoder.stage == "autoencoder"


@pytest.mark.parametrize("name", list_sweeps())
def test_compared_models_are_scored_alike(name: str) -> None:
    sweep = load_sweep(find_sweep(*name.split("/")))
    validate_sweep(sweep)
    maker = PointMaker(sweep, *PLACES, vocabulary=257)
    made = [maker.baseline()] if sweep.include_baseline else []
    if sweep.sampler.name == "grid":
        made += [maker.make(values) for values in grid(maker)]
    protocols = {
        (run.evaluation.start_stride, run.evaluation.samples, run.data.block_tokens, run.data.eval_max_blocks)
        for run in (point.model for point in made)
    }
    assert len(protocols) <= 1


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
    made = trained(
        tmp_path,
        "space: {model: {K: [2, 3], l: [16, null]}}\n"
        "per_value:\n"
        "  - {when: {model: {K: 3}}, autoencoder: {trainer: {max_steps: 5}}, calm: {optim: {lr: 0.5}}}\n",
    )
    assert [point.slug for point in made] == ["K2-l16", "K2-lNone", "K3-l16", "K3-lNone"]
    assert [point.model.optim.lr == 0.5 for point in made] == [False, False, True, True]
    assert [point.autoencoder.trainer["max_steps"] for point in made if point.autoencoder] == [1000, 1000, 5, 5]
    assert [point.autoencoder.model.l for point in made if point.autoencoder] == [16, None, 16, None]


def test_keys_with_dots_and_ranges(tmp_path: Path) -> None:
    made = trained(
        tmp_path,
        "space:\n"
        "  model.K: {choice: [2, 4]}\n"
        "  model.layers: {int: [1, 5], step: 2}\n"
        "  optim.lr: {float: [1.0e-4, 1.0e-2], log: true, grid: 3}\n",
    )
    assert len(made) == 2 * 3 * 3
    assert [point.model.model.layers for point in made[:9]] == [1, 1, 1, 3, 3, 3, 5, 5, 5]
    assert [point.model.optim.lr for point in made[:3]] == pytest.approx([1e-4, 1e-3, 1e-2])
    assert len({point.slug for point in made}) == len(made)
    override = load_sweep(tmp_path / "sweep.yaml", ["space.model.K=[3]"])
    assert [parameter.key for parameter in parameters(override.space)] == ["model.K", "model.layers", "optim.lr"]
    assert parameters(override.space)[0].values == (3,)


def test_derived_values_follow_from_swept_ones_in_both_models(tmp_path: Path) -> None:
    made = trained(
        tmp_path,
        "space: {model.K: [2, 4]}\n"
        "derived:\n"
        "  model.l: 16 * K\n"
        "  autoencoder.drop_latent: '{32: 0.05, 64: 0.10}[l]'\n"
        "  optim.warmup_steps: trainer.max_steps // 10\n",
    )
    for point, (l, drop) in zip(made, [(32, 0.05), (64, 0.10)], strict=True):
        assert point.autoencoder is not None
        assert point.model.model.l == point.autoencoder.model.l == l
        assert point.autoencoder.autoencoder.drop_latent == drop
        assert point.model.optim.warmup_steps == 100
        assert list(point.values) == ["model.K"], "what is derived is not swept"


def test_expressions_know_the_shape_that_the_autoencoder_section_gives(tmp_path: Path) -> None:
    text = "space: {model.K: [2]}\nautoencoder: {autoencoder: {d: 64}}\n"
    text += "derived: {autoencoder.intermediate: autoencoder.d * 2}\n"
    (made,) = trained(tmp_path, text + "constraints: [autoencoder.d == 64, autoencoder.intermediate == 128]\n")
    assert not made.refused
    assert made.autoencoder is not None
    assert made.autoencoder.autoencoder == made.model.autoencoder
    assert made.autoencoder.autoencoder.intermediate == 128


def test_conditional_keys_multiply_only_where_they_hold(tmp_path: Path) -> None:
    made = trained(
        tmp_path,
        "space:\n  model.head: [energy, flow]\n  model.sampling_steps: {choice: [2, 4], when: model.head == 'flow'}\n",
    )
    assert [(point.model.model.head, point.model.model.sampling_steps) for point in made] == [
        ("energy", None),
        ("flow", 2),
        ("flow", 4),
    ]


def test_a_key_goes_to_the_run_it_names(tmp_path: Path) -> None:
    (one, two) = trained(
        tmp_path, "space: {autoencoder.optim.lr: [0.1, 0.2], autoencoder.d: [64], all.data.workers: [1]}\n"
    )
    assert one.autoencoder is not None
    assert two.autoencoder is not None
    assert (one.autoencoder.optim.lr, two.autoencoder.optim.lr) == (0.1, 0.2)
    assert one.model.optim.lr == two.model.optim.lr
    assert one.autoencoder.autoencoder.d == one.model.autoencoder.d == 64
    assert one.autoencoder.data.workers == one.model.data.workers == 1


def test_the_baseline_can_be_swept_too(tmp_path: Path) -> None:
    made = trained(
        tmp_path,
        "space:\n  stage: [calm, baseline]\n  model.d: [64, 128]\n  model.K: {choice: [2, 4], when: stage == 'calm'}\n",
    )
    assert [point.slug for point in made] == ["d64-K2", "d64-K4", "d128-K2", "d128-K4", "baseline-d64", "baseline-d128"]
    assert [point.autoencoder is None for point in made] == [False] * 4 + [True] * 2
    assert made[-1].model.stage == "baseline"


def test_constraints_are_checked_before_training(tmp_path: Path) -> None:
    made = trained(
        tmp_path,
        "space: {model.d: [64, 256]}\n"
        "constraints: ['parameters < 1.0e6', 'train_flops <= 1.0e15']\n"
        "calm: {model: {layers: 2, intermediate: 128}}\n",
    )
    assert [bool(point.refused) for point in made] == [False, True]
    assert made[1].forecast is not None
    assert "parameters < 1.0e6 does not hold (parameters = " in made[1].refused
    report = for_stage("calm", made[0].model.model, made[0].model.autoencoder, 257, made[0].model.data.block_tokens)
    assert made[0].forecast is not None
    assert made[0].forecast.parameters == report.parameters_total


def test_the_seed_of_a_trial_reaches_both_runs_unless_the_autoencoder_has_its_own() -> None:
    point = points(sample("space.model.K=[2]"), *PLACES)[1]
    for asked, below in ((None, 7), (3, 3)):
        seeded = point.seeded(7, asked)
        assert seeded.autoencoder is not None
        assert (seeded.model.seed, seeded.autoencoder.seed) == (7, below)


def test_presets_of_a_section_come_first() -> None:
    overrides = ["calm.presets=[calm-m]", "calm.model.d=1056", "space.model.K=[4]"]
    (made,) = points(sample(*overrides, "include_baseline=false"), *PLACES)
    assert (made.model.model.heads, made.model.model.d) == (16, 1056), "the sweep's own keys win over presets"
    assert made.model.trainer["accumulate_grad_batches"] == 32
    with pytest.raises(ConfigError, match=r"data\.\w+=\d+ but another model has \d+, so the two would not compare"):
        points(sample(*overrides), *PLACES)


def test_the_study_is_named_by_what_changes_its_numbers() -> None:
    def name(*overrides: str, corpus: str = "c") -> str:
        return study_name(sample(*overrides), corpus)

    same = ("tracking.mlflow=false", "title=other", "launch.workers=2", "seeds=[0,1]", "storage=journal")
    assert {name(override) for override in same} == {name()}
    others = ("calm.trainer.max_steps=9", "space.model.K=[2]", "budget.evaluations=3", "objectives=[brier_lm]")
    assert len({name(), name(corpus="d"), *(name(override) for override in others)}) == 6


def test_a_sweep_survives_being_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(sweep_to_yaml(sample("calm.optim.lr=0.25")))
    assert load_sweep(path) == sample("calm.optim.lr=0.25")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["calmm.model.d=3"], "unknown key calmm"),
        (["calm.model.dd=3"], r"sweep, calm of CALM K=1: .*unknown key model\.dd"),
        (["space.model.K=[5]"], r"sweep, .* of CALM K=5: .*block_tokens=384 is not a multiple of model\.K=5"),
        (["space.model.K=4"], r"space\.model\.K=4 must be a list"),
        (["space.model.K=[4,4]"], "a value twice"),
        (["name=a/b"], "names a directory"),
        (["space.model.K=[]"], "at least one value"),
        (["space.model.K={int: [4, 1]}"], "the smallest value 4 is above the largest 1"),
        (["space.model.K={int: [1, 4], stp: 1}"], "unknown stp; int takes grid, log, step, when"),
        (["space.model.K={int: [1.5, 4]}"], "whole numbers"),
        (["space.optim.lr={float: [0, 1], log: true}"], "must begin above 0"),
        (["space.optim.lr={float: [0.1, 1]}"], r"space\.optim\.lr is a range without steps"),
        (["space.model.K={float: [1, 2], int: [1, 2]}"], "names int and float"),
        (["space.model.K={chioce: [1, 2]}"], "names no kind of value"),
        (["space.model.K={}"], "names no kind of value"),
        (["space.model.K={int: [1, 4], step: two}"], "step='two' is not of the right kind"),
        (["space.optim.lr={float: [0.1, 1], log: 'false', grid: 2}"], "log='false' is not of the right kind"),
        (["space.model.K"], r"must read key=value"),
        (["space=[1]"], "space must be a mapping"),
        (["constraints=['K = 4']"], r"constraints\[0\]: 'K = 4' cannot be evaluated"),
        (["constraints=['K']"], "is no condition"),
        (["derived.model.l='32 * k'"], r"derived\.model\.l: '32 \* k' cannot be evaluated"),
        (["derived.model.l='open(1)'"], r"derived\.model\.l: 'open\(1\)' cannot be evaluated"),
    ],
)
def test_impossible_sweeps_are_one_sentence(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        points(sample(*overrides), *PLACES)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objectives=[loss]"], "objectives=.* must be different ones of train_flops, inference_flops, brier_lm"),
        (["objectives=[train_flops]"], "must contain brier_lm"),
        (["pruning.rule=asha"], "asha needs one objective"),
        (["pruning.rule=pareto", "objectives=[brier_lm]"], "pareto needs train_flops"),
        (["sampler.name=tpee"], "sampler.name=tpee must be one of grid, qmc, random"),
        (["sampler.name=tpe"], "needs sampler.points"),
        (["sampler.name=cmaes", "sampler.points=3"], "cmaes needs one objective.*numbers only"),
        (["sampler.name=tpe", "sampler.points=3", "sampler.options={wrong: 1}"], "do not suit tpe"),
        (["sampler.name=random", "sampler.points=3", "sampler.batch=2"], "draws the same points anyway"),
        (["budget.rule=flops"], "budget.rule=flops needs budget.flops"),
        (["budget.tokens=5"], "used with budget.rule=tokens only"),
        (["budget.rule=time"], "must be one of steps, tokens, flops"),
        (["seeds=[1,1]"], "holds a seed twice"),
        (["all.model.K=2"], "model.K is swept and set by the command line"),
        (["derived.model.K=2 * 2"], "model.K is swept and set by derived"),
        (["space.work_dir=[a, b]"], "changes no number"),
        (["storage=sqlit"], "storage=sqlit must be sqlite, journal, or an address"),
        (["launch.launcher=loacl"], "did you mean local"),
        (["space.stage=[calm, autoencoder]"], "may hold calm and baseline"),
        (["space.model.N={choice: [2, 4], when: 'model.d > 1'}", "space.model.d=[96]"], "put model.d first"),
        (["per_value=[{when: {model: {Kk: 2}}}]"], "model.Kk is neither swept nor derived"),
        (["objectives=[brier_lm]", "pruning={rule: asha, options: {min_resorce: 3}}"], "do not suit asha"),
        (["space.seed=[1,2]"], "write seeds"),
        (["launch.dead_after_seconds=3", "launch.workers=0"], "workers=0 must be at least 1; .*more than two beats"),
    ],
)
def test_contradictions_are_found_before_anything_is_trained(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_sweep(sample(*overrides))


def test_every_contradiction_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"objectives=.*; sampler\.name=.*; seeds=.*; budget\.rule"):
        validate_sweep(sample("objectives=[x]", "sampler.name=y", "seeds=[1,1]", "budget.rule=z"))


def test_unknown_sweeps_are_named() -> None:
    with pytest.raises(ConfigError, match=r"known: .*k4-sweet-spot/mini, k4-sweet-spot/sample"):
        find_sweep("k5", "sample")
    with pytest.raises(ConfigError, match="does not exist"):
        find_sweep("k4-sweet-spot", "nowhere.yaml")


def test_a_sweep_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        write(tmp_path, "include_baseline: false\n")


def test_the_sample_gives_every_language_model_the_same_training_flops() -> None:
    spent = [
        point.forecast.stage_train_flops
        for point in points(sample(), *PLACES, vocabulary=257)
        if point.forecast is not None
    ]
    assert max(spent) / min(spent) < 1.03


@given(st.integers(-50, 50), st.integers(0, 40), st.integers(1, 7))
def test_a_range_with_steps_holds_its_grid_and_optuna_agrees(low: int, span: int, step: int) -> None:
    (parameter,) = parameters({"x": {"int": [low, low + span], "step": step}})
    values = parameter.grid_values()
    assert values == list(range(low, low + span + 1, step))
    assert all(parameter.holds(value) and parameter.distribution()._contains(value) for value in values)


@given(st.lists(st.one_of(st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2)), min_size=1))
def test_choices_of_any_kind_are_stored_and_read_back(values: list[Any]) -> None:
    unique = list({repr(value): value for value in values}.values())
    parameter = Parameter("x", "choice", tuple(unique))
    stored = {repr(parameter.encode(value)) for value in unique}
    if len(stored) == len(unique):  # "[1]" the text and [1] the list are told apart by nobody
        assert [parameter.decode(parameter.encode(value)) for value in unique] == unique


def test_expressions_know_arithmetic_and_nothing_else() -> None:
    names = {"model": {"K": 4}, "K": 4}
    assert evaluate("32 * model.K if K > 2 else 0", names, "here") == 128
    assert evaluate(5, names, "here") == 5
    for text in ("__import__('os')", "model.__class__", "().__class__.__bases__", "K.real.__doc__", "[x for x in K]"):
        with pytest.raises(ConfigError, match=r"here: .* cannot be evaluated"):
            evaluate(text, names, "here")


def test_nested_keys_are_the_same_as_dotted_ones() -> None:
    assert nested({"a.b": 1, "a": {"c": 2}, "d.e.f": {"g.h": 3}}) == {
        "a": {"b": 1, "c": 2},
        "d": {"e": {"f": {"g": {"h": 3}}}},
    }

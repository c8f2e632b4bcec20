"""Budgets, forecasts and fairness against closed forms, and against what real runs log."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_lightning.config import RunConfig, load_config
from calm_lightning.errors import ConfigError
from calm_lightning.metrics import names
from sweeps.budget.fairness import differences
from sweeps.budget.forecast import forecast, memory_bytes
from sweeps.budget.rates import Clock, measured_rates
from sweeps.budget.rule import apply_budget, check_budget, report_of, step_flops, step_tokens, train_flops
from sweeps.config import BudgetConfig
from sweeps.space.changes import changed

V = 257


@cache
def preset(name: str, *overrides: str) -> RunConfig:
    return load_config([name, *overrides])


def pair(K: int = 4, *overrides: str) -> tuple[RunConfig, RunConfig]:
    below = preset("sample-autoencoder", f"model.K={K}")
    model = preset("sample-calm", f"model.K={K}", *overrides)
    return replace(model, autoencoder=below.autoencoder), below


@settings(deadline=None)
@given(st.floats(1e4, 1e8))
def test_the_same_tokens_for_every_model(tokens: float) -> None:
    for K in (1, 2, 4, 8):
        model, _ = apply_budget(BudgetConfig(rule="tokens", tokens=tokens), *pair(K), V)
        given = int(model.trainer["max_steps"]) * step_tokens(model)
        assert tokens <= given < tokens + step_tokens(model)


@settings(deadline=None)
@given(st.floats(7e12, 1e15), st.booleans())
def test_the_same_flops_for_every_model(flops: float, include: bool) -> None:
    budget = BudgetConfig(rule="flops", flops=flops, include_autoencoder=include)
    for K in (1, 2, 4):
        model, below = apply_budget(budget, *pair(K), V)
        assert below is not None
        spent = train_flops(model, V) + (train_flops(below, V) if include else 0.0)
        assert flops - step_flops(model, V) < spent <= flops * (1 + 1e-9)
        costs = forecast(model, below, V)
        assert costs.train_flops == train_flops(model, V) + train_flops(below, V)
        assert costs.tokens == costs.steps * step_tokens(model)


def test_accumulated_micro_batches_are_part_of_a_step() -> None:
    model, _ = pair(4, "trainer.accumulate_grad_batches=3")
    assert step_tokens(model) == 3 * model.data.batch_tokens
    assert step_flops(model, V) == 3 * step_flops(pair(4)[0], V)


def test_evaluations_and_warm_up_are_spread_over_the_steps() -> None:
    budget = BudgetConfig(rule="tokens", tokens=1.536e6, evaluations=8, warmup_fraction=0.05, autoencoder_tokens=6.2e5)
    model, below = apply_budget(budget, *pair(), V)
    assert below is not None
    assert model.trainer["max_steps"] == 1000
    assert (model.evaluation.every_steps, model.optim.warmup_steps) == (125, 50)
    assert below.trainer["max_steps"] == 101, "620,000 tokens in steps of 6,144"


def test_a_budget_that_pays_for_nothing_says_so() -> None:
    with pytest.raises(ConfigError, match=r"does not pay for a step of the language model .* after the autoencoder's"):
        apply_budget(BudgetConfig(rule="flops", flops=1e6), *pair(), V)
    with pytest.raises(ConfigError, match=r"budget\.tokens=5 is used with .*; budget\.rule=flops needs budget\.flops"):
        check_budget(BudgetConfig(rule="flops", tokens=5.0))
    with pytest.raises(ConfigError, match=r"evaluations=0 must be at least 1; budget\.warmup_fraction=1\.0 must lie"):
        check_budget(BudgetConfig(evaluations=0, warmup_fraction=1.0))


def test_memory_is_the_larger_of_the_two_stages_and_grows_with_batch_and_model() -> None:
    model, below = pair()
    costs = forecast(model, below, V)
    assert costs.memory_bytes == max(memory_bytes(model, V), memory_bytes(below, V)) == 1e9 * costs.memory_gb
    assert memory_bytes(pair(4, "model.d=384")[0], V) > memory_bytes(model, V)
    for one in (model, below):
        state = 16 * report_of(one, V).parameters_total
        longer = replace(one, data=replace(one.data, batch_tokens=4 * one.data.batch_tokens))
        assert memory_bytes(longer, V) - state == pytest.approx(4 * (memory_bytes(one, V) - state))


def result(folder: Path, stage: str, name: str, flops: float, seconds: float) -> None:
    place = folder / stage / name
    place.mkdir(parents=True)
    metrics = {names.TRAIN_FLOPS: flops, names.SECONDS: seconds}
    (place / "result.json").write_text(json.dumps({"metrics": metrics}))


def test_rates_are_medians_of_finished_runs_that_took_long_enough(tmp_path: Path) -> None:
    for number, rate in enumerate((1e10, 3e10, 2e10)):
        result(tmp_path, "calm", f"a{number}", 100 * rate, 100.0)
    result(tmp_path, "calm", "short", 1e20, 1.0)
    (tmp_path / "calm" / "torn").mkdir()
    (tmp_path / "calm" / "torn" / "result.json").write_text('{"metr')
    assert measured_rates(tmp_path) == {"calm": 2e10}
    model, below = pair()
    costs = forecast(model, below, V)
    clock = Clock(tmp_path)
    assert clock.of_point(model, below, costs, with_autoencoder=False) == costs.stage_train_flops / 2e10
    assert clock.of_point(model, below, costs, with_autoencoder=True) is None, (
        "nothing tells how fast those are trained"
    )
    result(tmp_path, "autoencoder", "b", 1e13, 100.0)
    both = Clock(tmp_path).of_point(model, below, costs, with_autoencoder=True)
    assert both == pytest.approx(costs.stage_train_flops / 2e10 + costs.autoencoder_flops / 1e11)


def test_every_shape_is_measured_once(tmp_path: Path) -> None:
    asked: list[int] = []

    def step_seconds(config: RunConfig) -> float:
        asked.append(config.model.N)
        return 0.5

    clock, (model, _) = Clock(tmp_path, step_seconds), pair()
    steps = int(model.trainer["max_steps"])
    assert clock.seconds(model, 1.0) == clock.seconds(replace(model, seed=3, name="x"), 1.0) == 0.5 * steps
    clock.seconds(replace(model, model=replace(model.model, N=2)), 1.0)
    assert asked == [8, 2]


def test_a_step_of_each_stage_can_be_measured() -> None:
    from calm_lightning.programs.probe import step_seconds

    small = [
        "data.block_tokens=96",
        "data.batch_tokens=192",
        "model={d: 16, intermediate: 32, layers: 1, heads: 2, M: 2}",
    ]
    for preset in ("sample-autoencoder", "sample-calm", "sample-baseline"):
        assert 0 < step_seconds(load_config([preset, *small, "data.eval_batch_tokens=192"]), V, steps=1) < 60


def test_what_differs_without_being_swept_is_listed() -> None:
    one, two = pair(2)[0], pair(4, "optim.lr=0.5")[0]
    found = differences([one, two, two], swept=["model.K"])
    assert found == {"optim.lr": [one.optim.lr, 0.5]}


@pytest.mark.parametrize(
    ("key", "value", "stored"),
    [("model.K", 8, 8), ("optim.lr", 1, 1.0), ("model.l", None, None), ("trainer.max_steps", 7, 7), ("name", "x", "x")],
)
def test_a_key_is_changed_as_the_long_way_changes_it(key: str, value: Any, stored: Any) -> None:
    config = changed(RunConfig(), {key: value})
    section, _, rest = key.partition(".")
    part = getattr(config, section)
    found = part if not rest else part[rest] if isinstance(part, dict) else getattr(part, rest)
    assert found == stored
    assert type(found) is type(stored)
    assert RunConfig() == changed(RunConfig(), {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.K", "8"),
        ("model.K", True),
        ("model.K", 1.5),
        ("model.kk", 1),
        ("nothing", 1),
        ("seed.x", 1),
        ("optim.betas", 1),
    ],
)
def test_what_is_not_plainly_of_its_type_takes_the_long_way(key: str, value: Any) -> None:
    with pytest.raises(TypeError):
        changed(RunConfig(), {key: value})

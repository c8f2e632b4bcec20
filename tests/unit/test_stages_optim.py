"""Learning-rate schedules, and which parameters decay."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calm_lightning.stages.config import OptimConfig
from calm_lightning.stages.optim import make_optimizer, schedule


def test_warm_up_is_linear_and_starts_above_zero() -> None:
    ratio = schedule(OptimConfig(warmup_steps=4, schedule="constant"), 100)
    assert [ratio(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert schedule(OptimConfig(warmup_steps=0), 10)(0) == 1.0


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_decay_goes_from_the_peak_to_the_final_ratio(kind: str) -> None:
    ratio = schedule(OptimConfig(warmup_steps=10, schedule=kind, final_lr_ratio=0.1), 110)
    assert ratio(10) == 1.0
    assert ratio(60) == pytest.approx(0.55), "halfway"
    assert ratio(110) == pytest.approx(0.1)
    assert ratio(500) == pytest.approx(0.1)
    quarter = 0.775 if kind == "linear" else 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2
    assert ratio(35) == pytest.approx(quarter)


@given(
    kind=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.integers(0, 30),
    steps=st.integers(1, 60),
    final=st.floats(0, 1),
)
def test_the_rate_rises_then_never_rises_again(kind: str, warmup: int, steps: int, final: float) -> None:
    ratio = schedule(OptimConfig(warmup_steps=warmup, schedule=kind, final_lr_ratio=final), steps)
    rates = [ratio(step) for step in range(steps + 1)]
    assert all(0 <= rate <= 1 for rate in rates)
    peak = min(max(warmup - 1, 0), steps)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rates[peak:], rates[peak + 1 :], strict=False))


def test_matrices_decay_and_norms_biases_and_frozen_parameters_do_not() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Embedding(5, 4))
    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    module.append(frozen)
    optimizer = make_optimizer(module, OptimConfig(lr=0.5, weight_decay=0.1, betas=[0.8, 0.9]))
    decaying, plain = optimizer.param_groups
    assert [tuple(p.shape) for p in decaying["params"]] == [(4, 3), (5, 4)]
    assert (decaying["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim == 1 for p in plain["params"])
    assert len(plain["params"]) == 3
    assert decaying["betas"] == (0.8, 0.9)


def test_decay_is_decoupled_from_the_gradient() -> None:
    weight = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.ones_(weight.weight)
    optimizer = make_optimizer(weight, OptimConfig(lr=0.1, weight_decay=0.5))
    weight.weight.grad = torch.zeros(2, 2)
    optimizer.step()
    torch.testing.assert_close(weight.weight, torch.full((2, 2), 1 - 0.1 * 0.5))

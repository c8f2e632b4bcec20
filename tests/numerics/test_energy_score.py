"""The energy score against its definition, its closed form, and the promise not to hold every difference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.language_model.heads.energy import EnergyHead, energy_score


def direct(x_NPZ: Tensor, y_MPZ: Tensor, alpha: float) -> Tensor:
    """Return the score as it is defined, from every difference, in float64."""
    x, y = x_NPZ.double(), y_MPZ.double()
    N, M = len(x), len(y)
    to_targets = (x.unsqueeze(1) - y.unsqueeze(0)).norm(dim=-1) ** alpha
    between = (x.unsqueeze(1) - x.unsqueeze(0)).norm(dim=-1) ** alpha
    return between.sum((0, 1)) / (N * (N - 1)) - 2 * to_targets.sum((0, 1)) / (N * M)


def rounding(x_NPZ: Tensor, y_MPZ: Tensor, alpha: float, dtype: torch.dtype) -> Tensor:
    """Return how far arithmetic in `dtype` may be from the definition, (P,).

    A squared distance from inner products is wrong by a few units in the last place of the largest square. Of two
    points that all but coincide this is a large part of the distance, larger the smaller alpha is.
    """
    x, y = x_NPZ.double() - y_MPZ.double().mean(0), y_MPZ.double() - y_MPZ.double().mean(0)
    N, M = len(x), len(y)
    error_P = 4 * torch.finfo(dtype).eps * torch.maximum(x.square().sum(-1).amax(0), y.square().sum(-1).amax(0))

    def off(squared: Tensor) -> Tensor:
        lower = (squared - error_P).clamp(min=0)
        return ((squared + error_P) ** (alpha / 2) - lower ** (alpha / 2)).sum((0, 1))

    between = off((x.unsqueeze(1) - x.unsqueeze(0)).square().sum(-1))
    return between / (N * (N - 1)) + 2 * off((x.unsqueeze(1) - y.unsqueeze(0)).square().sum(-1)) / (N * M)


@settings(max_examples=60, deadline=None)
@example(N=2, M=6, P=4, l=1, alpha=0.5, shift=0.0, seed=173791)  # a draw all but on a target
@given(
    N=st.integers(2, 6),
    M=st.integers(1, 7),
    P=st.integers(1, 4),
    l=st.integers(1, 9),
    alpha=st.floats(0.3, 1.95),
    shift=st.floats(-30, 30),
    seed=st.integers(0, 2**20),
)
def test_equals_the_definition(N: int, M: int, P: int, l: int, alpha: float, shift: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, P, l, generator=generator) + shift
    y = torch.randn(M, P, l, generator=generator) + shift
    x64, y64 = x.double().requires_grad_(), y.double()
    for score, least in ((energy_score(x, y, alpha), 1e-5), (energy_score(x64, y64, alpha), 1e-12)):
        error = (score.double() - direct(x, y, alpha)).abs()
        assert (error <= least * (1 + direct(x, y, alpha).abs()) + rounding(x, y, alpha, score.dtype)).all()
    # the gradient grows without bound where two points meet, and with it what rounding does
    pairs = torch.cat([torch.cdist(y64.transpose(0, 1), x64.transpose(0, 1)).flatten(1), _between(x64)], dim=1)
    apart = pairs.amin(1) > 1e-3
    (ours,) = torch.autograd.grad(energy_score(x64, y64, alpha).sum(), x64)
    (theirs,) = torch.autograd.grad(_smooth(x64, y64, alpha).sum(), x64)
    torch.testing.assert_close(ours[:, apart], theirs[:, apart], rtol=1e-6, atol=1e-6)


def _between(x_NPZ: Tensor) -> Tensor:
    """Return the distances between different draws, (P, N (N - 1) / 2)."""
    first, second = torch.triu_indices(len(x_NPZ), len(x_NPZ), offset=1)
    return (x_NPZ[first] - x_NPZ[second]).norm(dim=-1).transpose(0, 1)


@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("distance", [0.0, 1.0, 1e3])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5, 2.0])
def test_draws_near_one_another_lose_no_digits(spread: float, distance: float, alpha: float) -> None:
    """As at the start of training, when all draws of a position are equal, and far from its targets."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 20, 128, generator=generator) + distance + spread * torch.randn(8, 20, 128, generator=generator)
    y = 0.3 * torch.randn(100, 20, 128, generator=generator)
    close = {"rtol": 1e-5, "atol": 0.0} if alpha < 2 or spread < 1 else {"rtol": 1e-5, "atol": 1e-3}
    x32 = x.clone().requires_grad_()
    score = energy_score(x32, y, alpha)
    torch.testing.assert_close(score.double(), direct(x, y, alpha), **close)
    (ours,) = torch.autograd.grad(score.sum(), x32)
    x64 = x.double().requires_grad_()
    (theirs,) = torch.autograd.grad(energy_score(x64, y.double(), alpha).sum(), x64)
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()


def _smooth(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    """Return the definition in a form whose gradient exists on the diagonal."""
    N, M = len(x), len(y)
    pairs = [(i, j) for i in range(N) for j in range(N) if i != j]
    between = torch.stack([(x[i] - x[j]).norm(dim=-1) ** alpha for i, j in pairs]).sum(0)
    to_targets = ((x.unsqueeze(1) - y.unsqueeze(0)).norm(dim=-1) ** alpha).sum((0, 1))
    return between / (N * (N - 1)) - 2 * to_targets / (N * M)


def mean_distance(mean: float, deviation: float) -> float:
    """Return E|X| of a normal variable (the folded normal distribution)."""
    if deviation == 0:
        return abs(mean)
    spread = deviation * math.sqrt(2 / math.pi) * math.exp(-(mean**2) / (2 * deviation**2))
    return spread + mean * math.erf(mean / (deviation * math.sqrt(2)))


def test_expectation_is_the_closed_form_and_highest_at_the_truth() -> None:
    """Draws from N(mean, deviation^2) against targets from N(0, 1), alpha = 1, l = 1."""
    torch.manual_seed(0)
    P, scores = 40_000, {}
    for mean, deviation in [(0.0, 1.0), (0.5, 1.0), (-0.7, 1.0), (0.0, 0.5), (0.0, 1.6), (0.0, 0.0)]:
        x = mean + deviation * torch.randn(4, P, 1)
        score_P = energy_score(x, torch.randn(8, P, 1), 1.0).double()
        expected = 2 * deviation / math.sqrt(math.pi) - 2 * mean_distance(mean, math.hypot(deviation, 1.0))
        error = score_P.std().item() / P**0.5
        assert abs(score_P.mean().item() - expected) < 5 * error
        scores[mean, deviation] = (score_P.mean().item(), error)
    truth, truth_error = scores.pop((0.0, 1.0))
    assert all(truth - score > 3 * math.hypot(error, truth_error) for score, error in scores.values())


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
def test_gradient_is_finite_where_draws_and_targets_coincide(alpha: float) -> None:
    x = torch.zeros(4, 3, 5, requires_grad=True)
    energy_score(x, torch.zeros(6, 3, 5), alpha).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
    far = torch.full((4, 3, 5), 1e4).requires_grad_()
    energy_score(far, far.detach()[:2], alpha).sum().backward()
    assert far.grad is not None and torch.isfinite(far.grad).all()


def test_under_autocast_distances_keep_full_precision() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 10, 32), torch.randn(6, 10, 32)
    with torch.autocast("cpu", torch.bfloat16):
        score = energy_score(x, y, 1.0)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score.double(), direct(x, y, 1.0), rtol=1e-4, atol=1e-4)


class _Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [
            leaf.untyped_storage().nbytes() // leaf.element_size()
            for leaf in tree_leaves(result)
            if isinstance(leaf, Tensor)
        ]
        self.elements = max(self.elements, *sizes, 0) if sizes else self.elements
        return result


def test_no_tensor_of_every_difference_is_made() -> None:
    N, M, P, l = 8, 20, 30, 64
    x, y = torch.randn(N, P, l, requires_grad=True), torch.randn(M, P, l)
    with _Largest() as largest:
        (-energy_score(x, y, 1.0).mean()).backward()
    assert largest.elements <= max(N * M * P, M * P * l)
    with _Largest() as largest:
        direct(x, y, 1.0)
    assert largest.elements >= N * M * P * l, "the measurement would see it"


def test_head_draws_are_independent_over_draws_and_positions_and_see_the_condition() -> None:
    torch.manual_seed(0)
    head = EnergyHead(LanguageModelConfig(d=16, l=6, noise_size=5, head_blocks=2))
    assert (head.sample(torch.randn(3, 16), 4) == 0).all(), "the last linear starts at zero"
    torch.nn.init.normal_(head.to_latent.weight)
    same_P = torch.randn(1, 16).expand(3, 16)
    drawn_NPZ = head.sample(same_P, 4)
    assert drawn_NPZ.shape == (4, 3, 6)
    assert len(drawn_NPZ.flatten(0, 1).unique(dim=0)) == 12
    noise_NPU = torch.rand(4, 3, 5) - 0.5
    assert not torch.allclose(head(same_P, noise_NPU), head(torch.randn(3, 16), noise_NPU))

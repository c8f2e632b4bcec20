"""BrierLM against enumeration, the authors' numbers, and what its errors must be."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from calm_lightning.metrics.brier_lm import (
    BrierLM,
    BrierScores,
    brier_from_probabilities,
    brier_from_samples,
    brier_lm_percent,
)

GOLDEN = Path(os.environ.get("CALM_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
OUTCOMES = torch.cartesian_prod(*[torch.arange(2)] * 4)
"""All sixteen continuations of four tokens over two letters."""


def exact(p_X: Tensor, target_4: Tensor) -> Tensor:
    """Return 2 P(y) - sum_x P(x)^2 for the first n = 1..4 tokens, (4,)."""
    values = []
    for n in range(1, 5):
        marginal = p_X.view(2**n, -1).sum(-1)
        index = int((target_4[:n] * 2 ** torch.arange(n - 1, -1, -1)).sum())
        values.append(2 * marginal[index] - marginal.square().sum())
    return torch.stack(values)


@pytest.mark.parametrize("samples", [2, 3])
def test_expectation_over_all_tuples_of_samples_is_the_brier_score(samples: int) -> None:
    torch.manual_seed(samples)
    p_X = torch.rand(16, dtype=torch.float64).square()
    p_X /= p_X.sum()
    tuples_PS = torch.tensor(list(itertools.product(range(16), repeat=samples)))
    weight_P = p_X[tuples_PS].prod(-1)
    for target_4 in OUTCOMES[[0, 5, 14]]:
        brier_P4 = brier_from_samples(OUTCOMES[tuples_PS], target_4.expand(len(tuples_PS), 4))
        torch.testing.assert_close(weight_P @ brier_P4, exact(p_X, target_4), rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(2, 6), letters=st.integers(1, 3), seed=st.integers(0, 2**20))
def test_equals_the_mean_of_the_two_sample_estimate_over_all_pairs(samples: int, letters: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn_PS4 = torch.randint(letters, (5, samples, 4), generator=generator)
    target_P4 = torch.randint(letters, (5, 4), generator=generator)
    pairs = []
    for i, j in itertools.permutations(range(samples), 2):
        columns = []
        for n in range(1, 5):
            one, two, truth = drawn_PS4[:, i, :n], drawn_PS4[:, j, :n], target_P4[:, :n]
            hits = (one == truth).all(-1).double() + (two == truth).all(-1).double()
            columns.append(hits - (one == two).all(-1).double())
        pairs.append(torch.stack(columns, dim=-1))
    torch.testing.assert_close(brier_from_samples(drawn_PS4, target_P4), torch.stack(pairs).mean(0))


def test_certain_models() -> None:
    target_P4 = torch.tensor([[1, 2, 3, 4]])
    right = target_P4.unsqueeze(1).expand(1, 5, 4)
    assert brier_from_samples(right, target_P4).tolist() == [[1, 1, 1, 1]]
    assert brier_from_samples(right + 1, target_P4).tolist() == [[-1, -1, -1, -1]]
    assert brier_from_samples(torch.tensor([[[1, 2, 9, 9], [1, 2, 8, 8]]]), target_P4).tolist() == [[1, 1, 0, 0]]
    probability = torch.tensor([[0.5, 0.25, 0.125, 0.0625]])
    assert brier_from_probabilities(probability, probability).tolist() == probability.tolist()


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden numbers at {GOLDEN}; set CALM_GOLDEN")
def test_against_the_authors_numbers() -> None:
    case = load_file(GOLDEN / "brier" / "K4.safetensors")
    samples_PS4 = torch.stack((case["sample_1"], case["sample_2"]), dim=2).flatten(0, 1)
    metric = BrierLM()
    metric.update(samples_PS4, case["target"].flatten(0, 1))
    result = metric.compute()
    assert result.brier == pytest.approx((100 * case["brier"]).tolist(), rel=1e-6)
    assert result.value == pytest.approx(case["brierlm_percent"].item(), rel=1e-6)


def test_two_lines_and_what_comes_back() -> None:
    torch.manual_seed(0)
    target = torch.randint(2, (600, 4))
    samples = torch.where(torch.rand(600, 6, 4) < 0.9, target.unsqueeze(1), 1 - target.unsqueeze(1))
    metric = BrierLM()
    metric.update(samples, target)
    result = metric.compute()
    expected = brier_from_samples(samples, target).mean(0)
    assert result.value == pytest.approx(100 * expected.prod().item() ** 0.25, rel=1e-12)
    assert result.low < result.value < result.high
    assert result.high - result.low == pytest.approx(4 * result.standard_error, rel=0.1)
    assert not result.zeroed
    assert (result.positions, result.groups) == (600, 600)
    # each letter is right with probability 0.9: 2 * 0.9 - (0.9^2 + 0.1^2)
    assert result.brier[0] == pytest.approx(100 * (2 * 0.9 - 0.82), abs=5 * result.brier_standard_error[0])


def test_where_a_mean_is_not_positive_the_score_is_zero_and_says_so() -> None:
    metric = BrierScores()
    metric.update(torch.tensor([[0.2, 0.1, 0.05, -0.01], [0.2, 0.1, 0.05, 0.0]]))
    result = metric.compute()
    assert (result.value, result.zeroed, result.low, result.high) == (0.0, True, 0.0, 0.0)
    assert result.brier[3] == pytest.approx(-0.5)
    assert brier_lm_percent(torch.tensor([[0.1] * 4, [0.1, 0.1, 0.1, 0.0]])).tolist() == pytest.approx([10.0, 0.0])


def test_positions_of_one_block_are_resampled_together() -> None:
    """Copies of a position in one group add nothing; taken for independent, they would shrink the error."""
    torch.manual_seed(0)
    rows = torch.rand(50, 4, dtype=torch.float64)
    once, copied, naive = BrierScores(), BrierScores(), BrierScores()
    once.update(rows)
    copied.update(rows.repeat_interleave(9, dim=0), torch.arange(50).repeat_interleave(9))
    naive.update(rows.repeat_interleave(9, dim=0))
    first, second = once.compute(), copied.compute()
    assert second.groups == 50
    assert second.positions == 450
    assert second.value == pytest.approx(first.value)
    assert second.standard_error == pytest.approx(first.standard_error)
    assert naive.compute().standard_error == pytest.approx(first.standard_error / 3, rel=0.15)


def test_error_of_a_mean_is_its_textbook_value() -> None:
    torch.manual_seed(0)
    rows = 0.5 + 0.1 * torch.randn(400, 4, dtype=torch.float64)
    metric = BrierScores()
    metric.update(rows)
    result = metric.compute()
    textbook = 100 * rows.std(0) / 400**0.5
    assert result.brier_standard_error == pytest.approx(textbook.tolist(), rel=0.1)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_updates_add_up_and_reset_forgets() -> None:
    torch.manual_seed(0)
    rows, groups = torch.rand(40, 4), torch.arange(40) // 4
    whole, parts = BrierScores(), BrierScores()
    whole.update(rows, groups)
    parts.update(rows[:12], groups[:12])
    parts.update(rows[12:], groups[12:])
    assert parts.compute() == whole.compute(), "the same scores give the same interval"
    parts.reset()
    with pytest.raises(ValueError, match="no position"):
        parts.compute()


def test_sums_are_kept_in_float64() -> None:
    metric = BrierScores()
    for _ in range(3):
        metric.update(torch.full((1000, 4), 1.0 + 2**-20, dtype=torch.float32), torch.zeros(1000, dtype=torch.int64))
    assert metric.group_rows[0].dtype == torch.float64
    assert metric.compute().brier == pytest.approx([100 * (1 + 2**-20)] * 4, rel=1e-14)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        brier_from_samples(torch.zeros(3, 1, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="target has shape"):
        brier_from_samples(torch.zeros(3, 2, 4), torch.zeros(2, 4))


def test_the_error_of_a_single_group_is_unknown_not_zero() -> None:
    metric = BrierLM()
    metric.update(torch.zeros(5, 3, 4, dtype=torch.long), torch.zeros(5, 4, dtype=torch.long), torch.zeros(5))
    result = metric.compute()
    assert result.value == 100.0
    assert (result.standard_error, result.low, result.high) == (float("inf"), 0.0, 100.0)
    assert result.brier_standard_error == (float("inf"),) * 4

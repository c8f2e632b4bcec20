"""Brier scores against enumeration, and what the errors of BrierLM must be."""

from __future__ import annotations

import itertools
import multiprocessing
import socket
from multiprocessing.queues import SimpleQueue

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed

from calm_lightning.metrics import BrierLM, BrierLMResult, BrierScores, brier
from calm_lightning.metrics.brier import (
    brier_from_probabilities,
    brier_from_samples,
    brier_lm_percent,
    marginal_brier_from_samples,
)

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


def test_marginal_scores_are_those_of_single_tokens() -> None:
    torch.manual_seed(3)
    p_X = torch.rand(16, dtype=torch.float64)
    p_X /= p_X.sum()
    pairs_PS = torch.tensor(list(itertools.product(range(16), repeat=2)))
    target_4 = torch.tensor([0, 1, 1, 0])
    marginal_P4 = marginal_brier_from_samples(OUTCOMES[pairs_PS], target_4.expand(len(pairs_PS), 4))
    for offset in range(4):
        ones = p_X[OUTCOMES[:, offset] == target_4[offset]].sum()
        truth = 2 * ones - ones.square() - (1 - ones).square()
        torch.testing.assert_close(p_X[pairs_PS].prod(-1) @ marginal_P4[:, offset], truth)


def test_slices_of_comparisons_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    samples_PSH, target_PH = torch.randint(2, (50, 7, 8)), torch.randint(2, (50, 8))
    whole = brier_from_samples(samples_PSH, target_PH), marginal_brier_from_samples(samples_PSH, target_PH)
    assert (whole[0].shape, whole[1].shape) == ((50, 4), (50, 8))
    monkeypatch.setattr(brier, "MAX_COMPARISONS", 3 * 7 * 7)
    torch.testing.assert_close(brier_from_samples(samples_PSH, target_PH), whole[0], rtol=0, atol=0)
    torch.testing.assert_close(marginal_brier_from_samples(samples_PSH, target_PH), whole[1], rtol=0, atol=0)
    assert brier_from_samples(samples_PSH[:0], target_PH[:0]).shape == (0, 4)


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
    assert (result.positions, result.documents, result.unit, result.units) == (600, 0, "position", 600)
    assert result.domains == {}
    assert len(result.offsets) == 4
    assert result.offsets[0] == pytest.approx(result.brier[0])
    assert result.offsets_standard_error[0] == pytest.approx(result.brier_standard_error[0], rel=0.1)
    # each letter is right with probability 0.9: 2 * 0.9 - (0.9^2 + 0.1^2)
    assert result.brier[0] == pytest.approx(100 * (2 * 0.9 - 0.82), abs=5 * result.brier_standard_error[0])


def test_where_a_mean_is_not_positive_the_score_is_zero_and_says_so() -> None:
    metric = BrierScores()
    metric.update(torch.tensor([[0.2, 0.1, 0.05, -0.01], [0.2, 0.1, 0.05, 0.0]]))
    result = metric.compute()
    assert (result.value, result.zeroed, result.low, result.high) == (0.0, True, 0.0, 0.0)
    assert result.brier[3] == pytest.approx(-0.5)
    assert brier_lm_percent(torch.tensor([[0.1] * 4, [0.1, 0.1, 0.1, 0.0]])).tolist() == pytest.approx([10.0, 0.0])


def test_positions_of_one_document_are_resampled_together() -> None:
    """Copies of a position in one group add nothing; taken for independent, they would shrink the error."""
    torch.manual_seed(0)
    rows = torch.rand(50, 4, dtype=torch.float64)
    once, copied, naive = BrierScores(), BrierScores(), BrierScores()
    once.update(rows)
    copied.update(rows.repeat_interleave(9, dim=0), group=torch.arange(50).repeat_interleave(9))
    naive.update(rows.repeat_interleave(9, dim=0))
    first, second = once.compute(), copied.compute()
    assert (second.documents, second.unit, second.units) == (50, "document", 50)
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
    whole.update(rows, group=groups)
    parts.update(rows[:10], group=groups[:10])  # the third group spans both calls
    parts.update(rows[10:], group=groups[10:])
    assert parts.compute() == whole.compute(), "the same scores give the same interval"
    parts.reset()
    with pytest.raises(ValueError, match="no position"):
        parts.compute()


def test_sums_are_kept_in_float64() -> None:
    metric = BrierScores()
    for _ in range(3):
        metric.update(torch.full((1000, 4), 1.0 + 2**-20, dtype=torch.float32), group=torch.zeros(1000).long())
    assert metric.compute().brier == pytest.approx([100 * (1 + 2**-20)] * 4, rel=1e-14)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        brier_from_samples(torch.zeros(3, 1, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="target has shape"):
        brier_from_samples(torch.zeros(3, 2, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="at least 4 tokens"):
        brier_from_samples(torch.zeros(3, 2, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"expected \(positions, samples, tokens\)"):
        brier_from_samples(torch.zeros(3, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"expected \(positions, 4\)"):
        BrierScores().update(torch.zeros(3, 5))


@pytest.mark.parametrize("name", ["group", "piece", "domain"])
def test_labels_that_are_none_are_refused_by_name(name: str) -> None:
    rows = torch.rand(3, 4)
    for label, message in (
        (torch.tensor([0.0, 1.5, 2.0]), f"{name} holds torch.float32: labels are whole numbers"),
        (torch.tensor([0, 1]), rf"{name} has shape \(2,\), expected one label per position: \(3,\)"),
    ):
        metric = BrierScores()
        with pytest.raises(ValueError, match=message):
            metric.update(rows, **{name: label})
        assert not metric.score_rows, "nothing half-taken"
    metric = BrierScores(domains=("a", "b"))
    metric.update(rows, **{name: torch.tensor([0, 1, -2])})
    with pytest.raises(ValueError, match=f"{name} holds -2: labels are whole numbers from 0"):
        metric.compute()


def test_offsets_of_other_positions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"offsets have shape \(2, 4\), expected \(3, tokens\)"):
        BrierScores().update(torch.rand(3, 4), torch.rand(2, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_not_zero_by_definition(value: float) -> None:
    metric, rows = BrierScores(), torch.rand(5, 4)
    rows[1:3, 2] = value
    metric.update(rows)
    with pytest.raises(ValueError, match="2 of 5 positions have scores that are not finite numbers"):
        metric.compute()


def test_the_error_of_a_single_group_is_unknown_not_zero() -> None:
    metric = BrierLM()
    metric.update(torch.zeros(5, 3, 4).long(), torch.zeros(5, 4).long(), group=torch.zeros(5).long())
    result = metric.compute()
    assert result.value == 100.0
    assert (result.standard_error, result.low, result.high) == (float("inf"), 0.0, 100.0)
    assert result.brier_standard_error == result.offsets_standard_error == (float("inf"),) * 4
    assert (result.unit, result.units, result.degenerate) == ("document", 1, False)


def test_units_that_all_score_alike_are_said_to_show_no_spread() -> None:
    right, mixed = BrierLM(), BrierLM()
    right.update(torch.ones(30, 2, 4).long(), torch.ones(30, 4).long())
    mixed.update(torch.ones(30, 2, 4).long(), (torch.arange(30) > 0).long().unsqueeze(1).expand(30, 4))
    assert (right.compute().value, right.compute().standard_error, right.compute().degenerate) == (100.0, 0.0, True)
    assert not mixed.compute().degenerate


def test_few_documents_are_resampled_by_their_pieces() -> None:
    torch.manual_seed(0)
    rows, pieces = torch.rand(400, 4), torch.arange(400) // 10
    many, few, without = BrierScores(), BrierScores(), BrierScores()
    many.update(rows, group=torch.arange(400) // 20, piece=pieces)
    few.update(rows, group=torch.arange(400) // 100, piece=pieces)
    without.update(rows, group=torch.arange(400) // 100)
    assert [(r.unit, r.units, r.documents) for r in (many.compute(), few.compute(), without.compute())] == [
        ("document", 20, 20),
        ("piece", 40, 4),
        ("document", 4, 4),
    ]
    # two documents in one block are two pieces
    shared = BrierScores()
    shared.update(rows[:4], group=torch.tensor([0, 0, 1, 1]), piece=torch.tensor([0, 1, 1, 2]))
    assert (shared.compute().unit, shared.compute().units) == ("piece", 4)


def test_a_domain_has_the_score_of_its_own_positions() -> None:
    torch.manual_seed(0)
    rows, domains = torch.rand(60, 4), torch.arange(60) % 3
    metric, alone = BrierScores(domains=("books", "code", "law")), BrierScores()
    metric.update(rows[:25], group=torch.arange(25), domain=domains[:25])
    metric.update(rows[25:], group=torch.arange(25, 60), domain=domains[25:])
    alone.update(rows[domains == 1], group=torch.arange(60)[domains == 1])
    result = metric.compute()
    assert list(result.domains) == ["books", "code", "law"]
    assert result.domains["code"] == alone.compute()
    assert sum(domain.positions for domain in result.domains.values()) == result.positions == 60
    unnamed = BrierScores()
    unnamed.update(rows, domain=domains)
    assert list(unnamed.compute().domains) == ["0", "1", "2"]


def test_error_of_a_mean_over_groups_of_unequal_size_is_that_of_the_bootstrap() -> None:
    torch.manual_seed(1)
    group = torch.arange(300).repeat_interleave(torch.randint(1, 9, (300,)))
    level_P = torch.randn(300)[group]
    rows_P4 = (level_P.unsqueeze(1) + 0.2 * torch.randn(len(group), 4)).double()
    metric = BrierScores()
    metric.update(rows_P4, rows_P4, group=group)
    result = metric.compute()
    assert result.offsets == pytest.approx(result.brier)
    assert result.offsets_standard_error == pytest.approx(result.brier_standard_error, rel=0.07)


@settings(max_examples=20, deadline=None)
@given(samples=st.integers(2, 5), horizon=st.integers(4, 8), seed=st.integers(0, 2**20))
def test_any_number_of_samples_and_offsets_is_taken(samples: int, horizon: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(3, (30, samples, horizon), generator=generator)
    target = torch.randint(3, (30, horizon), generator=generator)
    metric = BrierLM()
    metric.update(drawn, target)
    result = metric.compute()
    expected = marginal_brier_from_samples(drawn, target).mean(0)
    assert result.offsets == pytest.approx((100 * expected).tolist())
    assert 0 <= result.low <= result.high <= 100


def _score_a_share(rank: int, port: int, queue: SimpleQueue[BrierLMResult]) -> None:
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    rows, group, domain = _scored()
    metric = BrierScores(domains=("even", "odd"))
    metric.update(rows[rank::2], rows[rank::2], group=group[rank::2], piece=group[rank::2], domain=domain[rank::2])
    result = metric.compute()
    if rank == 0:
        queue.put(result)
    distributed.destroy_process_group()


def _scored() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(101) // 4
    return torch.rand(101, 4, generator=generator), group, group % 2


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_processes_that_share_documents_find_what_one_finds(unused_port: int) -> None:
    context = multiprocessing.get_context("spawn")
    queue: SimpleQueue[BrierLMResult] = context.SimpleQueue()
    workers = [context.Process(target=_score_a_share, args=(rank, unused_port, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    shared = queue.get()
    for worker in workers:
        worker.join()
    rows, group, domain = _scored()
    alone = BrierScores(domains=("even", "odd"))
    alone.update(rows, rows, group=group, piece=group, domain=domain)
    expected = alone.compute()
    assert (shared.documents, shared.units, shared.positions) == (26, 26, 101)
    assert shared.value == pytest.approx(expected.value, rel=1e-12)
    assert (shared.low, shared.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert shared.domains["odd"].value == pytest.approx(expected.domains["odd"].value, rel=1e-12)

"""Both temperature algorithms against exact probabilities, by chi-square where they can only be drawn from."""

from __future__ import annotations

import itertools
from collections import Counter
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calm_lightning.errors import SamplingError
from calm_lightning.sampling.pools import LazyPool, choose_lazily
from calm_lightning.sampling.temperature import (
    Draws,
    batch_temperature,
    batch_temperature_weights,
    exact_temperature,
    nearest_inverse,
    split_inverse,
)

LEAST_P_VALUE = 1e-4
CHUNKS_CK = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0]])
P_C = torch.tensor([0.35, 0.3, 0.2, 0.1, 0.05])


def p_value(found_C: Tensor, probability_C: Tensor) -> float:
    """Return the chi-square p-value of counts (C,) given probabilities (C,), rare outcomes joined."""
    expected_C = probability_C.double() * found_C.sum()
    rare_C = expected_C < 5
    groups = [(found_C[~rare_C].double(), expected_C[~rare_C])]
    if rare_C.any():
        groups.append((found_C[rare_C].sum().double().view(1), expected_C[rare_C].sum().clamp(min=1e-9).view(1)))
    found, expected = (torch.cat(parts) for parts in zip(*groups, strict=True))
    statistic = ((found - expected).square() / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(found) - 1) / 2).double(), statistic / 2))


class KnownHead:
    """Draws "latents" that are chunks of a known distribution, and counts them."""

    def __init__(self, probability_C: Tensor = P_C) -> None:
        self.probability_C, self.drawn = probability_C, 0

    def sample(self, hidden_PD: Tensor, num: int) -> Tensor:
        self.drawn += num * len(hidden_PD)
        chosen = torch.multinomial(self.probability_C, num * len(hidden_PD), replacement=True)
        return CHUNKS_CK[chosen].float().view(num, len(hidden_PD), 2)


class IdentityCodec:
    def encode(self, tokens_CK: Tensor) -> tuple[Tensor, Tensor]:
        return tokens_CK.float(), torch.zeros(tokens_CK.shape)

    def decode_tokens(self, latent_xZ: Tensor) -> Tensor:
        return latent_xZ.long()


def codes(tokens_BK: Tensor) -> Tensor:
    """Return how often each chunk of the known distribution occurs, (C,)."""
    return (tokens_BK.unsqueeze(1) == CHUNKS_CK).all(-1).sum(0)


def chances(pool_SK: Tensor, inverse_temperature: int) -> dict[tuple[int, ...], float]:
    """Return the probability with which each distinct chunk of a pool is chosen."""
    weights_S = batch_temperature_weights(pool_SK.unsqueeze(0), inverse_temperature)[0]
    found: Counter[tuple[int, ...]] = Counter()
    for chunk, weight in zip(pool_SK.tolist(), weights_S.tolist(), strict=True):
        found[tuple(chunk)] += weight
    return {chunk: weight for chunk, weight in found.items() if weight > 0}


def by_definition(pool_SK: Tensor, n: int) -> dict[tuple[int, ...], float]:
    """Return the same from counts and binomial coefficients."""
    counts = Counter(map(tuple, pool_SK.tolist()))
    n = min(n, max(counts.values()))
    ways = {chunk: comb(count, n) for chunk, count in counts.items() if count >= n}
    return {chunk: way / sum(ways.values()) for chunk, way in ways.items()}


@settings(max_examples=60, deadline=None)
@given(
    letters=st.integers(1, 4),
    size=st.integers(1, 40),
    n=st.integers(1, 12),
    K=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_probabilities_are_binomial(letters: int, size: int, n: int, K: int, seed: int) -> None:
    pool_SK = torch.randint(letters, (size, K), generator=torch.Generator().manual_seed(seed))
    assert chances(pool_SK, n) == pytest.approx(by_definition(pool_SK, n), rel=1e-9)


def test_pools_are_independent_of_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    pools_BSK = torch.randint(3, (5, 30, 2), generator=generator)
    together = batch_temperature_weights(pools_BSK, 4)
    apart = torch.cat([batch_temperature_weights(pool.unsqueeze(0), 4) for pool in pools_BSK])
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(together.sum(1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_draws_follow_the_probabilities(n: int) -> None:
    torch.manual_seed(n)
    pool_SK = torch.randint(3, (40, 2))
    draws = 20_000
    found = Counter(map(tuple, batch_temperature(pool_SK.expand(draws, 40, 2), n).tolist()))
    expected = {chunk: draws * chance for chunk, chance in by_definition(pool_SK, n).items()}
    assert set(found) <= set(expected)
    common = {chunk: count for chunk, count in expected.items() if count > 5}
    statistic = sum((found[chunk] - count) ** 2 / count for chunk, count in common.items())
    freedom = len(common) - 1
    assert statistic < freedom + 5 * (2 * max(freedom, 1)) ** 0.5


def test_inverse_temperatures_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="n >= 1"):
        batch_temperature(torch.zeros(1, 3, 2), 0)


def draw_known(rows_R: Tensor, num: int) -> Draws:
    latents_RSZ = KnownHead().sample(rows_R.unsqueeze(1), num).transpose(0, 1)
    return Draws(latents_RSZ.long(), latents_RSZ)


@pytest.mark.parametrize("temperature", [1.0, 0.9, 0.7, 0.55, 0.5, 0.4, 1 / 3, 0.3, 0.25])
def test_exact_draws_follow_the_power(temperature: float) -> None:
    torch.manual_seed(0)
    drawn = exact_temperature(draw_known, torch.arange(15_000), temperature, 10_000)
    assert torch.equal(drawn.tokens, drawn.latents.long())
    power_C = P_C.double() ** (1 / temperature)
    assert p_value(codes(drawn.tokens), power_C / power_C.sum()) > LEAST_P_VALUE
    wrong_C = P_C.double() ** (1 / temperature + 0.3)
    assert p_value(codes(drawn.tokens), wrong_C / wrong_C.sum()) < LEAST_P_VALUE, "the test must be able to fail"


def test_exact_sampling_only_draws_for_undecided_rows_and_within_its_budget() -> None:
    torch.manual_seed(0)
    asked: list[tuple[int, int]] = []

    def draw(rows_R: Tensor, num: int) -> Draws:
        asked.append((len(rows_R), num))
        return draw_known(rows_R, num)

    exact_temperature(draw, torch.arange(64), 0.3, 10_000)
    rows = [number for number, _ in asked]
    assert rows[0] == 64 and rows == sorted(rows, reverse=True) and rows[-1] < 64
    asked.clear()
    with pytest.raises(SamplingError, match=r"temperature 0.05 .* budget of 50 samples .* of 64 rows .*--method batch"):
        exact_temperature(draw, torch.arange(64), 0.05, 50)
    assert sum(num for _, num in asked) == 50


@pytest.mark.parametrize(("inverse", "stream"), [(2, [0, 1, 1, 2, 2, 2]), (3, [0, 1, 2, 2, 2])])
def test_the_draw_that_rejects_is_spent_and_the_next_one_begins(inverse: int, stream: list[int]) -> None:
    """For n = 2, 1 must not be accepted with the 1 that rejected 0; for n = 3, the 2 after a rejection counts."""
    draws = itertools.chain(stream, itertools.count(3))

    def draw(rows_R: Tensor, num: int) -> Draws:
        tokens = torch.tensor([[[next(draws)] for _ in range(num)]])
        return Draws(tokens, tokens.float())

    assert exact_temperature(draw, torch.arange(1), 1 / inverse, 20).tokens.item() == 2


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, (1, 0)), (0.1, (10, 0)), (1 / 3, (3, 0)), (1 / 7, (7, 0)), (0.4, (2, 0.5))]
)
def test_the_inverse_is_split(temperature: float, expected: tuple[int, float]) -> None:
    assert split_inverse(temperature) == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1.01, float("nan"), float("inf")])
def test_temperatures_outside_are_refused(temperature: float) -> None:
    with pytest.raises(SamplingError, match=r"not in \(0, 1\]"):
        split_inverse(temperature)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(0.33, 3), (0.3333, 3), (0.1429, 7), (0.14, None), (0.7, None), (0.99, None), (1.0, 1), (0.5, 2), (0.4, None)],
)
def test_rounded_inverses_are_recognised(temperature: float, expected: int | None) -> None:
    assert nearest_inverse(temperature) == expected


def test_temperatures_that_cannot_be_reached_are_refused_before_any_draw() -> None:
    def draw(rows_R: Tensor, num: int) -> Draws:
        raise AssertionError("drawn")

    with pytest.raises(SamplingError, match="needs at least 1001 samples per chunk, more than the budget of 1000"):
        exact_temperature(draw, torch.arange(1), 1 / 1000.5, 1000)
    with pytest.raises(SamplingError, match=r"needs at least 1e\+300 samples"):
        exact_temperature(draw, torch.arange(1), 1e-300, 1000)
    with pytest.raises(SamplingError, match="is too small"):
        exact_temperature(draw, torch.arange(1), 1e-320, 1000)


def test_no_draw_is_larger_than_its_bound_and_fewer_may_come() -> None:
    asked: list[int] = []

    def draw(rows_R: Tensor, num: int) -> Draws:
        asked.append(num)
        tokens = torch.zeros(len(rows_R), min(num, 7), 1).long()
        return Draws(tokens, tokens.float())

    assert exact_temperature(draw, torch.arange(2), 1 / 700, 700).tokens.tolist() == [[0], [0]]
    assert max(asked) == 256 and len(asked) == 100, "7 draws a call are 700 draws"


def batch_distribution(size: int, n: int) -> Tensor:
    """Return what the batch algorithm gives on pools of `size` known draws, by enumeration of all pools, (C,)."""
    result = torch.zeros(len(P_C), dtype=torch.float64)
    for pool in itertools.product(range(len(P_C)), repeat=size):
        chance = float(P_C[list(pool)].double().prod())
        for chunk, weight in by_definition(torch.tensor(pool).unsqueeze(1), n).items():
            result[chunk[0]] += chance * weight
    return result


@pytest.mark.parametrize(("size", "n"), [(5, 2), (5, 3), (4, 4), (3, 5), (1, 2)])
def test_lazy_choice_has_the_distribution_of_the_whole_pool(size: int, n: int) -> None:
    torch.manual_seed(size + n)
    hidden = torch.zeros(20_000, 1)
    lazy = choose_lazily(LazyPool(KnownHead(), IdentityCodec(), hidden, size, 2, 2), n)
    assert torch.equal(lazy.tokens, lazy.latents.long())
    expected_C = batch_distribution(size, n)
    assert p_value(codes(lazy.tokens), expected_C) > LEAST_P_VALUE
    wrong_C = P_C.double() ** (n + 0.3 if size > 1 else 1.3)
    assert p_value(codes(lazy.tokens), wrong_C / wrong_C.sum()) < LEAST_P_VALUE, "the test must be able to fail"


@pytest.mark.parametrize("n", [2, 3])
def test_the_batch_algorithm_becomes_exact_as_the_pool_grows(n: int) -> None:
    torch.manual_seed(n)
    power_C = P_C.double() ** n
    values = {}
    for size in (4, 400):
        head = KnownHead()
        drawn = choose_lazily(LazyPool(head, IdentityCodec(), torch.zeros(5_000, 1), size, 2, 2), n)
        values[size] = p_value(codes(drawn.tokens), power_C / power_C.sum())
    assert values[4] < LEAST_P_VALUE < values[400]


def test_a_pool_is_not_drawn_where_its_first_samples_decide() -> None:
    torch.manual_seed(0)
    head = KnownHead(torch.tensor([1.0, 0, 0, 0, 0]))
    choose_lazily(LazyPool(head, IdentityCodec(), torch.zeros(10, 1), 200, 2, 2), 2)
    assert head.drawn <= 10 * 16

"""The batch temperature algorithm against exact probabilities and against its own draws."""

from __future__ import annotations

import json
import os
from collections import Counter
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from calm_lightning.sampling.temperature import batch_temperature, batch_temperature_weights

GOLDEN = Path(os.environ.get("CALM_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))


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


def golden_cases() -> list[Any]:
    if not GOLDEN.is_dir():
        return []
    cases = json.loads((GOLDEN / "temperature" / "expected.json").read_text())
    return [pytest.param(case, id=f"pool{case['pool']}-n{case['inverse_temperature']}") for case in cases]


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden numbers at {GOLDEN}; set CALM_GOLDEN")
@pytest.mark.parametrize("case", golden_cases())
def test_probabilities_are_the_authors(case: dict[str, Any]) -> None:
    pool_SK = load_file(GOLDEN / "temperature" / f"pool{case['pool']}.safetensors")["samples"]
    expected = {tuple(chunk): probability for chunk, probability in case["probabilities"]}
    assert chances(pool_SK, case["inverse_temperature"]) == pytest.approx(expected, rel=1e-9)


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

"""Shares of domains: what a configuration asks for, and the schedule that gives it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_lightning.data.config import DataConfig
from calm_lightning.data.mixture import ROUND, Schedule, domain_shares, quotas, stream_key
from calm_lightning.data.shards.tokens import Numbers
from calm_lightning.errors import DataError

SIZES = {"Books": 600, "Code": 300, "Web": 100}


def shares(**mixture: Any) -> dict[str, float] | None:
    return domain_shares(DataConfig("c", **mixture), SIZES)


def test_without_a_mixture_the_corpus_is_read_as_it_is() -> None:
    assert shares() is None


def test_weights_are_shares_in_any_unit() -> None:
    assert shares(weights={"Code": 3, "Web": 1}) == {"Code": 0.75, "Web": 0.25}


def test_epochs_multiply_what_the_corpus_holds() -> None:
    assert shares(epochs={"Web": 4}) == {"Books": 600 / 1300, "Code": 300 / 1300, "Web": 400 / 1300}
    assert shares(epochs={"Books": 0}) == {"Code": 0.75, "Web": 0.25}


def test_held_out_domains_are_left_out_of_anything() -> None:
    assert shares(held_out=["Books"]) == {"Code": 0.75, "Web": 0.25}
    assert shares(held_out=["Web"], weights={"Web": 5, "Code": 1}) == {"Code": 1.0}


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"weights": {"Code": 1}, "epochs": {"Web": 2}}, "one of them"),
        ({"weights": {"Poems": 1}}, r"'Poems'.*Books, Code, Web"),
        ({"held_out": ["Poems"]}, "'Poems'"),
        ({"weights": {"Code": -1}}, r"data\.weights\.Code=-1"),
        ({"epochs": {"Code": float("nan")}}, "data.epochs.Code=nan"),
        ({"held_out": ["Books", "Code", "Web"]}, "no domain"),
        ({"weights": {"Code": 0}}, "no domain"),
    ],
)
def test_an_impossible_mixture_is_one_sentence(mixture: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        shares(**mixture)


positive_shares = st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=30).map(lambda xs: [x / sum(xs) for x in xs])


@given(positive_shares)
def test_a_round_holds_every_stream_in_its_share(parts: list[float]) -> None:
    found = quotas(parts)
    assert found.sum() == ROUND and found.min() >= 1
    exact = np.maximum(np.array(parts) * ROUND, 1)
    assert np.abs(found - exact).max() <= 1 + len(parts)


def rows(arrays: tuple[Numbers, Numbers]) -> list[tuple[int, int]]:
    streams, ordinals = arrays
    return list(zip(streams.tolist(), ordinals.tolist(), strict=True))


@settings(deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 3 * ROUND), st.integers(1, 50))
def test_a_stream_gives_its_blocks_one_after_another(seed: int, begin: int, length: int) -> None:
    schedule, fresh = Schedule([0.5, 0.3, 0.2], seed), Schedule([0.5, 0.3, 0.2], seed)
    places = rows(schedule.batch(begin, length))
    assert places == [rows(fresh.batch(begin + i, 1))[0] for i in reversed(range(length))][::-1]
    for stream in range(3):
        ordinals = [ordinal for found, ordinal in places if found == stream]
        assert ordinals == list(range(ordinals[0], ordinals[0] + len(ordinals))) if ordinals else True


def test_a_round_starts_where_the_last_one_ended() -> None:
    schedule = Schedule([0.75, 0.25], seed=1)
    places = rows(schedule.batch(0, 2 * ROUND))
    assert Counter(stream for stream, _ in places) == {0: 1.5 * ROUND, 1: 0.5 * ROUND}
    assert sorted(ordinal for stream, ordinal in places if stream == 1) == list(range(ROUND // 2))


def test_the_order_of_a_domain_does_not_depend_on_the_others() -> None:
    assert stream_key(3, "Books") == stream_key(3, "Books") != stream_key(3, "Code")
    assert stream_key(3, None) == (3,)

"""The order of blocks: arithmetic alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calm_lightning.data.packing import BlockAddress, BlockIndex, BlockPlan, evenly_spaced, seeded_permutation
from calm_lightning.errors import DataError

shard_blocks = st.lists(st.integers(0, 7), min_size=1, max_size=12).filter(any)


@given(shard_blocks, st.integers(-3, 2**40), st.integers(1, 5), st.integers(0, 3))
def test_every_block_comes_exactly_once_per_epoch(blocks: list[int], seed: int, together: int, epoch: int) -> None:
    plan = BlockPlan(blocks, seed, together)
    total = sum(blocks)
    visited = [plan.at(epoch * total + i) for i in range(total)]
    assert sorted(address.number for address in visited) == list(range(total))
    assert {(a.shard, a.block) for a in visited} == {(s, b) for s, count in enumerate(blocks) for b in range(count)}


@given(shard_blocks, st.integers(0, 99), st.integers(1, 5), st.data())
def test_a_position_has_one_block_whatever_was_asked_before(
    blocks: list[int], seed: int, together: int, data: st.DataObject
) -> None:
    positions = data.draw(st.lists(st.integers(0, 3 * sum(blocks)), min_size=1, max_size=20))
    plan = BlockPlan(blocks, seed, together)
    assert [plan.at(p) for p in positions] == [BlockPlan(blocks, seed, together).at(p) for p in positions]


def test_only_shards_shuffled_together_are_open_at_once() -> None:
    plan = BlockPlan([5] * 6, seed=1, shuffle_shards=2)
    shards = [plan.at(position).shard for position in range(30)]
    groups = [set(shards[i : i + 10]) for i in range(0, 30, 10)]
    assert [len(group) for group in groups] == [2, 2, 2]
    assert set.union(*groups) == set(range(6))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        plan = BlockPlan([10, 10], seed, 2)
        return [plan.at(epoch * 20 + i).number for i in range(20)]

    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_the_permutation_of_a_key_is_fixed_for_ever() -> None:
    # Pinned: a change here would silently change the data order of every resumed run.
    pinned = [3, 7, 4, 2, 1, 5, 6, 0]
    assert seeded_permutation(8, 0, 0).tolist() == pinned
    assert seeded_permutation(8, 0, 0, 0).tolist() != pinned  # a longer key is another key


def test_addresses_step_over_shards_without_blocks() -> None:
    index = BlockIndex([0, 2, 0, 0, 1])
    assert [index.address(n) for n in range(index.total)] == [
        BlockAddress(1, 0, 0),
        BlockAddress(1, 1, 1),
        BlockAddress(4, 0, 2),
    ]


def test_a_plan_without_blocks_is_refused() -> None:
    with pytest.raises(DataError):
        BlockPlan([0, 0], 0, 1)


@given(st.integers(1, 500), st.integers(1, 500))
def test_evenly_spaced_blocks_are_distinct_ordered_and_spread(total: int, limit: int) -> None:
    numbers = evenly_spaced(total, limit)
    assert len(numbers) == min(total, limit)
    assert numbers[0] == 0 and numbers[-1] < total
    gaps = {b - a for a, b in pairwise(numbers)}
    assert min(gaps, default=1) >= 1 and max(gaps, default=1) - min(gaps, default=1) <= 1


def test_no_limit_means_all_blocks() -> None:
    assert evenly_spaced(4, None) == [0, 1, 2, 3]

"""From a position in the stream to a block of a shard: pure arithmetic on the manifest's token counts.

Cutting is per shard: the documents of a shard, each with its separator in front, are laid end to end and cut
into blocks of T tokens; the remainder (< T tokens per shard) is left out. So blocks may hold several
documents and a document may span blocks, but none spans shards, and the manifest alone tells where every
block lies. Shuffling is in two steps, whole shards and then the blocks of `shuffle_shards` neighbours together:
fewer shards in memory, less mixing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calm_lightning.errors import DataError


class BlockAddress(NamedTuple):
    """Where a block lies.

    Attributes:
        shard: Index of the shard in its split.
        block: Index of the block in the shard: its tokens start at `block * T`.
        number: Index of the block in the split, in shard order.
    """

    shard: int
    block: int
    number: int


def seeded_permutation(length: int, *key: int) -> NDArray[np.int64]:
    """Return a permutation of range(length) that depends on `key` alone.

    Sorts raw generator output, which numpy promises never to change, rather than calling
    `Generator.permutation`, which it may: a run resumed years later sees the same order.
    """
    # Hashed, because SeedSequence pads with zeros: it takes (seed, epoch) and (seed, epoch, 0) for one key.
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.argsort(np.random.PCG64(int.from_bytes(digest, "big")).random_raw(length), kind="stable")


class BlockIndex:
    """Blocks of a split numbered 0.. in shard order.

    Attributes:
        total: Number of blocks in the split.
    """

    def __init__(self, blocks_per_shard: Sequence[int]) -> None:
        """Take the number of blocks of every shard, in order."""
        self.first = np.concatenate(([0], np.cumsum(np.asarray(blocks_per_shard, dtype=np.int64))))
        self.total = int(self.first[-1])

    def address(self, number: int) -> BlockAddress:
        """Return where block `number` lies."""
        # side="right" steps over shards that hold no block
        shard = int(np.searchsorted(self.first, number, side="right")) - 1
        return BlockAddress(shard, number - int(self.first[shard]), number)


class BlockPlan:
    """The order in which training visits the blocks of a split, for ever: epoch after epoch, each block once.

    A function of (blocks per shard, seed, shuffle_shards) and the position; it holds no state but a cache.

    Attributes:
        index: The split's blocks.
    """

    def __init__(self, blocks_per_shard: Sequence[int], seed: int, shuffle_shards: int) -> None:
        """Lay out the plan.

        Args:
            blocks_per_shard: Whole blocks in every shard.
            seed: Seed of the order.
            shuffle_shards: Shards whose blocks are shuffled together, at least 1.

        Raises:
            DataError: There is no block at all.
        """
        self.index = BlockIndex(blocks_per_shard)
        if self.index.total == 0:
            raise DataError("no shard holds a whole block")
        self._seed = seed
        self._shuffle_shards = shuffle_shards
        self._epoch = -1
        self._shards: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._group_first: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._group = -1
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def at(self, position: int) -> BlockAddress:
        """Return the block at a position of the stream, 0, 1, 2, ... without end."""
        epoch, offset = divmod(position, self.index.total)
        if epoch != self._epoch:
            self._enter_epoch(epoch)
        group = int(np.searchsorted(self._group_first, offset, side="right")) - 1
        if group != self._group:
            self._enter_group(group)
        return self.index.address(int(self._order[offset - int(self._group_first[group])]))

    def _enter_epoch(self, epoch: int) -> None:
        counts = np.diff(self.index.first)
        self._shards = seeded_permutation(len(counts), self._seed, epoch)
        starts = np.arange(0, len(counts), self._shuffle_shards)
        sizes = np.add.reduceat(counts[self._shards], starts)
        self._group_first = np.concatenate(([0], np.cumsum(sizes)))
        self._epoch, self._group = epoch, -1

    def _enter_group(self, group: int) -> None:
        first = group * self._shuffle_shards
        shards = self._shards[first : first + self._shuffle_shards]
        numbers = np.concatenate([np.arange(self.index.first[s], self.index.first[s + 1]) for s in shards])
        self._order = numbers[seeded_permutation(len(numbers), self._seed, self._epoch, group)]
        self._group = group


def evenly_spaced(total: int, limit: int | None) -> list[int]:
    """Return `limit` block numbers spread evenly over range(total), or all of them where limit is None or larger."""
    if limit is None or limit >= total:
        return list(range(total))
    return [i * total // limit for i in range(limit)]

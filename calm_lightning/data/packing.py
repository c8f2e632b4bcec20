"""From a position in the stream to blocks of shards: pure arithmetic on token counts.

Cutting is per shard: the documents of a shard, each with its separator in front, are laid end to end and cut
into blocks of T tokens; the remainder (< T tokens per shard) is left out. So blocks may hold several
documents and a document may span blocks, but none spans shards. Shuffling is in two steps, whole shards and then the
blocks of `shuffle_shards` neighbours together (a window): fewer shards at once, less mixing.

Counts are asked for window by window. Where they are known, from a manifest, going to any position opens no shard;
where they have to be found out, only the windows before it are counted, once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from calm_lightning.data.shards.tokens import Numbers
from calm_lightning.errors import DataError


def seeded_permutation(length: int, *key: int) -> Numbers:
    """Return a permutation of range(length) that depends on `key` alone.

    Sorts raw generator output, which numpy promises never to change, rather than calling
    `Generator.permutation`, which it may: a run resumed years later sees the same order.
    """
    # Hashed, because SeedSequence pads with zeros: it takes (seed, epoch) and (seed, epoch, 0) for one key.
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.argsort(np.random.PCG64(int.from_bytes(digest, "big")).random_raw(length), kind="stable")


class _Window(NamedTuple):
    """Some shards of an epoch whose blocks are shuffled together.

    Attributes:
        epoch: The epoch.
        number: Number of the window in the epoch.
        begin: Position of its first block.
        shards: Its shards, in the epoch's order.
        counts: Blocks of each.
    """

    epoch: int
    number: int
    begin: int
    shards: Numbers
    counts: Numbers

    @property
    def end(self) -> int:
        """Position behind its last block."""
        return self.begin + int(self.counts.sum())


class BlockPlan:
    """The order in which training visits the blocks of a split, for ever: epoch after epoch, each block once.

    A function of (blocks per shard, key, shuffle_shards) and the position; what it holds is a cache.
    """

    def __init__(
        self,
        shards: int,
        blocks_of: Callable[[int], int],
        key: tuple[int, ...],
        shuffle_shards: int,
        *,
        counted: bool,
        what: str = "a whole block",
    ) -> None:
        """Lay out the plan.

        Args:
            shards: Number of shards.
            blocks_of: Gives the number of whole blocks of a shard.
            key: What the order depends on: the seed, and what else tells plans apart.
            shuffle_shards: Shards whose blocks are shuffled together, at least 1.
            counted: Whether `blocks_of` costs nothing, so that later epochs can be entered without counting windows.
            what: What no shard holds where there is no block at all, for the message.

        Raises:
            DataError: There is no block at all (told where `counted`, else when an epoch has passed without one).
        """
        self._shards, self._blocks_of, self._key, self._shuffle_shards = shards, blocks_of, key, shuffle_shards
        self._total = sum(blocks_of(shard) for shard in range(shards)) if counted else None
        self._what, self._counted = what, counted
        self._ahead: tuple[tuple[int, int], list[int]] = ((-1, -1), [])
        self._check()
        nothing = np.empty(0, dtype=np.int64)
        self._permutation = (-1, nothing)
        self._window: _Window | None = None
        self._order: tuple[tuple[int, int], Numbers, Numbers] = ((-1, -1), nothing, nothing)

    def batch(self, position: int, count: int) -> tuple[Numbers, Numbers]:
        """Return the blocks at positions `position` .. `position + count - 1` of the stream.

        Returns:
            Index of the shard of each, and index of each block in its shard (its tokens start at `index * T`): two
            arrays of shape (count,).
        """
        parts: list[tuple[Numbers, Numbers]] = []
        found = 0
        while found < count:
            window = self._window = self._window_of(position + found)
            shards, blocks = self._shuffled(window)
            part = slice(position + found - window.begin, position + count - window.begin)
            parts.append((shards[part], blocks[part]))
            found += len(parts[-1][0])
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([shards for shards, _ in parts]), np.concatenate([blocks for _, blocks in parts])

    def shards_ahead(self) -> list[int]:
        """Return the shards of the window behind the one that was read last, as far as they are known to be needed."""
        epoch, number = self._behind(self._window) if self._window else (0, 0)
        if self._ahead[0] != (epoch, number):
            shards = [int(shard) for shard in self._shards_of(epoch, number)]
            self._ahead = ((epoch, number), [one for one in shards if not self._counted or self._blocks_of(one)])
        return self._ahead[1]

    def _check(self) -> None:
        if self._total == 0:
            raise DataError(f"no shard holds {self._what}: use shorter blocks, or prepare larger shards")

    def _window_of(self, position: int) -> _Window:
        """Return the window that holds a position."""
        window = self._window
        if window is None or position < window.begin:
            window = self._at_window(0, 0, 0) if self._total is None else None
        if self._total is not None and (window is None or position >= window.begin + self._total):
            epoch = position // self._total
            window = self._at_window(epoch, 0, epoch * self._total)
        assert window is not None
        while position >= window.end:
            epoch, number = self._behind(window)
            if epoch == 1 and self._total is None:
                self._total = window.end
                self._check()
            window = self._at_window(epoch, number, window.end)
        return window

    def _behind(self, window: _Window) -> tuple[int, int]:
        last = (window.number + 1) * self._shuffle_shards >= self._shards
        return (window.epoch + 1, 0) if last else (window.epoch, window.number + 1)

    def _shards_of(self, epoch: int, number: int) -> Numbers:
        if self._permutation[0] != epoch:
            self._permutation = (epoch, seeded_permutation(self._shards, *self._key, epoch))
        first = number * self._shuffle_shards
        return self._permutation[1][first : first + self._shuffle_shards]

    def _at_window(self, epoch: int, number: int, begin: int) -> _Window:
        shards = self._shards_of(epoch, number)
        counts = np.array([self._blocks_of(int(shard)) for shard in shards], dtype=np.int64)
        return _Window(epoch, number, begin, shards, counts)

    def _shuffled(self, window: _Window) -> tuple[Numbers, Numbers]:
        """Return the shards and blocks of a window in the order they are visited in."""
        place = (window.epoch, window.number)
        if self._order[0] != place:
            order = seeded_permutation(window.end - window.begin, *self._key, *place)
            ends = np.cumsum(window.counts)
            owners = np.searchsorted(ends, order, side="right")  # steps over shards that hold no block
            self._order = (place, window.shards[owners], order - (ends - window.counts)[owners])
        return self._order[1:]


class BlockIndex:
    """Blocks of a split numbered 0.. in the order of its shards: what evaluation reads.

    Attributes:
        total: Number of blocks in the split.
    """

    def __init__(self, blocks_per_shard: Sequence[int]) -> None:
        """Take the number of blocks of every shard, in order."""
        self._first = np.concatenate(([0], np.cumsum(np.asarray(blocks_per_shard, dtype=np.int64))))
        self.total = int(self._first[-1])

    def locate(self, numbers: Sequence[int]) -> tuple[Numbers, Numbers]:
        """Return the shard of each block, and its index in the shard, (blocks,) both."""
        # side="right" steps over shards that hold no block
        shards = np.searchsorted(self._first, numbers, side="right") - 1
        return shards, np.asarray(numbers, dtype=np.int64) - self._first[shards]


def evenly_spaced(total: int, limit: int | None) -> range | list[int]:
    """Return `limit` block numbers spread evenly over range(total), or all of them where limit is None or larger."""
    if limit is None or limit >= total:
        return range(total)
    return [i * total // limit for i in range(limit)]

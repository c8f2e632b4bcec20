"""The stream is a function: (manifest, split, seed, position) -> blocks of tokens.

`BlockStream` yields global micro-batches of training from any position on; `EvaluationBlocks` yields the same
blocks in the same order every time; `TokenLoader` hands either to Lightning.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import parent_process
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from calm_lightning.data.batch import TokenBatch
from calm_lightning.data.blocks import BlockReader, Blocks
from calm_lightning.data.mixture import Schedule, stream_key
from calm_lightning.data.packing import BlockIndex, BlockPlan, evenly_spaced
from calm_lightning.errors import DataError


class BlockStream(IterableDataset[TokenBatch]):
    """Training micro-batches start, start + 1, ... without end.

    Global micro-batch t holds the blocks at positions t * B .. (t + 1) * B - 1 of the plan, whatever the number
    of ranks and workers: rank r of R takes every R-th of them, worker w of W every W-th micro-batch, which
    a DataLoader hands out in turn, so that the order stays.

    Attributes:
        start: First global micro-batch of the next iteration.
    """

    def __init__(
        self,
        reader: BlockReader,
        *,
        seed: int,
        shuffle_shards: int,
        batch_blocks: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        shares: Mapping[str, float] | None = None,
        counted: bool = True,
    ) -> None:
        """Describe the stream.

        Args:
            reader: Blocks of the training split.
            seed: Seed of the order.
            shuffle_shards: Shards whose blocks are shuffled together.
            batch_blocks: Blocks per global micro-batch, B.
            start: First global micro-batch.
            rank: This process among `world`.
            world: Number of processes; must divide `batch_blocks`.
            shares: Share of blocks by domain; None reads all domains together, as the shards hold them.
            counted: Whether the tokens of every shard are known without reading it.

        Raises:
            DataError: `world` does not divide `batch_blocks`, or a domain has no whole block in any shard.
        """
        if batch_blocks % world:
            raise DataError(
                f"data.batch_tokens holds {batch_blocks} blocks, which {world} processes cannot share equally: "
                f"make it a multiple of {world} * data.block_tokens"
            )
        self.start = start
        self._reader, self._batch_blocks = reader, batch_blocks
        self._rank, self._world = rank, world
        self._domains: tuple[str | None, ...] = (None,) if shares is None else tuple(shares)
        self._schedule = None if shares is None else Schedule(list(shares.values()), seed)
        self._plans = [
            BlockPlan(
                reader.shards,
                _BlockCount(reader, domain),
                stream_key(seed, domain),
                shuffle_shards,
                counted=counted,
                what=reader.described(domain),
            )
            for domain in self._domains
        ]

    def __iter__(self) -> Iterator[TokenBatch]:
        worker = get_worker_info()
        if worker is None:
            yield from self._batches(self.start, 1)
            return
        try:
            yield from self._batches(self.start + worker.id, worker.num_workers)
        except DataError as error:
            # Raised here, it would reach the user as a traceback in a string; TokenLoader raises it over there.
            yield error  # type: ignore[misc]

    def _batches(self, index: int, step: int) -> Iterator[TokenBatch]:
        ahead: list[list[int]] = [[] for _ in self._plans]
        while True:
            begin = index * self._batch_blocks
            yield self._reader.batch(self._mixed(begin) if self._schedule else self._joined(begin), index)
            for stream, plan in enumerate(self._plans):
                if (coming := plan.shards_ahead()) != ahead[stream]:
                    ahead[stream] = coming
                    self._reader.prefetch(coming)
            index += step

    def _joined(self, begin: int) -> list[Blocks]:
        """Return the rank's part of the micro-batch whose first position is `begin`, all domains together."""
        shards, places = (a[self._rank :: self._world] for a in self._plans[0].batch(begin, self._batch_blocks))
        return [Blocks(np.arange(len(shards)), shards, places, shards << 32 | places, None)]

    def _mixed(self, begin: int) -> list[Blocks]:
        """Return the rank's part of the micro-batch whose first position is `begin`, drawn by domain."""
        assert self._schedule is not None
        streams_B, ordinals_B = self._schedule.batch(begin, self._batch_blocks)
        parts = []
        for stream in np.unique(streams_B).tolist():
            at = np.flatnonzero(streams_B == stream)
            shards, places = self._plans[stream].batch(int(ordinals_B[at[0]]), len(at))
            own = at % self._world == self._rank
            domain = self._domains[stream]
            firsts = np.array([self._reader.first_block(shard, domain) for shard in shards.tolist()], dtype=np.int64)
            rows, shards, places = at[own] // self._world, shards[own], places[own]
            parts.append(Blocks(rows, shards, places, shards << 32 | (firsts[own] + places), domain))
        return parts


class _BlockCount:
    """Blocks of a shard's documents of one domain, as a plan asks for them (a class, since workers may be spawned)."""

    def __init__(self, reader: BlockReader, domain: str | None) -> None:
        self._reader, self._domain = reader, domain

    def __call__(self, shard: int) -> int:
        return self._reader.blocks_of(shard, self._domain)


class TokenLoader(DataLoader[TokenBatch]):
    """A DataLoader over whole batches that raises a worker's DataError as it is, one sentence."""

    def __init__(
        self, stream: IterableDataset[TokenBatch], workers: int = 0, position: Callable[[], int] | None = None
    ) -> None:
        """Load a stream.

        Args:
            stream: The stream.
            workers: Processes that load; 0 for this one.
            position: Tells where each iteration of a `BlockStream` begins.
        """
        self._stream, self._position = stream, position
        init = _end_with_parent if workers else None
        way = _as_arrays if workers else _as_is
        super().__init__(stream, batch_size=None, num_workers=workers, collate_fn=way, worker_init_fn=init)

    def __iter__(self) -> Iterator[TokenBatch]:  # type: ignore[override]  # typed as one concrete iterator class
        if self._position is not None and isinstance(self._stream, BlockStream):
            self._stream.start = self._position()
        if not self.num_workers:  # torch's own loop would only cost time
            yield from self._stream
            return
        for item in super().__iter__():
            if isinstance(item, DataError):
                raise item
            yield TokenBatch._make(torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in item)


def _as_arrays(batch: Any) -> Any:
    """Return a batch as arrays, which go through a worker's pipe; tensors would take a shared-memory file each.

    A pipe takes 0.1 ms for 6,144 tokens and a file 1 ms and more, most of all where the cores are busy.
    """
    if isinstance(batch, DataError):
        return batch
    return tuple(part.numpy() if isinstance(part, torch.Tensor) else part for part in batch)


def _as_is(batch: Any) -> Any:
    """Return a batch unchanged (a named function, so that spawned workers can get it)."""
    return batch


def _end_with_parent(_: int) -> None:
    """See to it that a worker ends when its trainer is killed.

    torch's own watch looks at the parent in the process table, which need not be the trainer but a fork server.
    """
    trainer = parent_process()
    assert trainer is not None

    def watch() -> None:
        wait([trainer.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class EvaluationBlocks(IterableDataset[TokenBatch]):
    """The blocks of a split in order, all of them or evenly spaced ones; the last batch may be short.

    Attributes:
        total: Blocks of the split.
        block_numbers: Blocks of this process' share.
        domains: Names of the domains that batches number.
    """

    def __init__(
        self, reader: BlockReader, *, batch_blocks: int, max_blocks: int | None, rank: int = 0, world: int = 1
    ) -> None:
        """Describe the pass.

        Args:
            reader: Blocks of the split.
            batch_blocks: Blocks per batch of one process.
            max_blocks: Evaluate on this many evenly spaced blocks; None means all.
            rank: This process among `world`; it takes every `world`-th block.
            world: Number of processes.

        Raises:
            ShardError: The tokens of a shard had to be counted, and it cannot be had.
        """
        self._reader, self._batch_blocks = reader, batch_blocks
        self.domains = reader.domains
        self._index = BlockIndex([reader.blocks_of(shard) for shard in range(reader.shards)])
        self.total = self._index.total
        self.block_numbers = evenly_spaced(self.total, max_blocks)[rank::world]

    def __len__(self) -> int:
        return -(-len(self.block_numbers) // self._batch_blocks)

    def __iter__(self) -> Iterator[TokenBatch]:
        for index in range(len(self)):
            numbers = self.block_numbers[index * self._batch_blocks : (index + 1) * self._batch_blocks]
            rows, named = np.arange(len(numbers)), np.asarray(numbers, dtype=np.int64)
            yield self._reader.batch([Blocks(rows, *self._index.locate(numbers), named, None)], index)

"""The stream is a function: (manifest, split, seed, position) -> blocks of tokens.

`BlockStream` yields global micro-batches of training from any position on; `EvaluationBlocks` yields the same
blocks in the same order every time. Whole shards are decoded into memory (a few, least recently used go
first), so a block is a slice; the price is a pause where a new shard is opened.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.tariterators import group_by_keys, tar_file_expander

from calm_lightning.data.batch import TokenBatch
from calm_lightning.data.packing import BlockAddress, BlockIndex, BlockPlan, evenly_spaced
from calm_lightning.data.shards import DOCUMENT_FIELD, TOKENS_FIELD, Manifest, ShardRecord, TokenArray, decode_tokens
from calm_lightning.errors import DataError


class DecodedShard(NamedTuple):
    """A shard in memory.

    Attributes:
        tokens: All its tokens, document after document.
        begins: Index of the first token of every document, (documents,).
        domains: Number of every document's domain, (documents,); empty where documents are not asked for.
    """

    tokens: TokenArray
    begins: NDArray[np.int64]
    domains: NDArray[np.int64]


class ShardReader:
    """Blocks of one split, read from its shards.

    A shard's checksum is compared at its first opening, its token count and ids at every one.

    Attributes:
        domains: Names of the split's domains; a domain's number is its place here.
    """

    def __init__(
        self, corpus: Path, manifest: Manifest, split: str, block_tokens: int, keep: int, documents: bool = False
    ) -> None:
        """Prepare to read; nothing is opened yet.

        Args:
            corpus: The corpus directory.
            manifest: Its manifest.
            split: Name of the split.
            block_tokens: Tokens per block, T.
            keep: Shards kept decoded in memory.
            documents: Whether batches are to tell the document and domain of every token.

        Raises:
            DataError: The split does not exist or no shard of it holds a whole block.
        """
        self._corpus, self._manifest, self._keep, self._documents = corpus, manifest, keep, documents
        self.domains = tuple(sorted(manifest.split(split).domains))
        self._shards = manifest.split(split).shards
        self.block_tokens = block_tokens
        self.blocks_per_shard = manifest.split(split).blocks(block_tokens)
        if not any(self.blocks_per_shard):
            longest = max((shard.tokens for shard in self._shards), default=0)
            raise DataError(
                f"data.block_tokens={block_tokens} is longer than any shard of split {split!r} of {corpus} "
                f"(the largest has {longest} tokens): use shorter blocks, or prepare with a larger --shard-tokens"
            )
        self._checked: set[int] = set()
        self._decoded: OrderedDict[int, DecodedShard] = OrderedDict()
        self._first_document = np.cumsum([0, *(shard.documents for shard in self._shards)])

    def batch(self, addresses: Sequence[BlockAddress], index: int) -> TokenBatch:
        """Return the blocks at `addresses` as one micro-batch numbered `index`."""
        blocks = torch.tensor([address.number for address in addresses])
        # one pass: neighbouring blocks share a shard, and few shards stay decoded
        rows = zip(*(self._block(address) for address in addresses), strict=True)
        tokens, *labels = (torch.from_numpy(np.stack(row)) for row in rows)
        return TokenBatch(tokens, index, blocks, *labels)

    def _block(self, address: BlockAddress) -> tuple[NDArray[np.int64], ...]:
        """Return a block's tokens and, where asked for, the document and domain of each, (T,) all."""
        shard, T = self._shard(address.shard), self.block_tokens
        begin, end = address.block * T, (address.block + 1) * T
        tokens = shard.tokens[begin:end].astype(np.int64)
        if not self._documents:
            return (tokens,)
        document = np.searchsorted(shard.begins, np.arange(begin, end), side="right") - 1
        return tokens, document + self._first_document[address.shard], shard.domains[document]

    def _shard(self, shard: int) -> DecodedShard:
        if shard in self._decoded:
            self._decoded.move_to_end(shard)
            return self._decoded[shard]
        while len(self._decoded) >= self._keep:
            self._decoded.popitem(last=False)
        self._decoded[shard] = self._load(shard)
        return self._decoded[shard]

    def _load(self, shard: int) -> DecodedShard:
        record = self._shards[shard]
        path = self._corpus / record.file
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"shard {path} cannot be read ({error.strerror}): put it back or prepare the corpus again"
            ) from None
        if shard not in self._checked:
            if hashlib.sha256(data).hexdigest() != record.sha256:
                size = "" if len(data) == record.bytes else f", it has {len(data)} bytes of {record.bytes}"
                raise DataError(
                    f"shard {path} is damaged (its SHA-256 is not the manifest's{size}): prepare the corpus again"
                )
            self._checked.add(shard)
        decoded = self._decode(data, path, record)
        tokens = decoded.tokens
        for what, count, expected in (
            ("tokens", len(tokens), record.tokens),
            ("documents", len(decoded.begins), record.documents),
        ):
            if count != expected:
                raise DataError(
                    f"shard {path} holds {count} {what}, its manifest says {expected}: prepare the corpus again"
                )
        vocabulary = self._manifest.tokenizer.vocabulary
        if len(tokens) and int(tokens.max()) >= vocabulary:
            raise DataError(
                f"shard {path} holds token id {int(tokens.max())}, the tokenizer has {vocabulary}: "
                f"prepare the corpus again"
            )
        return decoded

    def _decode(self, data: bytes, path: Path, record: ShardRecord) -> DecodedShard:
        source = [{"url": record.file, "stream": io.BytesIO(data)}]
        documents, domains = [np.empty(0, dtype=self._manifest.dtype)], []
        try:
            for sample in group_by_keys(tar_file_expander(source)):
                documents.append(decode_tokens(sample[TOKENS_FIELD], self._manifest.dtype))
                if self._documents:
                    domains.append(self.domains.index(json.loads(sample[DOCUMENT_FIELD])["domain"]))
        except (ValueError, KeyError, TypeError, EOFError, OSError, tarfile.TarError) as error:
            reason = error.args[0] if error.args else type(error).__name__  # webdataset appends streams to args
            raise DataError(f"shard {path} is not a readable token shard ({reason})") from None
        tokens: TokenArray = np.concatenate(documents)
        ends = np.cumsum([len(document) for document in documents], dtype=np.int64)
        return DecodedShard(tokens, ends[:-1], np.array(domains, dtype=np.int64))


class BlockStream(IterableDataset[TokenBatch]):
    """Training micro-batches start, start + 1, ... without end.

    Global micro-batch t holds the blocks at positions t * B .. (t + 1) * B - 1 of the plan, whatever the number
    of ranks and workers: rank r of R takes every R-th of them, worker w of W every W-th micro-batch, which
    a DataLoader hands out in turn, so that the order stays.
    """

    def __init__(
        self,
        reader: ShardReader,
        *,
        seed: int,
        shuffle_shards: int,
        batch_blocks: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
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

        Raises:
            DataError: `world` does not divide `batch_blocks`.
        """
        if batch_blocks % world:
            raise DataError(
                f"data.batch_tokens holds {batch_blocks} blocks, which {world} processes cannot share equally: "
                f"make it a multiple of {world} * data.block_tokens"
            )
        self._reader, self._batch_blocks, self._start = reader, batch_blocks, start
        self._rank, self._world = rank, world
        self._plan = BlockPlan(reader.blocks_per_shard, seed, shuffle_shards)

    def __iter__(self) -> Iterator[TokenBatch]:
        worker = get_worker_info()
        if worker is None:
            yield from self._batches(self._start, 1)
            return
        try:
            yield from self._batches(self._start + worker.id, worker.num_workers)
        except DataError as error:
            # Raised here, it would reach the user as a traceback in a string; TokenLoader raises it over there.
            yield error  # type: ignore[misc]

    def _batches(self, index: int, step: int) -> Iterator[TokenBatch]:
        while True:
            begin = index * self._batch_blocks
            positions = range(begin + self._rank, begin + self._batch_blocks, self._world)
            yield self._reader.batch([self._plan.at(position) for position in positions], index)
            index += step


class TokenLoader(DataLoader[TokenBatch]):
    """A DataLoader over whole batches that raises a worker's DataError as it is, one sentence."""

    def __init__(self, stream: IterableDataset[TokenBatch], workers: int = 0) -> None:
        """Load `stream` with `workers` processes, 0 meaning this one."""
        super().__init__(stream, batch_size=None, num_workers=workers, collate_fn=_as_is)

    def __iter__(self) -> Iterator[TokenBatch]:  # type: ignore[override]  # typed as one concrete iterator class
        for item in super().__iter__():
            if isinstance(item, DataError):
                raise item
            yield item


def _as_is(batch: Any) -> Any:
    """Return a batch unchanged (a named function, so that spawned workers can get it)."""
    return batch


class EvaluationBlocks(IterableDataset[TokenBatch]):
    """The blocks of a split in order, all of them or evenly spaced ones; the last batch may be short.

    Attributes:
        block_numbers: Blocks of this process' share.
        domains: Names of the domains that batches number.
    """

    def __init__(
        self, reader: ShardReader, *, batch_blocks: int, max_blocks: int | None, rank: int = 0, world: int = 1
    ) -> None:
        """Describe the pass.

        Args:
            reader: Blocks of the split.
            batch_blocks: Blocks per batch of one process.
            max_blocks: Evaluate on this many evenly spaced blocks; None means all.
            rank: This process among `world`; it takes every `world`-th block.
            world: Number of processes.
        """
        self._reader, self._batch_blocks = reader, batch_blocks
        self.domains = reader.domains
        self._index = BlockIndex(reader.blocks_per_shard)
        self.block_numbers = evenly_spaced(self._index.total, max_blocks)[rank::world]

    def __len__(self) -> int:
        return -(-len(self.block_numbers) // self._batch_blocks)

    def __iter__(self) -> Iterator[TokenBatch]:
        for index in range(len(self)):
            numbers = self.block_numbers[index * self._batch_blocks : (index + 1) * self._batch_blocks]
            yield self._reader.batch([self._index.address(number) for number in numbers], index)

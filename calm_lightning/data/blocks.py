"""Blocks of one split as tensors: an address in, tokens out.

A block of a whole shard is a slice of its memory map. A block of one domain is gathered from the shard's documents of
that domain, laid end to end. Cost of a batch: one copy of its tokens into int64, a few microseconds per shard.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from calm_lightning.data.batch import TokenBatch
from calm_lightning.data.shards.manifest import Manifest
from calm_lightning.data.shards.tokens import Numbers, TokenShard
from calm_lightning.data.stores.store import KEPT, ShardStore
from calm_lightning.errors import DataError, ShardError

_log = logging.getLogger(__name__)
_COUNTED = 8192
"""Shards whose numbers of blocks are remembered."""


class _Documents(NamedTuple):
    """Documents of a shard that blocks are cut from, laid end to end.

    Attributes:
        shard: The shard.
        which: Numbers of the documents in the shard, (documents,).
        begins: Index in the shard of each one's first token, (documents,).
        ends: Index behind each one's last token when they are laid end to end, (documents,).
    """

    shard: TokenShard
    which: Numbers
    begins: Numbers
    ends: Numbers


class Blocks(NamedTuple):
    """Blocks of a batch that are cut alike; arrays of one entry per block.

    Attributes:
        rows: Place in the batch.
        shards: Index of the shard in the split.
        places: Index of the block among those of the shard, or of its documents of `domain`.
        numbers: What names it in `TokenBatch.blocks`.
        domain: The one domain they are cut from; None means all of them, as the shards hold them.
    """

    rows: Numbers
    shards: Numbers
    places: Numbers
    numbers: Numbers
    domain: str | None


class _Opened(NamedTuple):
    """A shard to cut from; `number` differs from the one asked for where that is skipped, `blocks` counts its own."""

    shard: TokenShard
    number: int
    blocks: int


class BlockReader:
    """Cuts blocks of T tokens from the shards of one split.

    Attributes:
        domains: Names of the split's domains; a domain's number is its place here.
        shards: Number of shards.
        block_tokens: Tokens per block, T.
    """

    def __init__(
        self,
        store: ShardStore,
        manifest: Manifest,
        split: str,
        block_tokens: int,
        *,
        documents: bool = False,
        skip: bool = False,
    ) -> None:
        """Prepare to read; nothing is opened yet.

        Args:
            store: The corpus' shards.
            manifest: Its manifest.
            split: Name of the split.
            block_tokens: Tokens per block, T.
            documents: Whether batches are to tell the document and domain of every token.
            skip: Whether blocks of a shard that cannot be had are replaced by those of the next shards.

        Raises:
            DataError: The split does not exist or holds nothing.
        """
        self._store, self._split, self._documents, self._skip = store, split, documents, skip
        record = manifest.split(split)
        self.domains = tuple(record.domains)
        self.shards = len(record.shards)
        self.block_tokens = block_tokens
        self._first_document = np.cumsum([0, *(shard.totals.documents for shard in record.shards)])
        self._cut: OrderedDict[tuple[int, str | None], _Documents] = OrderedDict()
        self._counted: OrderedDict[int, dict[str | None, tuple[int, int]]] = OrderedDict()
        self._bad: set[int] = set()

    def blocks_of(self, shard: int, domain: str | None = None) -> int:
        """Return the number of whole blocks of a shard, or of its documents of one domain.

        Raises:
            ShardError: Its tokens had to be counted, and it cannot be had. There is no skipping that: which block comes
                when must not depend on what failed.
        """
        return self._blocks(shard).get(domain, (0, 0))[1]

    def first_block(self, shard: int, domain: str | None) -> int:
        """Return the number of a domain's first block in a shard, the blocks of its domains numbered on and on."""
        return self._blocks(shard).get(domain, (0, 0))[0]

    def _blocks(self, shard: int) -> dict[str | None, tuple[int, int]]:
        """Return, by domain and for all together (None), the number of the first block and how many there are."""
        if (known := self._counted.get(shard)) is not None:
            return known
        tokens = self._store.tokens(self._split, shard)
        found: dict[str | None, tuple[int, int]] = {None: (0, sum(tokens.values()) // self.block_tokens)}
        first = 0
        for domain in self.domains:
            if blocks := tokens.get(domain, 0) // self.block_tokens:
                found[domain] = (first, blocks)
                first += blocks
        self._counted[shard] = found
        while len(self._counted) > _COUNTED:
            self._counted.popitem(last=False)
        return found

    def described(self, domain: str | None = None) -> str:
        """Return what a block is, for the message where no shard holds one."""
        of = "" if domain is None else f" of domain {domain!r}"
        return f"a block of data.block_tokens={self.block_tokens} tokens{of} (split {self._split!r})"

    def prefetch(self, shards: Sequence[int]) -> None:
        """Begin to open shards in the background."""
        self._store.prefetch(self._split, [shard for shard in shards if shard not in self._bad])

    def batch(self, parts: Sequence[Blocks], index: int) -> TokenBatch:
        """Return blocks as one micro-batch.

        Args:
            parts: The blocks; `rows` of all parts together are 0 .. B - 1.
            index: Number of the micro-batch.

        Raises:
            ShardError: A shard cannot be had, or is not what its manifest says.
            DataError: No shard of the split can be read.
        """
        T, B = self.block_tokens, sum(len(part.rows) for part in parts)
        tokens_BT, numbers_B = np.empty((B, T), dtype=np.int64), np.empty(B, dtype=np.int64)
        labels_2BT = np.empty((2, B, T), dtype=np.int64) if self._documents else None
        replaced, used = 0, set[int]()
        for rows, shards, places, numbers, domain in parts:
            numbers_B[rows] = numbers
            opened = {shard: self._open(shard, domain) for shard in set(shards.tolist())}
            for row, shard, place in zip(rows.tolist(), shards.tolist(), places.tolist(), strict=True):
                found = opened[shard]
                if found.number != shard:
                    replaced, place = replaced + 1, place % found.blocks
                if domain is None:
                    tokens_BT[row] = found.shard.tokens[place * T : (place + 1) * T]
                if domain is not None or labels_2BT is not None:
                    labels_2T = None if labels_2BT is None else labels_2BT[:, row]
                    self._gather(found, domain, place, tokens_BT[row], labels_2T)
            used |= {found.number for found in opened.values()}
        if not self._all_unchanged(used):
            return self.batch(parts, index)
        labels = () if labels_2BT is None else (torch.from_numpy(labels_2BT[0]), torch.from_numpy(labels_2BT[1]))
        batch = TokenBatch(torch.from_numpy(tokens_BT), index, torch.from_numpy(numbers_B), *labels)
        return batch._replace(replaced=replaced) if replaced else batch

    def _all_unchanged(self, shards: set[int]) -> bool:
        """Return whether the files that were just read from are still the checked ones; skipped ones are not.

        Looked at after the copy, so that no block of a file that was being overwritten gets through.
        """
        for shard in shards:
            try:
                self._store.check(self._split, shard)
            except ShardError as error:
                if not self._skip:
                    raise
                self._leave_out(shard, error)
                return False
        return True

    def _gather(
        self, opened: _Opened, domain: str | None, place: int, tokens_T: Numbers, labels_2T: Numbers | None
    ) -> None:
        """Write the block at `place` among those of a domain, and the document and domain of every token."""
        shard, number, T = opened.shard, opened.number, self.block_tokens
        documents = self._documents_of(number, shard, domain)
        begin, end = place * T, (place + 1) * T
        first = int(np.searchsorted(documents.ends, begin, side="right"))
        last = int(np.searchsorted(documents.ends, end, side="left"))
        filled = 0
        for i in range(first, last + 1):
            lies = documents.ends[i - 1] if i else 0
            part = slice(max(begin, lies) - lies, min(end, documents.ends[i]) - lies)
            length = part.stop - part.start
            if domain is not None:
                origin = documents.begins[i]
                tokens_T[filled : filled + length] = shard.tokens[origin + part.start : origin + part.stop]
            if labels_2T is not None:
                which = int(documents.which[i])
                labels_2T[0, filled : filled + length] = self._first_document[number] + which
                labels_2T[1, filled : filled + length] = self.domains.index(shard.names[shard.domains[which]])
            filled += length

    def _documents_of(self, number: int, shard: TokenShard, domain: str | None) -> _Documents:
        known = self._cut.get((number, domain))
        if known is not None and known.shard is shard:
            self._cut.move_to_end((number, domain))
            return known
        begins = np.concatenate((np.zeros(1, dtype=np.int64), shard.ends[:-1]))
        which = np.arange(len(shard.ends))
        if domain is not None:
            which = which[shard.domains == shard.names.index(domain)]
        documents = _Documents(shard, which, begins[which], np.cumsum(shard.ends[which] - begins[which]))
        self._cut[number, domain] = documents
        while len(self._cut) > 2 * KEPT:
            self._cut.popitem(last=False)
        return documents

    def _open(self, shard: int, domain: str | None) -> _Opened:
        """Return a shard, or where it is to be skipped the next one that holds blocks of the domain."""
        if shard not in self._bad:
            try:
                return _Opened(self._store.open(self._split, shard), shard, 0)
            except ShardError as error:
                if not self._skip:
                    raise
                self._leave_out(shard, error)
        for other in ((shard + step) % self.shards for step in range(1, self.shards)):
            if other in self._bad or not (blocks := self.blocks_of(other, domain)):
                continue
            try:
                return _Opened(self._store.open(self._split, other), other, blocks)
            except ShardError as error:
                self._leave_out(other, error)
        raise DataError(f"no shard of split {self._split!r} that holds such blocks can be read: see the warnings above")

    def _leave_out(self, shard: int, error: ShardError) -> None:
        if shard not in self._bad:
            self._bad.add(shard)
            _log.warning("shard %d of split %r is skipped from here on: %s", shard, self._split, error)

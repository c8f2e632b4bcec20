"""Shards of a split as arrays in memory maps, whichever kind of corpus they come from.

`ShardStore` is what the stream reads from. `TokenStore` opens the shards of a corpus of tokens;
`text.TextStore` makes them from text on the way. Opening is where everything is checked, so it costs one pass
over the shard; `prefetch` does it ahead, in a thread. Open shards are memory maps: they take address space, not
memory, and the least recently used go first.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np

from calm_lightning.data.files.fetch import CorpusFiles
from calm_lightning.data.shards.manifest import Counts, Manifest, ShardRecord
from calm_lightning.data.shards.tokens import TokenShard, open_token_shard
from calm_lightning.errors import ShardError

KEPT = 256
"""Shards kept open; each holds one file descriptor."""


class ShardStore(Protocol):
    """Where the stream gets shards from.

    Attributes:
        vocabulary: Vocabulary size V; every id is below it.
        separator_id: Id in front of every document.
    """

    vocabulary: int
    separator_id: int

    def open(self, split: str, shard: int) -> TokenShard:
        """Return a shard, checked against its manifest.

        Raises:
            ShardError: It cannot be had, or is not what the manifest says.
        """

    def tokens(self, split: str, shard: int) -> Mapping[str, int]:
        """Return the tokens of a shard by domain, separators included; reads no shard whose counts are known.

        Raises:
            ShardError: Its tokens had to be counted, and it cannot be had.
        """

    def check(self, split: str, shard: int) -> None:
        """See that an open shard's file has not been replaced: what was read from it so far is then as it should be.

        Raises:
            ShardError: Another file is in its place, or its content has changed.
        """

    def prefetch(self, split: str, shards: Sequence[int]) -> None:
        """Begin to open shards in the background; what goes wrong is raised where they are opened."""


class OpenShards(ABC):
    """Keeps shards open and opens them ahead: the part that all stores share.

    Safe to fork: a child process starts with nothing open and a thread of its own.
    """

    def __init__(self, held_bytes: int | None = None) -> None:
        """Begin with nothing open.

        Args:
            held_bytes: Keep open at most so many bytes of shards: a file that the cache has dropped stays on the disk
                while it is open. None where shards are not in the cache.
        """
        self._held_bytes = held_bytes
        self._owner = -1
        self._begin()

    def _begin(self) -> None:
        """Make the state that belongs to one process."""
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], TokenShard] = OrderedDict()
        self._coming: dict[tuple[str, int], Future[TokenShard]] = {}
        self._asked: SimpleQueue[tuple[str, int]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def __getstate__(self) -> dict[str, Any]:
        own = ("_lock", "_kept", "_coming", "_asked", "_thread")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    @abstractmethod
    def _load(self, split: str, shard: int) -> TokenShard:
        """Open a shard and check it."""

    @abstractmethod
    def _still_valid(self, split: str, shard: int) -> None:
        """Raise a ShardError if the file of an open shard has been replaced by another."""

    def open(self, split: str, shard: int) -> TokenShard:
        """See `ShardStore.open`. Cost of a shard that is open: a look-up."""
        if self._owner != os.getpid():
            self._begin()
        key = (split, shard)
        if (kept := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return kept
        with self._lock:
            coming = self._coming.pop(key, None)
        # One that is not being opened yet is opened here: it would wait behind others that nobody needs now.
        opened = self._load(split, shard) if coming is None or coming.cancel() else coming.result()
        self._kept[key] = opened
        held = sum(shard.tokens.nbytes for shard in self._kept.values()) if self._held_bytes is not None else 0
        while len(self._kept) > 1 and (len(self._kept) > KEPT or held > (self._held_bytes or held)):
            held -= self._kept.popitem(last=False)[1].tokens.nbytes
        return opened

    def check(self, split: str, shard: int) -> None:
        """See `ShardStore.check`. Cost: one `stat`, nothing where shards lie in the cache."""
        try:
            self._still_valid(split, shard)
        except ShardError:
            self._kept.pop((split, shard), None)
            raise

    def prefetch(self, split: str, shards: Sequence[int]) -> None:
        """See `ShardStore.prefetch`."""
        if self._owner != os.getpid():
            self._begin()
        if self._thread is None:
            # A daemon: what has been asked for and is not needed any more must not keep the program from ending.
            self._thread = threading.Thread(target=self._open_ahead, name="shards", daemon=True)
            self._thread.start()
        with self._lock:
            for key in ((split, shard) for shard in shards):
                if key not in self._kept and key not in self._coming:
                    self._coming[key] = Future()
                    self._asked.put(key)
            while len(self._coming) > KEPT:  # asked for longest ago, and never needed
                self._coming.pop(next(iter(self._coming))).cancel()

    def _open_ahead(self) -> None:
        """Open what is asked for, one shard after another; whoever needs a shard first takes it off the list."""
        while True:
            split, shard = self._asked.get()
            with self._lock:
                coming = self._coming.get((split, shard))
            if coming is None or not coming.set_running_or_notify_cancel():
                continue
            try:
                coming.set_result(self._load(split, shard))
            except Exception as error:
                coming.set_exception(error)


class TokenStore(OpenShards):
    """Shards of a corpus of tokens."""

    def __init__(self, files: CorpusFiles, manifest: Manifest) -> None:
        """Prepare to open shards; nothing is read yet.

        Args:
            files: The corpus' files.
            manifest: Its manifest, of the kind "tokens".
        """
        super().__init__(files.held_bytes)
        assert manifest.tokenizer is not None
        self._files, self._manifest = files, manifest
        self.vocabulary, self.separator_id = manifest.tokenizer.vocabulary, manifest.tokenizer.separator_id

    def _record(self, split: str, shard: int) -> ShardRecord:
        return self._manifest.split(split).shards[shard]

    def tokens(self, split: str, shard: int) -> Mapping[str, int]:
        """See `ShardStore.tokens`: the manifest knows."""
        return {name: counts.tokens for name, counts in self._record(split, shard).domains.items()}

    def _still_valid(self, split: str, shard: int) -> None:
        record = self._record(split, shard)
        if not self._files.unchanged(record):
            self._files.shard(record)

    def _load(self, split: str, shard: int) -> TokenShard:
        record = self._record(split, shard)
        try:
            opened = self._files.open(record, lambda path: open_token_shard(path, self._manifest.dtype))
        except (OSError, ValueError, KeyError) as error:
            raise ShardError(
                f"shard {record.file} is not a readable token shard ({error}): prepare the corpus again"
            ) from None
        if (found := _count(opened)) != dict(record.domains):
            difference = next(
                name for name in {**found, **record.domains} if found.get(name) != record.domains.get(name)
            )
            raise ShardError(
                f"shard {record.file} holds {found.get(difference)} of domain {difference!r}, its manifest says "
                f"{record.domains.get(difference)}: prepare the corpus again"
            )
        largest = int(opened.tokens.max()) if len(opened.tokens) else -1
        if largest >= self.vocabulary:
            raise ShardError(
                f"shard {record.file} holds token id {largest}, the tokenizer has {self.vocabulary}: "
                f"prepare the corpus again"
            )
        return opened


def _count(shard: TokenShard) -> dict[str, Counts]:
    """Return what a shard holds, by domain."""
    lengths = np.diff(shard.ends, prepend=0)
    columns = (np.ones_like(lengths), lengths, shard.text_bytes)
    sums = (np.bincount(shard.domains, weights=column, minlength=len(shard.names)) for column in columns)
    rows = zip(shard.names, *(column.astype(np.int64).tolist() for column in sums), strict=True)
    return {name: Counts(documents, tokens, text_bytes) for name, documents, tokens, text_bytes in rows if documents}

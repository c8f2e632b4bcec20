"""A pass over the sources: cut into pieces, have the missing ones made, take them in order.

One process reads and decompresses, several make pieces, and the same process takes finished pieces strictly in order,
so the result does not depend on how many there are. Memory holds the pieces under way and nothing else. The price:
reading is sequential, which feeds about a hundred cores of tokenisation.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from calm_lightning.data.shards.manifest import Counts
from data_pipelines.reading.sources import Source, raw_records
from data_pipelines.writing.pieces import Record, Task, cut
from data_pipelines.writing.pool import Pool
from data_pipelines.writing.work import Key, SourceChangedError, SourceEnd, WorkDirectory

HASHED_ANYWAY = 64 << 20
"""A source of at most this many stored bytes is hashed to its end even where only its beginning is needed."""
_END = -1


def is_large(source: Source) -> bool:
    """Return whether a source is not read on, not even for its checksum, once its documents are not needed."""
    return not 0 < source.bytes <= HASHED_ANYWAY


@dataclass(frozen=True)
class Progress:
    """How far a preparation is.

    Attributes:
        phase: "checking" (whether a corpus is made from these sources), "duplicates" (taking fingerprints), "judging"
            (comparing them), "tokenizer" (training it) or "shards".
        bytes_read: Stored (compressed) bytes passed in this phase; pieces in "judging".
        bytes_total: Stored bytes of all sources.
        bytes_resumed: Those of `bytes_read` whose work an earlier run had done.
        counts: Documents, tokens and text bytes written so far, those of earlier runs included.
    """

    phase: str
    bytes_read: int
    bytes_total: int
    bytes_resumed: int = 0
    counts: Counts = field(default_factory=Counts)


Report = Callable[[Progress], None]


class Step(Protocol):
    """What a pass does with pieces."""

    @property
    def phase(self) -> str:
        """What `Progress` calls it."""

    @property
    def counts(self) -> Counts:
        """What is written so far."""

    def is_done(self, key: Key) -> bool:
        """Return whether a piece was made by an earlier run."""

    def needs(self, source: Source) -> bool:
        """Return whether more documents of a source are needed."""

    def task(self, key: Key, source: Source, records: list[Record]) -> Task:
        """Return what to do to make a piece."""

    def take(self, key: Key, source: Source) -> None:
        """Take a piece that is made; called in order."""

    def end_source(self, index: int, source: Source) -> None:
        """Learn that all pieces of a source have been taken; called in order."""


class _Waiting(NamedTuple):
    """A piece on its way, and how many bytes were read, and passed as already done, when it was cut."""

    key: Key
    read: int
    resumed: int


class Passage:
    """Goes through the sources."""

    def __init__(
        self, sources: Sequence[Source], work: WorkDirectory, pool: Pool, piece_bytes: int, report: Report | None
    ) -> None:
        """Take what there is to go through.

        Args:
            sources: The sources, in order.
            work: The work directory.
            pool: Makes pieces.
            piece_bytes: See `pieces.cut`.
            report: Told how far the pass is.
        """
        self._sources, self._work, self._pool = sources, work, pool
        self._piece_bytes, self._report = piece_bytes, report
        self._total = sum(source.bytes for source in sources)
        self._read = self._resumed = 0
        self._passed = _Waiting(Key(0, 0), 0, 0)
        self._redone = False

    def go(self, step: Step) -> None:
        """Make and take every piece.

        Raises:
            DataError: A source is damaged, changed meanwhile, or a worker process died.
            OSError: A piece could not be written.
        """
        self._read = self._resumed = 0
        self._passed = _Waiting(Key(0, 0), 0, 0)
        self._tell(step)
        waiting: deque[_Waiting] = deque()
        for index, source in enumerate(self._sources):
            for key, task in self._pieces(index, source, step):
                if task is not None:
                    self._pool.submit(task)
                waiting.append(_Waiting(key, self._read, self._resumed))
                self._take(waiting, step)
            waiting.append(_Waiting(Key(index, _END), self._read, self._resumed))
            self._take(waiting, step)
        while waiting:
            self._pool.wait()
            self._take(waiting, step)

    def records(self, index: int, on_bytes: Callable[[int], None]) -> Iterator[tuple[Key, list[Record]]]:
        """Yield the pieces of one source without making them; `on_bytes` as for `raw_records`."""
        for number, records in enumerate(cut(raw_records(self._sources[index], on_bytes), self._piece_bytes)):
            yield Key(index, number), records

    def _pieces(self, index: int, source: Source, step: Step) -> Iterator[tuple[Key, Task | None]]:
        """Yield the pieces of one source, with what to do for those that are not made yet."""
        known = self._work.source_end(index)
        if known is not None and all(step.is_done(Key(index, piece)) for piece in range(known.pieces)):
            self._read += source.bytes
            self._resumed += source.bytes
            yield from ((Key(index, piece), None) for piece in range(known.pieces))
            return
        if not step.needs(source) and is_large(source):
            return
        digest, before = hashlib.sha256(), self._work.digests(index)
        self._redone = False
        pieces = 0
        for records in cut(raw_records(source, self._on_bytes, digest), self._piece_bytes):
            key = Key(index, pieces)
            if not before.agrees(pieces, records):
                raise SourceChangedError(source.name)
            pieces += 1
            if step.needs(source):
                self._redone = step.is_done(key)
                yield key, None if self._redone else step.task(key, source, records)
            elif is_large(source):
                return
        end = SourceEnd(pieces, digest.hexdigest())
        if known is not None and known != end:
            raise SourceChangedError(source.name)
        self._work.record_source(index, end)

    def _take(self, waiting: deque[_Waiting], step: Step) -> None:
        """Take the pieces that are made, as far as none before them is missing."""
        while waiting:
            key = waiting[0].key
            if key.piece == _END:
                step.end_source(key.source, self._sources[key.source])
            elif self._pool.is_made(key):
                step.take(key, self._sources[key.source])
            else:
                break
            self._passed = waiting.popleft()
        self._tell(step)

    def _tell(self, step: Step) -> None:
        if self._report:
            self._report(Progress(step.phase, self._passed.read, self._total, self._passed.resumed, step.counts))

    def _on_bytes(self, number: int) -> None:
        self._read += number
        self._resumed += number if self._redone else 0

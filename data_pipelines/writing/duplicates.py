"""Which documents of the sources are duplicates: a pass of its own, before anything is tokenised.

Held-out splits are judged first and the first copy of a text stays, so that a near copy of held-out text leaves the
training split and not the other way round. The price is reading the sources twice, since the first document of the
training split can only be judged when the last of the test split is known.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from calm_lightning.data.shards.manifest import SPLITS, Counts
from data_pipelines.cleaning.clean import Cleaning
from data_pipelines.cleaning.dedup import DuplicateIndex
from data_pipelines.reading.sources import Source
from data_pipelines.writing.passage import Progress, Report
from data_pipelines.writing.pieces import VERDICTS, Record, Task, Verdicts
from data_pipelines.writing.work import Key, WorkDirectory, write_file


@dataclass
class LookStep:
    """Takes the fingerprints of every piece's documents; see `passage.Step`.

    Attributes:
        work: The work directory.
    """

    work: WorkDirectory
    phase: str = "duplicates"
    counts: Counts = field(default_factory=Counts)

    def is_done(self, key: Key) -> bool:
        """See `passage.Step`."""
        return self.work.look(key).exists()

    def needs(self, source: Source) -> bool:
        """See `passage.Step`."""
        return True

    def task(self, key: Key, source: Source, records: list[Record]) -> Task:
        """See `passage.Step`."""
        return Task(key, source, records, look=True)

    def take(self, key: Key, source: Source) -> None:
        """See `passage.Step`."""

    def end_source(self, index: int, source: Source) -> None:
        """See `passage.Step`."""


def judge(work: WorkDirectory, sources: Sequence[Source], cleaning: Cleaning, report: Report | None) -> None:
    """Judge all documents from their fingerprints and write the verdicts.

    Args:
        work: The work directory, with a look file for every piece.
        sources: The sources, in order.
        cleaning: Says which duplicates are meant.
        report: Told how far it is.
    """
    keys = [Key(i, piece) for i in range(len(sources)) for piece in range(_pieces(work, i))]
    index = DuplicateIndex(cleaning)
    near = cleaning.duplicates == "near"
    verdicts: dict[Key, Verdicts] = {}
    done, total = 0, sum(1 if sources[key.source].split else len(SPLITS) for key in keys)
    for split in reversed(SPLITS):
        for key in keys:
            if sources[key.source].split in ("", split):
                done += 1
                with np.load(work.look(key), allow_pickle=False) as look:
                    own = np.flatnonzero(look["splits"] == split)
                    prints = [row.tobytes() for row in look["prints"][own]]
                    found = index.judge(prints, look["signatures"][own] if near else None)
                    verdict = verdicts.setdefault(key, np.zeros(len(look["splits"]), dtype=np.uint8))
                    verdict[own] = [VERDICTS.index(rule or "") for rule in found]
                if report:
                    report(Progress("judging", done, total))
    directory = work.path / "verdicts.partial"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for i in range(len(sources)):
        by_piece = [verdicts[Key(i, piece)] for piece in range(_pieces(work, i))]
        starts = np.cumsum([0, *map(len, by_piece)])
        flat = np.concatenate([np.empty(0, np.uint8), *by_piece])
        write_file(directory / f"{i:06d}.npz", partial(np.savez, starts=starts, flat=flat))
    directory.rename(work.verdicts)
    shutil.rmtree(work.path / "looks")


def _pieces(work: WorkDirectory, source: int) -> int:
    end = work.source_end(source)
    assert end is not None, "the pass before reads every source to its end"
    return end.pieces


class VerdictReader:
    """Gives the verdicts of pieces, one source's at a time in memory."""

    def __init__(self, work: WorkDirectory) -> None:
        """Take the work directory; without verdicts in it every document is kept."""
        self._work = work
        self._source = -1
        self._starts = np.zeros(1, dtype=np.int64)
        self._flat: Verdicts = np.zeros(0, dtype=np.uint8)

    def of(self, key: Key) -> Verdicts | None:
        """Return the verdicts on the documents of a piece, see `pieces.VERDICTS`; None where all are kept."""
        if not self._work.verdicts.exists():
            return None
        if key.source != self._source:
            with np.load(self._work.verdicts / f"{key.source:06d}.npz", allow_pickle=False) as stored:
                self._starts, self._flat = stored["starts"], stored["flat"]
            self._source = key.source
        if key.piece + 1 >= len(self._starts):
            return np.zeros(0, dtype=np.uint8)
        return self._flat[self._starts[key.piece] : self._starts[key.piece + 1]]

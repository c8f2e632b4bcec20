"""How often whole documents are repeated, within splits and across them, in bounded memory.

A document is 24 bytes: a 16-byte hash of its content and where it is. Half a million of them are kept; beyond that
they go to 256 temporary files by the hash's first byte, and one file at a time is sorted. So 200 million documents
take 5 GB of temporary disk and about 0.1 GB of memory. A database would answer at any time, but insert at random.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

_HELD = 1 << 19
_SHOWN = 10
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("at", "<u8")])
_NUMBER_BITS = 48


@dataclass(frozen=True)
class Group:
    """A text that is there more than once.

    Attributes:
        copies: How often.
        split: Split of its first copy.
        document: Number of that copy in the split, from 1.
    """

    copies: int
    split: str
    document: int


@dataclass(frozen=True)
class Repeats:
    """Whole documents that are repeated.

    Attributes:
        documents: Documents of every split.
        distinct: Different texts in every split.
        also_in: Documents of the first split whose text is in the second one too, by pairs of different splits.
        groups: Number of texts that are there so many times, by the times, those above 1.
        largest: The texts with the most copies, most first.
    """

    documents: Mapping[str, int]
    distinct: Mapping[str, int]
    also_in: Mapping[tuple[str, str], int]
    groups: Mapping[int, int]
    largest: Sequence[Group]


def content_hash(content: bytes | memoryview) -> bytes:
    """Return the 16 bytes that stand for a document's content."""
    return hashlib.blake2b(content, digest_size=16).digest()


class RepeatCounter:
    """Finds repeated documents; a context manager, since it may hold temporary files."""

    def __init__(self, splits: Sequence[str], held: int = _HELD) -> None:
        """Start with no document.

        Args:
            splits: Names of the splits.
            held: Documents kept in memory before files are used.
        """
        self._splits, self._limit = tuple(splits), held
        self._documents = dict.fromkeys(splits, 0)
        self._held: list[NDArray[np.void]] = []
        self._waiting = 0
        self._files: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> RepeatCounter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._files:
            self._files.cleanup()

    def add(self, split: str, hashes: Sequence[bytes]) -> None:
        """Count the next documents of a split.

        Args:
            split: Name of the split.
            hashes: `content_hash` of each, in order.
        """
        records = np.zeros(len(hashes), dtype=_RECORD)
        halves = np.frombuffer(b"".join(hashes), dtype="<u8").reshape(-1, 2)
        records["high"], records["low"] = halves[:, 0], halves[:, 1]
        first = (self._splits.index(split) << _NUMBER_BITS) + self._documents[split] + 1
        records["at"] = np.arange(first, first + len(hashes), dtype=np.uint64)
        self._documents[split] += len(hashes)
        self._held.append(records)
        self._waiting += len(hashes)
        if self._waiting >= self._limit:
            self._spill()

    def finish(self) -> Repeats:
        """Return what was found."""
        distinct, groups = dict.fromkeys(self._splits, 0), Counter[int]()
        also_in = {(one, other): 0 for one in self._splits for other in self._splits if one != other}
        largest: list[tuple[int, int]] = []
        for records in self._parts():
            starts, copies = _groups(records)
            table = np.zeros((len(starts), len(self._splits)), dtype=np.int64)
            places = (records["at"] >> np.uint64(_NUMBER_BITS)).astype(np.int64)
            np.add.at(table, (np.repeat(np.arange(len(starts)), copies), places), 1)
            for i, one in enumerate(self._splits):
                distinct[one] += int((table[:, i] > 0).sum())
                for j, other in enumerate(self._splits):
                    if i != j:
                        also_in[one, other] += int(table[table[:, j] > 0, i].sum())
            more = np.flatnonzero(copies > 1)
            groups.update(copies[more].tolist())
            top = more[np.lexsort((records["at"][starts[more]], -copies[more]))[:_SHOWN]]
            largest += [(int(copies[i]), int(records["at"][starts[i]])) for i in top.tolist()]
        largest = sorted(largest, key=lambda one: (-one[0], one[1]))[:_SHOWN]
        shown = [Group(n, self._splits[at >> _NUMBER_BITS], at & ((1 << _NUMBER_BITS) - 1)) for n, at in largest]
        return Repeats(dict(self._documents), distinct, also_in, dict(sorted(groups.items())), shown)

    def _spill(self) -> None:
        """Move what is held into files by the first byte of the hash."""
        self._files = self._files or tempfile.TemporaryDirectory(prefix="calm-repeats-")
        records = np.concatenate(self._held)
        parts = (records["high"] >> np.uint64(56)).astype(np.uint8)
        order = np.argsort(parts, kind="stable")
        ends = np.searchsorted(parts[order], np.arange(257))
        for part in np.unique(parts).tolist():
            with (Path(self._files.name) / f"{part:02x}").open("ab") as file:
                file.write(records[order[ends[part] : ends[part + 1]]].tobytes())
        self._held, self._waiting = [], 0

    def _parts(self) -> Iterator[NDArray[np.void]]:
        """Yield all records, equal hashes together."""
        if not self._files:
            yield np.concatenate(self._held) if self._held else np.zeros(0, dtype=_RECORD)
            return
        if self._held:
            self._spill()
        for path in sorted(Path(self._files.name).iterdir()):
            yield np.fromfile(path, dtype=_RECORD)


def _groups(records: NDArray[np.void]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sort records in place by hash and place; return where each hash begins and how many records have it."""
    records[:] = records[np.lexsort((records["at"], records["low"], records["high"]))]
    new = np.ones(len(records), dtype=bool)
    new[1:] = (records["high"][1:] != records["high"][:-1]) | (records["low"][1:] != records["low"][:-1])
    starts = np.flatnonzero(new).astype(np.int64)
    return starts, np.diff(starts, append=len(records)).astype(np.int64)

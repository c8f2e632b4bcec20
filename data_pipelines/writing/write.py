"""Pieces into tar shards whose bytes depend on nothing but the documents and their order.

A shard ends with the document that brings it to its size, so documents stay whole and shards are only roughly equal.
Pieces are taken strictly in order; after one that closed a shard, a state file records what is closed, and the pieces'
files that closed shards hold are deleted, so the disk holds the text once. A run that was killed takes the open
shards' documents from their pieces again.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from calm_lightning.data.shards.manifest import SPLITS, TOKENS, Counts, ShardRecord, SplitRecord
from calm_lightning.data.shards.tokens import Numbers, file_sha256, write_token_shard
from data_pipelines.writing.pieces import Columns
from data_pipelines.writing.work import Key, WorkDirectory, write_file, write_json

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardSize:
    """When a shard is full.

    Attributes:
        kind: `TOKENS` or `TEXT`: what shards hold.
        limit: A shard is closed by the document that reaches this many tokens, or UTF-8 bytes of text.
    """

    kind: str
    limit: int


class _Part(NamedTuple):
    """Documents [begin, end) of a piece."""

    key: Key
    columns: Columns
    begin: int
    end: int


class _Gathered(NamedTuple):
    """The documents of one shard; domains are numbered by their place in `names`."""

    columns: Columns
    domains: Mapping[str, Counts]


@dataclass
class _Split:
    """The shards of one split: closed ones, and the documents of the open one."""

    name: str
    size: ShardSize
    directory: Path
    shards: list[ShardRecord] = field(default_factory=list)
    open: deque[_Part] = field(default_factory=deque)
    filled: int = 0

    def add(self, key: Key, columns: Columns, begin: int, end: int) -> None:
        """Append documents [begin, end) of a piece, closing shards as they fill."""
        reached = columns.ends if self.size.kind == TOKENS else np.cumsum(columns.text_bytes)
        while begin < end:
            before = int(reached[begin - 1]) if begin else 0
            last = int(np.searchsorted(reached, self.size.limit - self.filled + before))
            stop = min(last + 1, end)
            self.open.append(_Part(key, columns, begin, stop))
            self.filled += int(reached[stop - 1]) - before
            if self.filled >= self.size.limit:
                self.close()
            begin = stop

    def close(self) -> None:
        """Write the open documents as a shard, if there are any."""
        if not self.open:
            return
        shard = _gather(self.open, self.size.kind)
        path = self.directory / f"{self.name}-{len(self.shards):06d}.tar"
        write = _write_tokens if self.size.kind == TOKENS else _write_texts
        write_file(path, lambda file: write(file, path.stem, shard.columns))
        self.shards.append(ShardRecord(path.name, path.stat().st_size, file_sha256(path), shard.domains))
        self.open.clear()
        self.filled = 0


def _gather(parts: deque[_Part], kind: str) -> _Gathered:
    """Return documents of several pieces as those of one shard."""
    names = sorted({part.columns.names[n] for part in parts for n in np.unique(_rows(part, part.columns.domains))})
    numbers = {name: number for number, name in enumerate(names)}
    payloads, domains = [], []
    for part in parts:
        first = int(part.columns.ends[part.begin - 1]) if part.begin else 0
        payloads.append(part.columns.payload[first : int(part.columns.ends[part.end - 1])])
        translation = np.array([numbers.get(name, -1) for name in part.columns.names], dtype=np.int64)
        domains.append(translation[_rows(part, part.columns.domains)])
    columns = Columns(
        np.concatenate(payloads),
        np.concatenate([_rows(part, part.columns.lengths) for part in parts]),
        np.concatenate(domains),
        np.concatenate([_rows(part, part.columns.text_bytes) for part in parts]),
        tuple(names),
    )
    counts: dict[str, Counts] = {}
    for number, name in enumerate(names):
        own = columns.domains == number
        tokens = int(columns.lengths[own].sum()) if kind == TOKENS else 0
        counts[name] = Counts(int(own.sum()), tokens, int(columns.text_bytes[own].sum()))
    return _Gathered(columns, counts)


def _rows(part: _Part, column: Numbers) -> Numbers:
    return column[part.begin : part.end]


def _write_tokens(file: BinaryIO, name: str, columns: Columns) -> None:
    write_token_shard(
        file,
        name,
        tokens=columns.payload,
        lengths=columns.lengths,
        domains=columns.domains,
        text_bytes=columns.text_bytes,
        names=columns.names,
    )


def _write_texts(file: BinaryIO, name: str, columns: Columns) -> None:
    # Imported here: it loads torch, which neither tokens nor worker processes need.
    from webdataset.writer import TarWriter

    content = columns.payload.tobytes()
    begin = 0
    with TarWriter(file, user="", group="", mode=0o644, mtime=0, encoder=False) as archive:
        for number, end in enumerate(columns.ends.tolist()):
            archive.write({"__key__": f"{number:08d}", "json": content[begin:end]})
            begin = end


class Assembler:
    """Takes finished pieces in order and makes shards of them."""

    def __init__(self, work: WorkDirectory, size: ShardSize, max_documents: int | None) -> None:
        """Begin, or continue where the state file of the work directory says.

        Args:
            work: The work directory.
            size: When a shard is full.
            max_documents: Keep at most this many documents of every split.
        """
        self._work, self._size, self._limit = work, size, max_documents
        self._splits: dict[str, _Split] = {}
        self._used: list[tuple[Key, str]] = []
        self.next = Key(0, 0)
        self.kept: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.cut_short: set[int] = set()
        self.counts = Counts()
        if work.state.exists():
            self._continue(json.loads(work.state.read_text()))

    def is_full(self, split: str) -> bool:
        """Return whether a split has all the documents it may have."""
        return self._limit is not None and self.kept[split] >= self._limit

    def take(self, key: Key) -> None:
        """Take the next piece."""
        if key < self.next:
            return
        report = json.loads(self._work.marker(key).read_text())
        for sentence in report["unreadable"]:
            _log.warning("skipped: %s", sentence)
        self.dropped.update(report["dropped"])
        closed = sum(len(split.shards) for split in self._splits.values())
        for name in report["splits"]:
            columns = Columns.load(self._work.piece(key, name))
            room = len(columns.lengths) if self._limit is None else max(self._limit - self.kept[name], 0)
            self._add(name, key, columns, 0, min(room, len(columns.lengths)))
            self._used.append((key, name))
        self.next = Key(key.source, key.piece + 1)
        if sum(len(split.shards) for split in self._splits.values()) > closed:
            self._save()

    def end_source(self, source: int, cut_short: bool) -> None:
        """Go on to the next source.

        Args:
            source: Number of the one that ends.
            cut_short: It was not needed to its end.
        """
        if source >= self.next.source:
            self.next = Key(source + 1, 0)
            if cut_short:
                self.cut_short.add(source)

    def finish(self) -> dict[str, SplitRecord]:
        """Close the last shards and return the records of the splits, in their usual order."""
        for split in self._splits.values():
            split.close()
        names = sorted(self._splits, key=SPLITS.index)
        return {name: SplitRecord(tuple(self._splits[name].shards)) for name in names if self._splits[name].shards}

    def _add(self, name: str, key: Key, columns: Columns, begin: int, end: int) -> None:
        if begin >= end:
            return
        self._split(name).add(key, columns, begin, end)
        self.kept[name] += end - begin
        first = int(columns.ends[begin - 1]) if begin else 0
        tokens = int(columns.ends[end - 1]) - first if self._size.kind == TOKENS else 0
        self.counts += Counts(end - begin, tokens, int(columns.text_bytes[begin:end].sum()))

    def _split(self, name: str) -> _Split:
        if name not in self._splits:
            self._splits[name] = _Split(name, self._size, self._work.corpus)
        return self._splits[name]

    def _save(self) -> None:
        """Record what is closed, then delete what is not needed any more."""
        splits: dict[str, Any] = {}
        for name, split in self._splits.items():
            part = split.open[0] if split.open else None
            splits[name] = {
                "shards": [asdict(shard) for shard in split.shards],
                "open": [*part.key, part.begin] if part else None,
                "kept": self.kept[name],
            }
        state = {"next": self.next, "splits": splits, "dropped": self.dropped, "cut_short": sorted(self.cut_short)}
        write_json(self._work.state, state)
        held = {(part.key, name) for name, split in self._splits.items() for part in split.open}
        for key, name in self._used:
            if (key, name) not in held:
                self._work.piece(key, name).unlink(missing_ok=True)
            self._work.marker(key).unlink(missing_ok=True)
        self._used = sorted(held)

    def _continue(self, state: dict[str, Any]) -> None:
        """Take up the work of a killed run: its closed shards, and the documents of its open ones."""
        self.next = Key(*state["next"])
        self.dropped.update(state["dropped"])
        self.cut_short.update(state["cut_short"])
        found: dict[str, list[Key]] = {}
        for path in sorted(self._work.marker(self.next).parent.glob("*.npz")):
            found.setdefault(path.name.split(".")[1], []).append(Key.parse(path.name))
        for name, own in state["splits"].items():
            split = self._split(name)
            for shard in own["shards"]:
                domains = {domain: Counts(**counts) for domain, counts in shard["domains"].items()}
                split.shards.append(ShardRecord(shard["file"], shard["bytes"], shard["sha256"], domains))
                self.counts += split.shards[-1].totals
            self.kept[name] = sum(shard.totals.documents for shard in split.shards)
            first, begin = (Key(*own["open"][:2]), own["open"][2]) if own["open"] else (self.next, 0)
            for key in found.get(name, ()):
                if first <= key < self.next:
                    columns = Columns.load(self._work.piece(key, name))
                    row = begin if key == first else 0
                    self._add(
                        name, key, columns, row, row + min(own["kept"] - self.kept[name], len(columns.lengths) - row)
                    )
                    self._used.append((key, name))
                elif key < first:
                    self._work.piece(key, name).unlink()
        for path in self._work.marker(self.next).parent.glob("*.json"):
            if Key.parse(path.name) < self.next:
                path.unlink()

"""The work directory of a preparation: what is done so far, as files, so that a killed run continues.

It lies beside the target as `.NAME.partial` and is locked by the one process that prepares it; the lock is the
operating system's, so it goes with a killed process. Every file in it appears whole, under its name, after its bytes
are on the disk: what is there can be trusted, what is not is made again. The price is an fsync per piece.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from calm_lightning.errors import DataError

_log = logging.getLogger(__name__)
_SETTINGS, _SKIP_BAD = "settings", "skip_bad"


class Key(NamedTuple):
    """A piece: the number of its source, and its own number in it, both from 0. Keys sort in the corpus' order."""

    source: int
    piece: int

    def __str__(self) -> str:
        return f"{self.source:06d}-{self.piece:08d}"

    @classmethod
    def parse(cls, name: str) -> Key:
        """Return the key at the beginning of a file name."""
        source, piece = name.partition(".")[0].split("-")
        return cls(int(source), int(piece))


@dataclass(frozen=True)
class SourceEnd:
    """What is known of a source once it has been read to its end.

    Attributes:
        pieces: How many pieces it was cut into.
        sha256: Checksum of its stored bytes.
    """

    pieces: int
    sha256: str


def write_file(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Make a file whole or not at all, and have it on the disk before it gets its name.

    Args:
        path: The file.
        write: Writes its content.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    data = json.dumps(value, ensure_ascii=False, sort_keys=True).encode()
    write_file(path, lambda file: _write_all(file, data))


def _write_all(file: BinaryIO, data: bytes) -> None:
    file.write(data)


class UnfinishedWorkError(DataError):
    """A work directory holds work on something else, which is not to be lost by mistake."""


class SourceChangedError(DataError):
    """A source is not what it was when its first pieces were read."""

    def __init__(self, source: str) -> None:
        """Name the source."""
        super().__init__(source)

    def __str__(self) -> str:
        return f"source {self.args[0]} changed while it was prepared: run the same command again, it begins anew"


class PieceDigests:
    """Checksums of the raw pieces of one source, a line each, so that two versions of it are never mixed.

    Size and time tell that a local file changed, but not always a remote one.
    """

    def __init__(self, path: Path) -> None:
        """Read what earlier passes left."""
        self._path = path
        lines = path.read_text().split("\n") if path.exists() else [""]
        self._known = lines[:-1]
        if lines[-1]:  # a line that a killed run did not finish
            path.write_text("".join(f"{line}\n" for line in self._known))

    def agrees(self, piece: int, records: Iterable[tuple[int, bytes]]) -> bool:
        """Return whether a piece is what it was, and remember it if it is read for the first time.

        Args:
            piece: Its number in the source; pieces come in order.
            records: Its records.
        """
        digest = hashlib.sha256()
        for _, record in records:
            digest.update(len(record).to_bytes(8, "little") + record)
        found = digest.hexdigest()[:32]
        if piece < len(self._known):
            return self._known[piece] == found
        self._known.append(found)
        with self._path.open("a") as file:
            file.write(f"{found}\n")
        return True


@dataclass(frozen=True)
class WorkDirectory:
    """Names of what lies in a work directory.

    Attributes:
        path: The directory.
    """

    path: Path

    @property
    def corpus(self) -> Path:
        """The corpus as far as it is written; it is moved to the target in the end."""
        return self.path / "corpus"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer that pieces are encoded with."""
        return self.path / "tokenizer"

    @property
    def state(self) -> Path:
        """How far pieces have become shards."""
        return self.path / "state.json"

    @property
    def verdicts(self) -> Path:
        """Which documents are duplicates; there once all are judged."""
        return self.path / "verdicts"

    def piece(self, key: Key, split: str) -> Path:
        """Return where the documents of a piece that belong to `split` are."""
        return self.path / "pieces" / f"{key}.{split}.npz"

    def marker(self, key: Key) -> Path:
        """Return the file that says that a piece is made, and what was left out of it."""
        return self.path / "pieces" / f"{key}.json"

    def look(self, key: Key) -> Path:
        """Return where the fingerprints of a piece are."""
        return self.path / "looks" / f"{key}.npz"

    def source_end(self, source: int) -> SourceEnd | None:
        """Return what is known of a source that was read to its end."""
        path = self.path / "sources" / f"{source:06d}.json"
        return SourceEnd(**json.loads(path.read_text())) if path.exists() else None

    def record_source(self, source: int, end: SourceEnd) -> None:
        """Remember that a source was read to its end."""
        write_json(self.path / "sources" / f"{source:06d}.json", asdict(end))

    def digests(self, source: int) -> PieceDigests:
        """Return the checksums of the pieces of a source that any pass of any run has read."""
        return PieceDigests(self.path / "sources" / f"{source:06d}.digests")

    def begin(self, plan: Mapping[str, Any], anew: bool = False) -> None:
        """Continue the work that lies here if it is that of `plan`, or begin where there is none.

        Args:
            plan: Everything that decides what the work makes, JSON-ready; `plan["settings"]["skip_bad"]` may be
                switched on between two runs, since nothing was skipped until then.
            anew: Clear work on another plan instead of refusing.

        Raises:
            DataError: There is unfinished work on another plan.
        """
        path = self.path / "plan.json"
        found = json.loads(path.read_text()) if path.exists() else None
        given = json.loads(json.dumps(plan))
        if found != given and not _continues(found, given):
            if found is not None and self.has_work() and not anew:
                raise UnfinishedWorkError(
                    f"{self.path} holds unfinished work on other {_difference(found, given)}: finish it with its own "
                    f"command, choose another --out, or add --force to begin anew"
                )
            self.clear()
        for name in ("corpus", "pieces", "looks", "sources"):
            (self.path / name).mkdir(exist_ok=True)
            for leftover in (self.path / name).glob(".*.partial"):
                leftover.unlink()
        if found != given:
            write_json(path, given)

    def clear(self) -> None:
        """Delete everything in it; the plan goes last, since without it the rest counts for nothing."""
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry.name == "plan.json"):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def has_work(self) -> bool:
        """Return whether there is anything that a later run would not have to do again."""
        return any(any(self.path.glob(pattern)) for pattern in ("pieces/*", "looks/*", "corpus/*", "sources/*.json"))


def _difference(found: dict[str, Any], given: dict[str, Any]) -> str:
    """Return in words what two plans differ in."""
    parts = [name for name in given if found.get(name) != given[name]]
    if _SETTINGS in parts and isinstance(found.get(_SETTINGS), dict):
        own = [name for name, value in given[_SETTINGS].items() if found[_SETTINGS].get(name) != value]
        parts[parts.index(_SETTINGS)] = f"settings ({', '.join(own)})"
    return " and ".join(parts)


def _continues(found: dict[str, Any] | None, given: dict[str, Any]) -> bool:
    """Return whether two plans differ by nothing but bad records being skipped from now on."""
    if found is None or not given[_SETTINGS][_SKIP_BAD]:
        return False
    return {**found, _SETTINGS: {**found[_SETTINGS], _SKIP_BAD: True}} == given


def work_path(target: Path) -> Path:
    """Return where the work directory of a target is."""
    return target.with_name(f".{target.name}.partial")


@contextmanager
def work_directory(target: Path) -> Iterator[WorkDirectory]:
    """Yield the work directory of a target, this process' own meanwhile.

    Raises:
        DataError: Another process is at work there.
    """
    path = work_path(target)
    handle = _locked(path, target)
    try:
        yield WorkDirectory(path)
    finally:
        os.close(handle)


def _locked(path: Path, target: Path) -> int:
    while True:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise DataError(f"another process is preparing {target}: wait for it, then run again") from None
        if path.exists() and path.stat().st_ino == os.fstat(handle).st_ino:
            return handle
        os.close(handle)  # its owner finished and deleted it just before the lock was ours

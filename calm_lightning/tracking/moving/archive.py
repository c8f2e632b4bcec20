"""Runs in one file: a zip of JSON and the files themselves, safe to open whoever made it.

    calm-runs.json                     what the archive holds: format, runs, size and SHA-256 of everything else
    runs/{run id}/run.json             the run without its metrics
    runs/{run id}/metrics.jsonl        one line per metric: its whole history
    files/{run id or model id}/{path}  files of runs and of logged models

Nothing in it is executed or unpickled. Names are checked before anything is written, every entry must be in the index
with its size and hash, and an entry is never read past its size. The same runs make the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from calm_lightning.errors import TrackingError
from calm_lightning.tracking.moving.records import (
    Digest,
    FileRecord,
    Folder,
    History,
    RelativePath,
    RunId,
    RunRecord,
)
from calm_lightning.tracking.reading.store_source import in_words

FORMAT: Literal["calm-runs"] = "calm-runs"
VERSION: Literal[1] = 1
INDEX = "calm-runs.json"
_CHUNK = 1 << 20
_INDEX_LIMIT, _RECORD_LIMIT, _LINE_LIMIT = 1 << 28, 1 << 27, 1 << 30
_DAMAGE = (zlib.error, EOFError, RuntimeError, ValueError, KeyError, struct.error)
"""What Python's zipfile raises on damaged files beside its own error."""


class _Header(BaseModel):
    """The first things read: enough to say what kind of archive it is."""

    model_config = ConfigDict(strict=True)
    format: str
    version: int


class ArchiveIndex(BaseModel):
    """What the archive holds."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    format: Literal["calm-runs"]
    version: Literal[1]
    runs: list[RunId]
    entries: dict[RelativePath, tuple[Annotated[int, Field(ge=0)], Digest]]


class ArchiveSource:
    """The runs of an archive; use it as a context, which closes the file.

    Args:
        path: The archive.

    Raises:
        TrackingError: It is not there, not such an archive, newer than this program, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise TrackingError(f"there is no file {path}") from None
        except (zipfile.BadZipFile, OSError, *_DAMAGE) as error:
            raise TrackingError(f"{path} is not an archive of runs ({error}): calm runs export makes one") from None
        try:
            self._index = self._read_index()
        except BaseException:
            self._archive.close()
            raise
        self.run_ids = tuple(self._index.runs)

    def __enter__(self) -> ArchiveSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def check(self, progress: Callable[[int, int, str], None]) -> None:
        """Read everything once and compare it with the index, before anything of it is used.

        Args:
            progress: Told before each entry: bytes done, all bytes, name of the entry.

        Raises:
            TrackingError: The archive is damaged.
        """
        done, total = 0, sum(size for size, _ in self._index.entries.values())
        with open(os.devnull, "wb") as nowhere:
            for name, (size, _) in self._index.entries.items():
                progress(done, total, name)
                self._copy(name, nowhere)
                done += size
        for run_id in self.run_ids:
            self.run(run_id)

    def run(self, run_id: str) -> RunRecord:
        """Return a run.

        Raises:
            TrackingError: The archive is damaged.
        """
        name = f"runs/{run_id}/run.json"
        try:
            run = RunRecord.model_validate_json(self._small(name, _RECORD_LIMIT))
        except ValidationError as error:
            raise self._damaged(f"{name}: {in_words(error)}") from None
        if run.run_id != run_id:
            raise self._damaged(f"{name} is another run's")
        return run

    def histories(self, run_id: str) -> Iterator[History]:
        """Yield all metric histories of a run.

        Raises:
            TrackingError: The archive is damaged.
        """
        name = f"runs/{run_id}/metrics.jsonl"
        self._make_sure_of_room([name])
        with tempfile.TemporaryFile() as scratch:
            self._copy(name, scratch)
            scratch.seek(0)
            while line := scratch.readline(_LINE_LIMIT):
                try:
                    yield History.model_validate_json(line)
                except ValidationError as error:
                    raise self._damaged(f"{name}: {in_words(error)}") from None

    @contextmanager
    def files(self, owner: str) -> Iterator[Folder]:
        """Return the files of a run or a logged model, unpacked and checked, while the context lasts.

        Raises:
            TrackingError: The archive is damaged, or there is no room for the files.
        """
        prefix = f"files/{owner}/"
        names = [name for name in self._index.entries if name.startswith(prefix)]
        with tempfile.TemporaryDirectory(prefix="calm-runs-") as folder:
            self._make_sure_of_room(names)
            files = []
            for name in names:
                size, digest = self._index.entries[name]
                target = Path(folder) / name.removeprefix(prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    self._copy(name, file)
                files.append(FileRecord(path=name.removeprefix(prefix), size=size, sha256=digest))
            yield Folder(Path(folder), tuple(files))

    def _read_index(self) -> ArchiveIndex:
        names = self._archive.namelist()
        if INDEX not in names:
            raise TrackingError(f"{self._path} is a zip file but not an archive of runs: calm runs export makes one")
        content = self._read(INDEX, _INDEX_LIMIT)
        try:
            header = _Header.model_validate_json(content)
            if header.format == FORMAT and header.version > VERSION:
                raise TrackingError(
                    f"{self._path} was written by a newer calm (format {header.version}): upgrade this one"
                )
            index = ArchiveIndex.model_validate_json(content)
        except ValidationError as error:
            raise self._damaged(f"{INDEX}: {in_words(error)}") from None
        expected = {*index.entries, INDEX}
        needed = {f"runs/{run_id}/{name}" for run_id in index.runs for name in ("run.json", "metrics.jsonl")}
        parents = {str(parent) for name in names for parent in PurePosixPath(name).parents}
        if parents & expected or len(names) != len(set(names)) or set(names) != expected or needed - expected:
            raise self._damaged("its entries are not those of its index")
        for info in self._archive.infolist():
            if info.filename != INDEX and info.file_size != index.entries[info.filename][0]:
                raise self._damaged(f"{info.filename} has another size than the index says")
        return index

    def _make_sure_of_room(self, names: list[str]) -> None:
        needed, free = (
            sum(self._index.entries[name][0] for name in names),
            shutil.disk_usage(tempfile.gettempdir()).free,
        )
        if needed > free:
            raise TrackingError(
                f"one run of {self._path} needs {needed >> 20} MiB in {tempfile.gettempdir()}, which has {free >> 20}: "
                "make room, or name another directory with TMPDIR"
            )

    def _small(self, name: str, limit: int) -> bytes:
        size, digest = self._index.entries[name]
        content = self._read(name, limit)
        if len(content) != size or hashlib.sha256(content).hexdigest() != digest:
            raise self._damaged(f"{name} is not what the index says")
        return content

    def _read(self, name: str, limit: int) -> bytes:
        """Return the whole of a small entry."""
        with self._opened(name) as file:
            content: bytes = file.read(limit + 1)
        if len(content) > limit:
            raise self._damaged(f"{name} is larger than {limit >> 20} MiB")
        return content

    def _copy(self, name: str, target: IO[bytes]) -> None:
        """Copy an entry, checking size and hash; never more bytes than the index says."""
        size, expected = self._index.entries[name]
        digest, copied = hashlib.sha256(), 0
        with self._opened(name) as file:
            while chunk := file.read(min(_CHUNK, size - copied + 1)):
                copied += len(chunk)
                if copied > size:
                    break
                digest.update(chunk)
                target.write(chunk)
        if copied != size or digest.hexdigest() != expected:
            raise self._damaged(f"{name} is not what the index says")

    @contextmanager
    def _opened(self, name: str) -> Iterator[IO[bytes]]:
        try:
            with self._archive.open(name) as file:
                yield file
        except (zipfile.BadZipFile, *_DAMAGE) as error:
            raise self._damaged(f"{name}: {error}") from None
        except OSError as error:
            if error.errno != errno.EINVAL:  # a place before the file's start; the rest is the target's trouble
                raise
            raise self._damaged(name) from None

    def _damaged(self, what: str) -> TrackingError:
        return TrackingError(
            f"{self._path} is damaged or was not written by calm runs export ({what}): export it again"
        )

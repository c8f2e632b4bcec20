"""Runs in one file: a zip of JSON and the files themselves, safe to open whoever made it.

    calm-runs.json                     what the archive holds: format, runs, size and SHA-256 of everything else
    runs/{run id}/run.json             the run without its metrics
    runs/{run id}/metrics.jsonl        one line per metric: its whole history
    files/{run id or model id}/{path}  files of runs and of logged models

Nothing in it is executed or unpickled. Names are checked before anything is written, every entry must be in the index
with its size and hash, and an entry is never read past its size. The same runs make the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from calm_lightning.errors import TrackingError
from calm_lightning.tracking.records import (
    Digest,
    FileRecord,
    Folder,
    History,
    RelativePath,
    RunId,
    RunRecord,
    RunSource,
)
from calm_lightning.tracking.store_source import in_words

FORMAT: Literal["calm-runs"] = "calm-runs"
VERSION: Literal[1] = 1
_INDEX = "calm-runs.json"
_CHUNK = 1 << 20
_INDEX_LIMIT, _RECORD_LIMIT, _LINE_LIMIT = 1 << 28, 1 << 27, 1 << 30
_EPOCH = (1980, 1, 1, 0, 0, 0)
_STORED = (".png", ".zip", ".gz", ".zst", ".safetensors", ".npz", ".parquet", ".jpg")
"""Files that do not get smaller."""


class _Header(BaseModel):
    """The first things read: enough to say what kind of archive it is."""

    model_config = ConfigDict(strict=True)
    format: str
    version: int


class _Index(BaseModel):
    """What the archive holds."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    format: Literal["calm-runs"]
    version: Literal[1]
    runs: list[RunId]
    entries: dict[RelativePath, tuple[Annotated[int, Field(ge=0)], Digest]]


def write_archive(source: RunSource, path: Path, progress: Callable[[int, int, str], None]) -> int:
    """Write runs into an archive, whole or not at all.

    Args:
        source: The runs.
        path: The file; it is replaced.
        progress: Told before each run: runs done, all runs, name of the next one.

    Returns:
        Bytes of the archive.

    Raises:
        TrackingError: A run cannot be read.
        OSError: The file cannot be written.
    """
    scratch = path.with_name(f".{path.name}.part")
    try:
        with zipfile.ZipFile(scratch, "w") as archive:
            _write(source, _Writer(archive), progress)
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return path.stat().st_size


def _write(source: RunSource, writer: _Writer, progress: Callable[[int, int, str], None]) -> None:
    written: set[str] = set()
    for number, run_id in enumerate(source.run_ids):
        run = source.run(run_id)
        progress(number, len(source.run_ids), run.name)
        writer.add(f"runs/{run_id}/run.json", [run.model_dump_json(indent=1).encode()])
        lines = (history.model_dump_json().encode() + b"\n" for history in source.histories(run_id))
        writer.add(f"runs/{run_id}/metrics.jsonl", lines)
        for owner in (run_id, *(model.model_id for model in run.models)):
            if owner not in written:
                written.add(owner)
                with source.files(owner) as folder:
                    for file in folder.files:
                        writer.add_file(f"files/{owner}/{file.path}", folder.root / file.path)
    index = _Index(format=FORMAT, version=VERSION, runs=list(source.run_ids), entries=writer.entries)
    writer.add(_INDEX, [index.model_dump_json(indent=1).encode()])
    progress(len(source.run_ids), len(source.run_ids), "")


class _Writer:
    """Adds entries to a zip and keeps their sizes and hashes."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.entries: dict[str, tuple[int, str]] = {}

    def add(self, name: str, chunks: Any) -> None:
        """Add an entry.

        Args:
            name: Its path.
            chunks: Its bytes, in pieces.
        """
        info = zipfile.ZipInfo(name, _EPOCH)
        info.compress_type = zipfile.ZIP_STORED if name.endswith(_STORED) else zipfile.ZIP_DEFLATED
        info.external_attr = 0o644 << 16
        digest, size = hashlib.sha256(), 0
        with self._archive.open(info, "w", force_zip64=True) as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        self.entries[name] = (size, digest.hexdigest())

    def add_file(self, name: str, path: Path) -> None:
        """Add a file."""
        with path.open("rb") as file:
            self.add(name, iter(lambda: file.read(_CHUNK), b""))


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
        except (zipfile.BadZipFile, OSError) as error:
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

    def _read_index(self) -> _Index:
        names = self._archive.namelist()
        if _INDEX not in names:
            raise TrackingError(f"{self._path} is a zip file but not an archive of runs: calm runs export makes one")
        content = self._read(_INDEX, _INDEX_LIMIT)
        try:
            header = _Header.model_validate_json(content)
            if header.format == FORMAT and header.version > VERSION:
                raise TrackingError(
                    f"{self._path} was written by a newer calm (format {header.version}): upgrade this one"
                )
            index = _Index.model_validate_json(content)
        except ValidationError as error:
            raise self._damaged(f"{_INDEX}: {in_words(error)}") from None
        expected = {*index.entries, _INDEX}
        needed = {f"runs/{run_id}/{name}" for run_id in index.runs for name in ("run.json", "metrics.jsonl")}
        parents = {str(parent) for name in names for parent in PurePosixPath(name).parents}
        if parents & expected or len(names) != len(set(names)) or set(names) != expected or needed - expected:
            raise self._damaged("its entries are not those of its index")
        for info in self._archive.infolist():
            if info.filename != _INDEX and info.file_size != index.entries[info.filename][0]:
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
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, KeyError) as error:
            raise self._damaged(f"{name}: {error}") from None

    def _damaged(self, what: str) -> TrackingError:
        return TrackingError(
            f"{self._path} is damaged or was not written by calm runs export ({what}): export it again"
        )

"""Runs written into one file, whole or not at all; `archive.py` says what is in it."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from calm_lightning.tracking.moving.archive import FORMAT, INDEX, VERSION, ArchiveIndex
from calm_lightning.tracking.moving.records import RunSource

_CHUNK = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same runs make the same bytes
_STORED = (".png", ".zip", ".gz", ".zst", ".safetensors", ".npz", ".parquet", ".jpg")
"""Files that do not get smaller."""


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
    index = ArchiveIndex(format=FORMAT, version=VERSION, runs=list(source.run_ids), entries=writer.entries)
    writer.add(INDEX, [index.model_dump_json(indent=1).encode()])
    progress(len(source.run_ids), len(source.run_ids), "")


class _Writer:
    """Adds entries to a zip and keeps their sizes and hashes."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.entries: dict[str, tuple[int, str]] = {}

    def add(self, name: str, chunks: Iterable[bytes]) -> None:
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

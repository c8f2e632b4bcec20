"""Tokenised documents into tar shards whose bytes depend on nothing but the documents.

Owner, mode and time of every tar member are fixed. A shard ends with the document that brings it to
`shard_tokens`, so documents stay whole and shards are only roughly equal.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from webdataset.writer import TarWriter

from calm_lightning.data.shards import (
    DOCUMENT_FIELD,
    TOKENS_FIELD,
    Counts,
    ShardRecord,
    SplitRecord,
    encode_tokens,
    file_sha256,
)


class SplitWriter:
    """Writes the shards of one split, in order."""

    def __init__(self, directory: Path, split: str, *, shard_tokens: int, separator_id: int, dtype: str) -> None:
        """Prepare to write; no file is made before the first document.

        Args:
            directory: Where shards go.
            split: Name of the split; it starts the shards' names.
            shard_tokens: A shard is closed by the document that reaches this many tokens.
            separator_id: Id written in front of every document.
            dtype: Type of the stored ids.
        """
        self._directory, self._split = directory, split
        self._shard_tokens, self._separator_id, self._dtype = shard_tokens, separator_id, dtype
        self._shards: list[ShardRecord] = []
        self._domains: dict[str, Counts] = defaultdict(Counts)
        self._open = Counts()
        self._file: BinaryIO | None = None
        self._tar: TarWriter | None = None

    def add(self, ids: Sequence[int], domain: str, text_bytes: int) -> None:
        """Append one document.

        Args:
            ids: Its token ids, no separator.
            domain: Its domain.
            text_bytes: UTF-8 bytes of its text.
        """
        if self._tar is None:
            self._file = self._path().open("wb")
            self._tar = TarWriter(self._file, user="", group="", mode=0o644, mtime=0, encoder=False)
        counts = Counts(1, len(ids) + 1, text_bytes)
        document = {"domain": domain, "text_bytes": text_bytes}
        self._tar.write(
            {
                "__key__": f"{self._open.documents:08d}",
                TOKENS_FIELD: encode_tokens([self._separator_id, *ids], self._dtype),
                DOCUMENT_FIELD: json.dumps(document, sort_keys=True).encode(),
            }
        )
        self._open += counts
        self._domains[domain] += counts
        if self._open.tokens >= self._shard_tokens:
            self._close_shard()

    def close(self) -> SplitRecord:
        """Finish the last shard and return the record of the split."""
        self._close_shard()
        return SplitRecord(tuple(self._shards), {name: self._domains[name] for name in sorted(self._domains)})

    def abandon(self) -> None:
        """Let go of a shard left open by an error; its file is the caller's to delete."""
        if self._tar is not None and self._file is not None:
            # A full disk fails once more when buffers are flushed.
            with suppress(OSError):
                self._tar.close()
            with suppress(OSError):
                self._file.close()

    def _path(self) -> Path:
        return self._directory / f"{self._split}-{len(self._shards):06d}.tar"

    def _close_shard(self) -> None:
        if self._tar is None or self._file is None:
            return
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        path, counts = self._path(), self._open
        self._shards.append(
            ShardRecord(
                path.name, counts.documents, counts.tokens, counts.text_bytes, path.stat().st_size, file_sha256(path)
            )
        )
        self._tar, self._file, self._open = None, None, Counts()

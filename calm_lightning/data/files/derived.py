"""Files in the cache that come out the same whenever they are made, and the notes that prove it.

A file may be evicted and made again; its note stays: its SHA-256 and its tokens by domain, a few hundred bytes. A file
that comes out differently than its note says is an error instead of other data, and a copy that no longer agrees with
its note is made again. The price: one pass over a file whenever it is opened.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from calm_lightning.data.files.cache import Cache
from calm_lightning.data.shards.tokens import file_sha256
from calm_lightning.errors import DataError, ShardError

_log = logging.getLogger("calm_lightning.data")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Note:
    """What is remembered of a file.

    Attributes:
        sha256: Its checksum.
        tokens: Its tokens by domain, separators included; empty for what is no shard.
    """

    sha256: str
    tokens: Mapping[str, int]


class DerivedFiles:
    """Makes files in a cache and keeps their notes beside it.

    Attributes:
        notes: Directory of the notes.
    """

    def __init__(self, cache: Cache) -> None:
        """Take the cache that holds the files; nothing is made yet."""
        self._cache = cache
        self.notes = cache.directory / "notes"

    def note(self, key: str) -> Note | None:
        """Return the note of a key, or None where there is none that can be read."""
        try:
            value = json.loads(self._place(key).read_bytes())
            return Note(str(value["sha256"]), {str(name): int(count) for name, count in value["tokens"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def open(
        self, key: str, make: Callable[[Path], Mapping[str, int]], opener: Callable[[Path], Result], what: str
    ) -> Result:
        """Return `opener` of the file of `key`, whose bytes are those that its note names.

        Args:
            key: Names the content.
            make: Writes the file at the path it is given and returns its tokens by domain.
            opener: Opens the file; raises ValueError, KeyError or DataError where it is damaged.
            what: What to call the file in messages.

        Raises:
            ShardError: It was made before and now comes out differently, or it cannot be read.
            DataError: The cache cannot hold it.
        """

        def make_and_note(path: Path) -> None:
            tokens = make(path)
            made, before = Note(file_sha256(path), tokens), self.note(key)
            if before is not None and before.sha256 != made.sha256:
                raise ShardError(
                    f"{what}: the data differ from what they were before, as another version of the package tokenizers "
                    f"may make them: go back to that version, or delete {self._place(key)} to go on with other data"
                )
            self._write(key, made)

        def checked(path: Path) -> Result | None:
            try:
                opened, note = opener(path), self.note(key)
                return opened if note is not None and note.sha256 == file_sha256(path) else None
            except (ValueError, KeyError, DataError):
                return None
            except FileNotFoundError:
                raise  # evicted meanwhile: the cache makes it again
            except OSError as error:
                raise ShardError(f"{what}: {path} cannot be read ({error.strerror or error})") from None

        for _ in range(2):
            opened = self._cache.open(key, make_and_note, checked)
            if opened is not None:
                return opened
            _log.warning("%s: the copy in the cache is damaged and is made again", what)
            self._cache.discard(key)
        raise ShardError(
            f"{what}: the cache {self._cache.directory} does not keep what is written there: "
            f"set data.cache_dir to a directory on another disk"
        )

    def _place(self, key: str) -> Path:
        return self.notes / f"{key}.json"

    def _write(self, key: str, note: Note) -> None:
        temporary = self.notes / f".{key}.partial"
        try:
            self.notes.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(asdict(note), sort_keys=True), encoding="utf-8")
            os.replace(temporary, self._place(key))
        except OSError as error:
            raise DataError(
                f"{self._place(key)} cannot be written ({error.strerror or error}): "
                f"free some room, or set data.cache_dir to a directory that can be written"
            ) from None

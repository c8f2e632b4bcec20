"""The files of a corpus, wherever they are: the manifest, the tokenizer's file, and shards as local verified files.

A shard is handed out only while its bytes are known to be those of the manifest: SHA-256 once per process and file,
then one `stat` per call, which notices a file replaced under a running job. Remote shards are whole files in a bounded
cache; no range of a shard is read over the network, so a reader waits for the first byte of a shard until its last one
is there (prefetching hides that), and gets memory maps and complete checksums for it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from calm_lightning.data.files.cache import Cache
from calm_lightning.data.files.remote import PIPE, TransferError, is_remote, join, local_path, read_chunks, shown
from calm_lightning.data.shards.manifest import MANIFEST_FILE, Manifest, ShardRecord
from calm_lightning.errors import DataError, ShardError

LONGEST_PAUSE = 30.0  # seconds
SMALL_FILE = 1 << 30  # bytes; a manifest of 100,000 shards has some 100 MB

_TICK = 20_000_000  # ns; two writes within a tick of the file system's clock leave the same time behind

_log = logging.getLogger("calm_lightning.data")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Access:
    """How the files of a corpus are reached.

    Attributes:
        shards_at: Where the shards are: "" for beside the manifest, a directory, an address, or `pipe:COMMAND` in which
            `{}` stands for the shard's file name.
        cache_dir: Directory for copies of remote shards; "" for calm-lightning in the user's cache directory.
        cache_gb: Most bytes of such copies, in units of 10^9.
        retries: Further attempts after a failed one.
        timeout: Seconds without a byte after which an attempt has failed.
        pause: Seconds before the second attempt; doubled for each further one, up to `LONGEST_PAUSE`.
    """

    shards_at: str = ""
    cache_dir: str = ""
    cache_gb: float = 20.0
    retries: int = 5
    timeout: float = 60.0
    pause: float = 0.5


class _Identity(NamedTuple):
    """What changes when a file is replaced or written to."""

    device: int
    inode: int
    size: int
    changed_ns: int


class CorpusFiles:
    """Reads the files of one corpus. It can be pickled, and used on both sides of a fork.

    Args:
        corpus: Directory or address of the manifest.
        access: How to reach it and its shards.

    Raises:
        DataError: The corpus is given as a command.
    """

    def __init__(self, corpus: str, access: Access) -> None:
        if corpus.startswith(PIPE):
            raise DataError(f"data.corpus is {corpus!r}, a command: name the manifest's place, and set data.shards_at")
        self.corpus = corpus
        self.access = access
        self._shards_at = access.shards_at or corpus
        self._remote = is_remote(self._shards_at)
        self._directory = "" if self._remote else str(Path(local_path(self._shards_at)))
        self.cache = Cache(_cache_directory(access) / "shards", int(access.cache_gb * 1e9))
        self._verified: dict[tuple[str, str], _Identity] = {}

    def manifest(self) -> Manifest:
        """Return the manifest of the corpus.

        Raises:
            DataError: It is missing, cannot be read, or is not a manifest of this version.
        """
        if not is_remote(self.corpus):
            return Manifest.load(Path(local_path(self.corpus)))
        content = self.small_file(MANIFEST_FILE)
        origin = shown(join(self.corpus, MANIFEST_FILE))
        try:
            return Manifest.parse(content.decode("utf-8"), origin)
        except UnicodeDecodeError as error:
            raise DataError(f"{origin} cannot be read ({error}): prepare the corpus again") from None

    def small_file(self, name: str) -> bytes:
        """Return the content of a file beside the manifest.

        Args:
            name: Its name.

        Raises:
            DataError: It cannot be had.
        """
        if is_remote(self.corpus):
            address = join(self.corpus, name)
            return self._attempt(partial(_read_small, address, self.access.timeout), name, address, DataError)
        path = Path(local_path(self.corpus), name)
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}): prepare the corpus again") from None

    def shard(self, record: ShardRecord) -> Path:
        """Return the path of a shard whose bytes are those of the manifest.

        Args:
            record: The shard.

        Raises:
            ShardError: It cannot be had, or is not what the manifest says.
            DataError: The cache cannot hold it.
        """
        remote = self._remote
        path = self.cache.path(record.sha256) if remote else Path(self._directory, record.file)
        known = self._verified.get((record.file, record.sha256))
        if known is not None and known == _identity(path) and (not remote or self.cache.touch(record.sha256)):
            return path
        if remote:
            identity = self._cached(record)
        else:
            identity = _verify(record, path, "it changed while this program ran: " if known else "")
        self._verified[record.file, record.sha256] = identity
        return path

    @property
    def held_bytes(self) -> int | None:
        """How many bytes of shards one process may hold open: half the cache; None where shards are local files."""
        return self.cache.limit_bytes // 2 if self._remote else None

    def unchanged(self, record: ShardRecord) -> bool:
        """Return whether a shard that was handed out is still the file that was verified; cost: one `stat`.

        A copy in the cache is: its name is its SHA-256, and whoever has it mapped keeps it.
        """
        if self._remote:
            return True
        identity = self._verified.get((record.file, record.sha256))
        return identity is not None and identity == _identity(f"{self._directory}/{record.file}")

    def open(self, record: ShardRecord, opener: Callable[[Path], Result]) -> Result:
        """Return `opener` of a shard, certain that what it opened is what was verified.

        A shard may be replaced, or evicted from the cache, between `shard` and opening its path; then it is verified
        and opened again.

        Args:
            record: The shard.
            opener: Opens or maps the file at the path it is given.

        Raises:
            ShardError: As in `shard`, or the file changes again and again.
            DataError: The cache cannot hold it.
        """
        for _ in range(20):
            path = self.shard(record)
            try:
                opened = opener(path)
            except FileNotFoundError:
                continue
            if self._verified[record.file, record.sha256] == _identity(path):
                return opened
        raise ShardError(
            f"shard {record.file} at {shown(self._shards_at)} does not stay as it is long enough to be opened: "
            f"stop what writes there, or raise data.cache_gb if other processes crowd it out of the cache"
        )

    def _cached(self, record: ShardRecord) -> _Identity:
        """Bring a remote shard into the cache, or check the copy an earlier process left there."""
        fresh: list[Path] = []

        def make(temporary: Path) -> None:
            self._download(record, temporary)
            fresh.append(temporary)

        def check(path: Path) -> _Identity | None:
            if fresh:  # compared on its way here
                fresh.clear()
                return _identity(path) or _gone(path)
            try:
                return _verify(record, path, "")
            except ShardError:
                return None if path.exists() else _gone(path)

        identity = self.cache.open(record.sha256, make, check, record.bytes)
        if identity is None:
            _log.warning("shard %s: its copy in the cache is damaged and is fetched again", record.file)
            self.cache.discard(record.sha256)
            identity = self.cache.open(record.sha256, make, check, record.bytes)
        if identity is None:
            raise ShardError(
                f"shard {record.file}: the cache {self.cache.directory} does not keep what is written there"
            )
        return identity

    def _download(self, record: ShardRecord, temporary: Path) -> None:
        address = join(self._shards_at, record.file)
        download = partial(_download_once, record, address, temporary, self.access.timeout)
        self._attempt(download, f"shard {record.file}", address, ShardError)

    def _attempt(self, action: Callable[[], Result], name: str, address: str, kind: type[DataError]) -> Result:
        """Return what `action` returns, tried again with growing pauses while it raises a TransferError."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return action()
            except TransferError as error:
                _log.warning("%s from %s, attempt %d: %s", name, shown(address), attempt, error)
                if error.lasting or attempt > self.access.retries:
                    tries = "attempt" if attempt == 1 else "attempts"
                    raise kind(
                        f"{name} cannot be had from {shown(address)}: {error} (after {attempt} {tries}); "
                        f"check that address, or name another place with data.corpus or data.shards_at"
                    ) from None
            # Spread over the upper half, so that processes that failed together do not come back together.
            pause = min(LONGEST_PAUSE, self.access.pause * 2.0 ** (attempt - 1))
            time.sleep(pause * random.uniform(0.5, 1.0))


def _cache_directory(access: Access) -> Path:
    if access.cache_dir:
        return Path(access.cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "calm-lightning"


def _read_small(address: str, timeout: float) -> bytes:
    content = bytearray()
    with closing(read_chunks(address, timeout)) as chunks:
        for chunk in chunks:
            content += chunk
            if len(content) > SMALL_FILE:
                raise TransferError(f"it is larger than {SMALL_FILE:,} bytes", lasting=True)
    return bytes(content)


def _download_once(record: ShardRecord, address: str, temporary: Path, timeout: float) -> None:
    """Write a shard to `temporary` and compare it with its record on the way."""
    digest, size = hashlib.sha256(), 0
    with temporary.open("wb") as file, closing(read_chunks(address, timeout)) as chunks:
        for chunk in chunks:
            size += len(chunk)
            if size > record.bytes:
                raise TransferError(f"it has more than the {record.bytes:,} bytes of the manifest")
            digest.update(chunk)
            file.write(chunk)
    if size < record.bytes:
        raise TransferError(f"it ended after {size:,} of {record.bytes:,} bytes")
    if digest.hexdigest() != record.sha256:
        raise TransferError(f"its SHA-256 is {digest.hexdigest()[:12]}, the manifest says {record.sha256[:12]}")


def _identity(path: Path | str) -> _Identity | None:
    try:
        return _identify(os.stat(path))
    except OSError:
        return None


def _identify(status: os.stat_result) -> _Identity:
    return _Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _gone(path: Path) -> _Identity:
    raise FileNotFoundError(path)


def _verify(record: ShardRecord, path: Path, prefix: str) -> _Identity:
    """Compare a file with its record; return the identity of the file that was read.

    Args:
        record: What the manifest says.
        path: The file.
        prefix: What to say first of a file that differs.

    Raises:
        ShardError: It is missing, cannot be read, or differs.
    """
    advice = "prepare the corpus again, or restore that file"
    try:
        with path.open("rb") as file:
            identity = _identify(os.fstat(file.fileno()))
            if identity.size != record.bytes:
                found = f"it has {identity.size:,} bytes of {record.bytes:,}"
                raise ShardError(
                    f"shard {record.file} at {path} is not the one of the manifest: {prefix}{found}; {advice}"
                )
            if 0 <= time.time_ns() - identity.changed_ns < _TICK:
                time.sleep(_TICK / 1e9)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise ShardError(f"shard {record.file} is missing: there is no {path}; {advice}") from None
    except OSError as error:
        raise ShardError(
            f"shard {record.file} at {path} cannot be read ({error.strerror or error}); {advice}"
        ) from None
    if digest != record.sha256:
        found = f"its SHA-256 is {digest[:12]}, the manifest says {record.sha256[:12]}"
        raise ShardError(f"shard {record.file} at {path} is not the one of the manifest: {prefix}{found}; {advice}")
    return identity

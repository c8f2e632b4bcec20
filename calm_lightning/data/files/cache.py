"""A directory of files that can be made again, bounded in bytes and shared by all processes of a machine.

A file appears whole under its name or not at all, one process makes it while others wait, and the least recently used
files go before the bound would be passed. A file that is open or mapped survives its removal for whoever holds it, so
eviction asks nobody; the price is that the disk gets those bytes back only when the last holder lets go. Locks are
`flock`: they vanish with the process that holds them, and the directory must be on a file system that has them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from calm_lightning.errors import DataError

CACHED = ".cached"
PARTIAL = ".partial"
PATIENCE = 600.0  # seconds to wait for room that other downloads have reserved
POLL = 0.05  # seconds between two looks for room

_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
_UNDER_WAY = re.compile(r"\.([A-Za-z0-9_-]+)\.([0-9]+)" + re.escape(PARTIAL))

Opened = TypeVar("Opened")


class Cache:
    """Files by key in one directory; the class removes only files it named itself.

    Args:
        directory: Where the files are; made when the first of them is.
        limit_bytes: Most bytes they take together, files under way included as far as their sizes are known.
    """

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self.directory = directory
        self.limit_bytes = limit_bytes

    def path(self, key: str) -> Path:
        """Return where the file of `key` is or would be.

        Args:
            key: Letters, digits, `-` and `_`.

        Raises:
            ValueError: The key has other characters.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key of a cache")
        return self.directory / (key + CACHED)

    def get(self, key: str, make: Callable[[Path], None], size: int = 0) -> Path:
        """Return the file of `key`; it is made when absent, and becomes the most recently used.

        The path may be evicted by another process as soon as it is returned; `open` copes with that.

        Args:
            key: Names the content.
            make: Writes the file at the path it is given; an OSError it raises is taken for one of the cache's disk.
                It may ask this cache for other files if `size` is 0; with a size, two processes that did so could
                wait for each other's room.
            size: Bytes the file will have, so that room is made beforehand; 0 where unknown.

        Raises:
            DataError: The directory cannot be written, the disk is full, or the file is larger than the bound.
        """
        path = self.path(key)
        if self.touch(key):
            return path
        with self._explained():
            self.directory.mkdir(parents=True, exist_ok=True)
        with self._locked(key):
            if not self.touch(key):
                self._make(key, path, make, size)
        return path

    def open(self, key: str, make: Callable[[Path], None], opener: Callable[[Path], Opened], size: int = 0) -> Opened:
        """Return `opener` of the file of `key`, made again when it is evicted between making and opening.

        Args:
            key: As in `get`.
            make: As in `get`.
            opener: Opens or maps the file at the path it is given.
            size: As in `get`.

        Raises:
            DataError: As in `get`, or the file is evicted again and again.
        """
        for _ in range(20):
            with suppress(FileNotFoundError):
                return opener(self.get(key, make, size))
        raise DataError(f"the cache {self.directory} is too small for the processes that share it: raise data.cache_gb")

    def discard(self, key: str) -> None:
        """Remove the file of `key`, if there is one."""
        with self._explained():
            self.path(key).unlink(missing_ok=True)

    def touch(self, key: str) -> bool:
        """Mark the file of `key` as used now, if there is one; return whether there is."""
        path = self.path(key)
        with self._explained():
            try:
                _mark(path)
            except FileNotFoundError:
                return False
            except PermissionError:
                return path.exists()  # somebody else's file in a shared cache: readable is enough
            return True

    def _make(self, key: str, path: Path, make: Callable[[Path], None], size: int) -> None:
        """Make the file of a key whose lock is held."""
        with self._explained():
            for stale in self.directory.glob(f".{key}.*{PARTIAL}"):
                stale.unlink(missing_ok=True)
        temporary = self.directory / f".{key}.{size}{PARTIAL}"
        try:
            self._reserve(key, size, temporary)
            with self._explained():
                make(temporary)
                _synchronise(temporary)
                made = temporary.stat().st_size
            self._refuse_larger(key, made)
            with self._explained(), self._locked(""):
                # Against finished files only: two makers whose files grew beyond their word would wait for each other.
                self._evict(self.limit_bytes - made)
                _mark(temporary)  # the kernel's own stamp is milliseconds behind, which would turn the order round
                os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _refuse_larger(self, key: str, size: int) -> None:
        if size > self.limit_bytes:
            raise DataError(
                f"the cache {self.directory} holds up to {self.limit_bytes:,} bytes and {key} takes {size:,}: "
                f"raise data.cache_gb"
            )

    def _reserve(self, key: str, size: int, temporary: Path) -> None:
        """Create a temporary file, named after the room it will take, once the cache has that room."""
        self._refuse_larger(key, size)
        until = time.monotonic() + PATIENCE
        while True:
            with self._explained(), self._locked(""):
                free = self.limit_bytes - self._reserved()
                if size <= free:
                    self._evict(free - size)
                    temporary.touch()
                    return
            if time.monotonic() > until:
                raise DataError(
                    f"the cache {self.directory} has no room for {key} ({size:,} bytes) beside what other processes "
                    f"are fetching: raise data.cache_gb, or start fewer processes"
                )
            time.sleep(POLL)

    def _reserved(self) -> int:
        """Return the bytes that files under way will take; what killed processes left is removed."""
        total = 0
        for name in os.listdir(self.directory):
            match = _UNDER_WAY.fullmatch(name)
            if match and not self._swept(match[1], self.directory / name):
                total += int(match[2])
        return total

    def _evict(self, bound: int) -> None:
        """Remove files, the least recently used first, until the others take at most `bound` bytes."""
        files: list[tuple[int, int, str]] = []
        for entry in os.scandir(self.directory):
            if entry.name.endswith(CACHED):
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    files.append((status.st_atime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in files)
        for _, size, name in sorted(files):
            if total <= bound:
                break
            Path(name).unlink(missing_ok=True)
            total -= size

    def _swept(self, key: str, partial: Path) -> bool:
        """Remove a temporary file whose maker was killed: nobody holds its key's lock. Return whether it was one."""
        with self._locked(key, wait=False) as held:
            if held:
                partial.unlink(missing_ok=True)
            return held

    @contextmanager
    def _locked(self, key: str, wait: bool = True) -> Iterator[bool]:
        """Hold the lock of a key ("" is the lock on the room); yield False if it is taken and `wait` is off."""
        path = self.directory / f".{key}.lock"
        with self._explained():
            descriptor = _lock(path, wait)
        if descriptor is None:
            yield False
            return
        try:
            yield True
        finally:
            with suppress(OSError):
                path.unlink()  # while it is held: who waits for it sees that its file is gone and begins anew
            # Not left to close(): a process forked meanwhile has a copy of the descriptor, which would keep the lock.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn errors of the cache's own files into one sentence."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(
                    f"the disk of the cache {self.directory} is full ({error.strerror}): "
                    f"free some room, lower data.cache_gb, or set data.cache_dir to another disk"
                ) from None
            raise DataError(
                f"the cache {self.directory} cannot be used ({error.strerror or error}): "
                f"set data.cache_dir to a directory on a local disk that can be written"
            ) from None


def _lock(path: Path, wait: bool) -> int | None:
    """Return the descriptor of a locked file at `path`, or None where another holds it and `wait` is off."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last holder removed the file it locked: lock the one that is there now


def _mark(path: Path) -> None:
    """Set the time of last use to now; the time of change stays, it tells whether a file is still the verified one."""
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

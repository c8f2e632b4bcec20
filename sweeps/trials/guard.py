"""The guard of a directory: one file whose lock (`flock`) makes reading, checking and writing one step.

The lock is the kernel's and ends with its process, however that ends. It is asked for again and again instead of
slept for, because a process that is stopped (SIGSTOP) in the few microseconds in which it holds the guard keeps it:
then everybody else must be able to say so instead of hanging.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from calm_lightning.errors import SweepError

GUARD_FILE = ".guard"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0002, 0.02
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Guard:
    """Excludes all other holders of the same directory's guard: threads, processes, hosts that share the disk.

    Args:
        directory: Where the guard's file lies; made if it is missing.
        who: How others call this holder when they have to wait for it.
        patience_seconds: How long to ask for the lock.
    """

    def __init__(self, directory: Path, who: str, patience_seconds: float = 30.0) -> None:
        self._path, self._who, self._patience = directory / GUARD_FILE, who, patience_seconds
        self._threads = threading.Lock()
        self._descriptor: int | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the guard. What is done inside takes microseconds and does not ask for the guard again.

        Raises:
            SweepError: Somebody else keeps it, the disk has no locks, or the directory cannot be written to.
        """
        with self._threads:
            try:
                descriptor = self._descriptor = self._open()
            except OSError as error:
                raise SweepError(
                    f"{self._path} cannot be made: {error.strerror}; make the directory writable"
                ) from None
            try:
                self._lock(descriptor)
                try:
                    yield
                finally:
                    # A child forked meanwhile has the same lock until it is released by name; closing is not enough.
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
            finally:
                self._descriptor = None
                os.close(descriptor)

    def forget(self) -> None:
        """Let go of everything in a child that was just forked: its parent's threads do not exist there."""
        self._threads = threading.Lock()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        """Open the guard's file, and make it and its directory where they are missing."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(self._path, flags, 0o666)
        except FileNotFoundError:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self._path, flags, 0o666)

    def _lock(self, descriptor: int) -> None:
        """Take the lock and leave a note of who has it."""
        until, pause = time.monotonic() + self._patience, _FIRST_PAUSE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise SweepError(self._kept(descriptor)) from None
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    raise SweepError(
                        f"the disk of {self._path.parent} has no file locks: mount it with them (NFS 4; Lustre with "
                        f"-o flock), or choose a work directory on another disk"
                    ) from None
                raise
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE)
        with suppress(OSError):  # a full disk takes no note, and needs none
            os.pwrite(descriptor, f"{self._who:<120.120}\n".encode(), 0)

    def _kept(self, descriptor: int) -> str:
        """Return what to do about somebody who keeps the guard."""
        who = os.pread(descriptor, 512, 0).decode(errors="replace").strip() or "somebody"
        return (
            f"{self._path} has been locked for {self._patience:.0f} s by {who}, which seems to be stopped: "
            f"continue that process or end it"
        )

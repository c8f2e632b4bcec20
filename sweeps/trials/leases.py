"""Leases: named claims that exactly one live process holds, on one host or on several that share a disk.

A lease is a small file that its owner rewrites every few seconds with a counter raised by one (a beat). Whoever wants
it watches the counter: one that has stood still for long enough, by the watcher's own clock, belongs to a dead owner
and may be taken over. Clocks of hosts are never compared. On the owner's host there is nothing to wait for: a process
that does not exist any more is dead at once (`sweeps.trials.processes`).

Reading, checking and writing happen under the directory's guard (`sweeps.trials.guard`), so two watchers never take
over the same lease, and an owner that was stopped, replaced and wakes up finds the other's name in the file before it
writes its own: it leaves the file alone and its lease is `lost`. Files are written beside their place and renamed, so
a process killed at any moment leaves the old file or the new one. The shared disk must support `flock`: NFS 4 does,
Lustre where it is mounted with `-o flock`.
"""

from __future__ import annotations

import os
import re
import threading
import uuid
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from calm_lightning.errors import SweepError
from sweeps.trials.clock import AwakeClock
from sweeps.trials.guard import Guard
from sweeps.trials.lease_file import Record, read_record, write_record
from sweeps.trials.processes import ProcessAddress

_SUFFIX = ".lease"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, as far as one observer can tell.

    Attributes:
        name: The lease.
        owner: Name the owner gave itself, for example "local-0".
        host: Its host.
        pid: Its process.
        beats: Signs of life so far.
        attempts: How many processes have held the lease since it was made, this one included.
        takeovers: How many of them took it over from one that had died.
        alive: Whether it is alive; an owner on another host is, until it has been watched for long enough.
        silent_seconds: For how long this observer has seen no sign of life; 0 at its first look.
    """

    name: str
    owner: str
    host: str
    pid: int
    beats: int
    attempts: int
    takeovers: int
    alive: bool
    silent_seconds: float


class Lease:
    """One claim, from `Leases.acquire` until it is released or lost. A context manager that releases at its end.

    Attributes:
        name: Its name.
        attempts: How many processes have held it since it was made, this one included. A process that gets back what
            it released itself, with nobody in between, does not count again.
        takeovers: How many of them took it over from one that had died.
        lost: Set when a beat finds that somebody else holds it, or that its file is gone.
    """

    def __init__(self, leases: Leases, name: str, attempts: int, takeovers: int) -> None:
        self.name, self.attempts, self.takeovers = name, attempts, takeovers
        self.lost = threading.Event()
        self._leases = leases

    def confirm(self) -> bool:
        """Beat now and return whether this process still holds the lease: ask before something that counts.

        Raises:
            SweepError: The directory cannot be read or written.
        """
        return self._leases.confirm(self)

    def release(self) -> None:
        """Give the lease back; nothing happens where it is lost or released already, or in a forked child.

        Raises:
            SweepError: The directory cannot be written to.
        """
        self._leases.release(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Leases:
    """The leases of one directory, as one owner sees them. Every method may be called from any thread.

    A thread in the background beats all leases that are held. A child made by `os.fork` starts with none: those of its
    parent are lost to it and go on being its parent's.

    Args:
        directory: Where the leases' files lie; made when the first one is acquired.
        owner: Name of this owner, for people.
        beat_seconds: Seconds between two beats.
        dead_after_seconds: Seconds without a beat after which an owner counts as dead.
    """

    _thread: threading.Thread | None

    def __init__(
        self, directory: Path, owner: str, beat_seconds: float = 5.0, dead_after_seconds: float = 60.0
    ) -> None:
        if not 0 < 2 * beat_seconds < dead_after_seconds:
            raise ValueError(f"dead_after_seconds={dead_after_seconds} must be more than two beats of {beat_seconds} s")
        self.directory, self.owner = directory, owner
        self._beat_seconds, self._dead_after = beat_seconds, dead_after_seconds
        self._start_anew()
        _EVERYBODY.add(self)

    def acquire(self, name: str) -> Lease | None:
        """Take a lease if nobody alive holds it, without waiting for anybody.

        Args:
            name: The lease: letters, digits, "_", "-" and ".".

        Returns:
            The lease, or None where somebody alive holds it, which may be this owner itself.

        Raises:
            SweepError: The directory cannot be read or written.
        """
        path = self._path(name)
        self._look_alive()
        if self._is_held(name, read_record(path)):
            return None
        with self._guarded():
            before = read_record(path)
            if self._is_held(name, before):
                return None
            now = self._next(before)
            write_record(path, now)
            lease = Lease(self, name, now.attempts, now.takeovers)
            with self._lock:
                self._held[name] = lease
        return lease

    def holder(self, name: str) -> Holder | None:
        """Return who holds a lease, dead or alive; None where it is free. Looking again is what tells the dead."""
        self._look_alive()
        record = read_record(self._path(name))
        if record is None or not record.held:
            return None
        silence = self._silence(name, record)
        return Holder(
            name=name,
            owner=record.owner,
            host=record.address.host,
            pid=record.address.pid,
            beats=record.beats,
            attempts=record.attempts,
            takeovers=record.takeovers,
            alive=self._is_alive(record, silence),
            silent_seconds=silence,
        )

    def holders(self) -> dict[str, Holder]:
        """Return all leases that are held, by the dead or by the living, by name."""
        names = sorted(path.name.removesuffix(_SUFFIX) for path in self.directory.glob(f"*{_SUFFIX}"))
        found = ((name, self.holder(name)) for name in names if _NAME.fullmatch(name))
        return {name: holder for name, holder in found if holder is not None}

    def attempts(self, name: str) -> int:
        """Return how many processes have held a lease since it was made, held or not; 0 where it never was."""
        record = read_record(self._path(name))
        return record.attempts if record else 0

    def confirm(self, lease: Lease) -> bool:
        """See `Lease.confirm`."""
        with self._guarded():
            return self._beat(lease)

    def release(self, lease: Lease) -> None:
        """See `Lease.release`."""
        path = self._path(lease.name)
        if not self._holds(lease):
            return
        try:
            with self._guarded():
                if not self._drop(lease):
                    return
                record = read_record(path)
                if record is not None and self._is_own(record):
                    write_record(path, replace(record, held=False))
                else:
                    lease.lost.set()
        finally:  # where the file cannot be written, the lease is not beaten any more and dies
            self._drop(lease)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the directory's guard: nobody acquires, beats or releases meanwhile. For microseconds only.

        Nothing inside may ask anything of these leases.

        Raises:
            SweepError: Somebody else keeps the guard, or the directory cannot be written to.
        """
        with self._guard.held():
            yield

    def close(self) -> None:
        """Release everything that is held and stop beating."""
        with self._lock:
            held = list(self._held.values())
        with ExitStack() as releasing:
            for lease in held:
                releasing.callback(lease.release)
        with self._lock:
            self._stop.set()
            self._thread = None

    def start_in_child(self) -> None:
        """Begin anew in a child that was just forked; `os.fork` sees to it."""
        held = self._held
        self._guard.forget()
        self._start_anew()
        for lease in held.values():
            lease.lost = threading.Event()  # the parent's may have been in use at the moment of the fork
            lease.lost.set()

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        self._address, self._token = ProcessAddress.own(), uuid.uuid4().hex
        self._guard = Guard(self.directory, f"{self.owner} ({self._address.host}:{self._address.pid})")
        self._held: dict[str, Lease] = {}
        self._seen: dict[str, tuple[str, int, float]] = {}
        self._clock = AwakeClock(min(2 * self._beat_seconds, self._dead_after / 2))
        self._stop = threading.Event()
        self._thread = None

    def _look_alive(self) -> None:
        """Start the thread that beats, if it does not run."""
        with self._lock:
            if self._thread is None:
                self._stop = threading.Event()
                self._thread = threading.Thread(target=self._beat_all, args=(self._stop,), daemon=True, name="leases")
                self._thread.start()

    def _beat_all(self, stop: threading.Event) -> None:
        """Beat until told to stop; what fails now (a full disk, say) is tried again at the next beat."""
        while not stop.wait(self._beat_seconds):
            self._clock.now()
            with self._lock:
                held = list(self._held.values())
            if held:
                with suppress(SweepError, OSError), self._guard.held():
                    for lease in held:
                        with suppress(SweepError, OSError):
                            self._beat(lease)

    def _beat(self, lease: Lease) -> bool:
        """Beat one lease, under the guard; return whether it is still held."""
        if not self._holds(lease):
            return False
        path = self._path(lease.name)
        record = read_record(path)
        if record is not None and self._is_own(record):
            write_record(path, replace(record, beats=record.beats + 1))
            return True
        self._drop(lease)
        lease.lost.set()
        return False

    def _holds(self, lease: Lease) -> bool:
        with self._lock:
            return self._held.get(lease.name) is lease

    def _drop(self, lease: Lease) -> bool:
        """Beat a lease no more; return whether it was beaten until now."""
        with self._lock:
            if self._held.get(lease.name) is not lease:
                return False
            del self._held[lease.name]
            return True

    def _next(self, before: Record | None) -> Record:
        """Return what the file holds when this owner has taken the lease."""
        if before is None:
            return Record(self.owner, self._address, self._token, 0, 1, 0, held=True)
        attempts = before.attempts + (before.token != self._token)
        takeovers = before.takeovers + before.held
        return Record(self.owner, self._address, self._token, before.beats + 1, attempts, takeovers, held=True)

    def _is_own(self, record: Record) -> bool:
        return record.held and record.token == self._token

    def _is_held(self, name: str, record: Record | None) -> bool:
        """Return whether somebody alive holds a lease."""
        if record is None or not record.held:
            return False
        if record.token == self._token:
            with self._lock:
                return name in self._held
        return self._is_alive(record, self._silence(name, record))

    def _is_alive(self, record: Record, silence: float) -> bool:
        return silence < self._dead_after and not record.address.is_gone()

    def _silence(self, name: str, record: Record) -> float:
        """Return for how long this observer has seen the same owner with the same beat, in seconds of its own time."""
        now = self._clock.now()
        with self._lock:
            token, beats, since = self._seen.get(name, ("", 0, now))
            if (token, beats) != (record.token, record.beats):
                since = now
                self._seen[name] = (record.token, record.beats, now)
        return now - since

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Hold the guard; what the disk refuses inside is one sentence."""
        with self._guard.held():
            try:
                yield
            except OSError as error:
                raise SweepError(
                    f"the leases in {self.directory} cannot be written: {error.strerror}; make room or make it writable"
                ) from None

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a lease")
        return self.directory / f"{name}{_SUFFIX}"


_EVERYBODY: weakref.WeakSet[Leases] = weakref.WeakSet()


def _in_child() -> None:
    for leases in list(_EVERYBODY):
        leases.start_in_child()


os.register_at_fork(after_in_child=_in_child)

"""Removing autoencoders that nobody uses: a directory is renamed away first and deleted then.

Killed in between, nothing is left that looks like a run. What somebody alive trains is held by its lease or by the
lock of its run directory, both of which are taken here first; what a trial was given a moment ago is told by its mark.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from calm_lightning.errors import SweepError
from sweeps.cache.inventory import FINISHED, INTERRUPTED, Entry, Uses
from sweeps.cache.records import LOCK, PRUNED_DIR, STAGE, USED, lease_name
from sweeps.trials.leases import Leases

JUST_USED_SECONDS = 600.0
"""A trial that was given an autoencoder so recently may be about to begin its language model."""
_DAY = 86400.0


@dataclass(frozen=True)
class Rules:
    """Which unused autoencoders to remove.

    Attributes:
        finished: Those that have finished.
        unfinished: Those whose training was interrupted.
        older_than_days: Only those last trained or used longer ago, in days; None for all.
    """

    finished: bool = True
    unfinished: bool = False
    older_than_days: float | None = None


def candidates(entries: Iterable[Entry], rules: Rules, now: float) -> list[Entry]:
    """Return the autoencoders that the rules remove.

    Damaged ones and directories that no run of ours is called like are left to people.

    Args:
        entries: All autoencoders.
        rules: Which to remove.
        now: Unix seconds.
    """
    states = {FINISHED} if rules.finished else set[str]()
    states |= {INTERRUPTED} if rules.unfinished else set()
    limit = now if rules.older_than_days is None else now - rules.older_than_days * _DAY
    return [one for one in entries if one.state in states and one.identity and not one.users and one.last_used <= limit]


def remove(work_dir: Path, entry: Entry, leases: Leases, uses: Uses) -> str:
    """Remove one autoencoder, unless somebody has come to need it.

    Args:
        work_dir: Directory that holds run directories.
        entry: The autoencoder.
        leases: Leases of `leases_directory(work_dir)`.
        uses: Which language models use which autoencoder; read again here.

    Returns:
        Why it was kept, "" where it was removed.

    Raises:
        SweepError: It is not known what some run uses, or the directory cannot be removed.
    """
    lease = leases.acquire(lease_name(entry.identity))
    if lease is None:
        holder = leases.holder(lease_name(entry.identity))
        return f"held by {holder.owner} ({holder.host}:{holder.pid})" if holder else "held by somebody"
    with lease:
        return _remove(work_dir, entry, leases, uses)


def _remove(work_dir: Path, entry: Entry, leases: Leases, uses: Uses) -> str:
    """Remove one autoencoder whose lease is held; see `remove`."""
    if not entry.run_dir.is_dir():
        return "it is gone already"
    with _locked(entry.run_dir) as free:
        if not free:
            return "another command is training it"
        uses.refresh()
        refuse_where_unknown(uses)
        users = uses.of(entry.run_dir, entry.identity)
        if users:
            return f"used by {users[0].name}"
        grave = work_dir / STAGE / PRUNED_DIR
        try:
            grave.mkdir(exist_ok=True)
            os.utime(grave)  # what the time is to the disk, whose times are compared
            with leases.alone():
                if _used_since(entry.run_dir, grave.stat().st_mtime - JUST_USED_SECONDS):
                    return "given to a trial within the last ten minutes"
                os.rename(entry.run_dir, grave / f"{entry.run_dir.name}.{os.getpid()}")
        except OSError as error:
            raise SweepError(f"{entry.run_dir} cannot be removed: {error.strerror}; make it writable") from None
    empty_grave(work_dir)
    return ""


def refuse_where_unknown(uses: Uses) -> None:
    """Check that every language model's run says which autoencoder it uses.

    Raises:
        SweepError: One does not.
    """
    if uses.unknown:
        raise SweepError(
            f"what {uses.unknown[0]} uses is not known, because its config.yaml or result.json is missing or damaged: "
            f"mend or delete that run, or wait if it is just being started"
        )


def empty_grave(work_dir: Path) -> None:
    """Delete what was renamed away, now or by a command that was killed.

    Raises:
        SweepError: Something cannot be deleted.
    """
    grave = work_dir / STAGE / PRUNED_DIR
    shutil.rmtree(grave, ignore_errors=True)  # another prune may be at it, too
    left = list(grave.iterdir()) if grave.is_dir() else []
    if left:
        raise SweepError(f"{left[0]} was renamed away but cannot be deleted: delete it by hand")


def _used_since(run_dir: Path, moment: float) -> bool:
    try:
        return (run_dir / USED).stat().st_mtime > moment
    except FileNotFoundError:
        return False


@contextmanager
def _locked(run_dir: Path) -> Iterator[bool]:
    """Hold the lock of a run directory, which training needs; yield whether it was to be had."""
    try:
        file = (run_dir / LOCK).open("a")
    except OSError as error:
        raise SweepError(f"{run_dir} cannot be removed: {error.strerror}; make it writable") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True

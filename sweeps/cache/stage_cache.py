"""The stage cache: autoencoders are trained once for all trials that need them, also when they start together.

Same identity, same autoencoder: a finished one is found under whatever name, and its run directory is used. Otherwise
whoever gets its lease trains it, and everybody else who needs it waits for that. When the one who trains dies, the next
one takes the lease over and continues from the checkpoint, because the same configuration finds the same run
directory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from calm_lightning.config import RunConfig
from sweeps.cache.records import (
    IDENTITY_IN_NAME,
    STAGE,
    FinishedRun,
    lease_name,
    mark_used,
    read_finished,
)
from sweeps.trials.leases import Holder, Leases

if TYPE_CHECKING:
    from sweeps.work.objective import Outcome

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


class Interrupted(KeyboardInterrupt):
    """Waiting for an autoencoder was interrupted; like Ctrl-C, it is no failure of the trial."""


class Place(Protocol):
    """Which run a configuration is, and where (`calm_lightning.run.RunPlace`)."""

    @property
    def run_dir(self) -> Path:
        """The run directory, whether it exists or not."""

    @property
    def identity(self) -> str:
        """SHA-256 of everything that changes the run's numbers."""


@dataclass(frozen=True)
class CacheUse:
    """How one trial came by its autoencoder.

    Attributes:
        identity: The autoencoder.
        run_dir: Its run directory.
        trained: Whether this call trained it, to the end at least; otherwise it was found, and its training saved.
        waited_seconds: How long this call waited for somebody else who trained it.
        train_flops: FLOPs of its training.
    """

    identity: str
    run_dir: Path
    trained: bool
    waited_seconds: float
    train_flops: float


class StageCache:
    """The autoencoders of a work directory.

    Args:
        work_dir: Directory that holds run directories.
        leases: Leases of `sweeps.cache.records.leases_directory(work_dir)`, which all sweeps of a work directory share.
        announce: Told in one sentence who is waited for, and who is replaced.
        locate: Says which run a configuration is; None is `calm_lightning.run.locate`.
        should_stop: Asked while waiting; True interrupts it.
    """

    def __init__(
        self,
        work_dir: Path,
        leases: Leases,
        announce: Callable[[str], None],
        locate: Callable[[RunConfig], Place] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._work_dir, self._leases, self._announce = work_dir, leases, announce
        self._locate, self._should_stop = locate, should_stop

    def obtain(self, config: RunConfig, train: Callable[[RunConfig], Outcome]) -> tuple[Outcome, CacheUse]:
        """Return a trained autoencoder: found, waited for, or trained by this call.

        Args:
            config: The autoencoder's configuration.
            train: Trains it, or continues it from its checkpoint. What it raises is passed on, and the next one who
                needs the autoencoder tries again.

        Raises:
            Interrupted: `should_stop` said so while this call waited.
            SweepError: The leases cannot be read or written.
        """
        place = self._place(config)
        began, pause, told = time.monotonic(), _FIRST_PAUSE, ""
        while (found := self._find(place)) is None:
            before = self._leases.holder(lease_name(place.identity))
            lease = self._leases.acquire(lease_name(place.identity))
            if lease is not None:
                with lease:
                    found = self._find(place)  # whoever held it until now may have finished it
                    if found is None:
                        if before is not None and not before.alive:
                            self._announce(f"{_who(before)} is gone: {place.run_dir.name} is continued here")
                        return self._train(config, place, train, time.monotonic() - began)
                break
            if self._should_stop():
                raise Interrupted(f"stopped while waiting for {place.run_dir.name}")
            if before is not None and before.alive and before.owner != told:
                told = before.owner
                self._announce(f"{place.run_dir.name} is being trained by {_who(before)}: waiting for it")
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE)
        return found, CacheUse(place.identity, found.run_dir, False, time.monotonic() - began, found.train_flops)

    def _place(self, config: RunConfig) -> Place:
        if self._locate is None:
            from calm_lightning.run import locate

            return locate(config)
        return self._locate(config)

    def _find(self, place: Place) -> FinishedRun | None:
        """Return the finished autoencoder, wherever in the work directory it is, marked as used; None otherwise."""
        others = sorted((self._work_dir / STAGE).glob(f"*-{place.identity[:IDENTITY_IN_NAME]}"))
        for run_dir in (place.run_dir, *(path for path in others if not path.name.startswith("."))):
            found = read_finished(run_dir, place.identity)
            if found is not None:
                with self._leases.alone():
                    if mark_used(run_dir):
                        return found
        return None

    def _train(
        self, config: RunConfig, place: Place, train: Callable[[RunConfig], Outcome], waited: float
    ) -> tuple[Outcome, CacheUse]:
        outcome = train(config)
        with self._leases.alone():
            mark_used(outcome.run_dir)
        # One that a user's own command finished meanwhile is found by `train` itself, which then says so.
        trained = not getattr(outcome, "reused", False)
        return outcome, CacheUse(place.identity, outcome.run_dir, trained, waited, outcome.train_flops)


def _who(holder: Holder) -> str:
    return f"{holder.owner} ({holder.host}:{holder.pid})"

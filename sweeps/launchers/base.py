"""The contract of launchers: start workers somewhere, say how they are, stop them.

A worker is a process that needs one thing only, the sweep's directory on a disk that it shares with the others
(`python -m sweeps.work DIRECTORY --name NAME`); it takes trials until none is left. Workers do not talk to their
launcher: they end with `EXIT_DONE` when there is nothing more to do and with `EXIT_LEFT` when they were asked to leave
(SIGTERM) and have saved their place. A launcher that dies takes its workers along or leaves them to the next one, and
never does either silently: a worker that loses its parent leaves as if asked to (`sweeps.launchers.process`), and a
job of a cluster is found again by the next launcher of the same sweep.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

STARTING, RUNNING, DONE, LEFT, DIED = "starting", "running", "done", "left", "died"
"""States of a worker. Of those that have ended, "done" found nothing more to do; "left" was asked to leave, by its
launcher, its cluster or its user; "died" is everything else. The last two can be replaced."""
ENDED = (DONE, LEFT, DIED)
EXIT_DONE, EXIT_LEFT = 0, 3
"""Exit status of a worker that is done, and of one that was asked to leave and has saved its place."""
PATIENCE_SECONDS = 120.0
"""For how long a worker that was asked to leave may take to finish its step and write its checkpoint."""
PROGRAM = ("-m", "sweeps.work")
"""What a Python interpreter is given to become a worker, before the sweep's directory and the worker's name."""


@dataclass(frozen=True)
class WorkerSettings:
    """What a launcher is asked for.

    Attributes:
        directory: The sweep's directory, absolute.
        count: Workers.
        cores: CPU cores of each; None leaves it to the launcher: `local` and `ray` share out what there is, the same
            number to each worker, and `slurm` asks for one.
        gpus: GPUs of each, fractions allowed; None leaves it to the launcher: `local` and `ray` share out what there
            is, and `slurm` asks for none.
        options: Further settings of one launcher, from `launch.options` of the sweep.
    """

    directory: Path
    count: int
    cores: int | None = None
    gpus: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def names(self, launcher: str) -> list[str]:
        """Return the names of the workers, "local-0" and so on."""
        return [f"{launcher}-{number}" for number in range(self.count)]


@dataclass(frozen=True)
class WorkerStatus:
    """One worker, as its launcher sees it.

    Attributes:
        name: Its name, unique within the launcher, for example "local-0".
        place: Where it is: "host:1234", "job 17 on node2"; "" before it is known.
        state: `STARTING`, `RUNNING`, `DONE`, `LEFT` or `DIED`.
        reason: Of one that left or died what is known about it: signal, exit status, last line of its log; of one
            that is starting what it waits for, if that is known; "" otherwise.
    """

    name: str
    place: str
    state: str
    reason: str = ""


class Launcher(Protocol):
    """Starts workers in one kind of place.

    Made with `WorkerSettings` and, for tests, a program in place of `PROGRAM`; making one starts nothing. Every method
    but `stop` returns within seconds, except that starting a cluster or reaching one may take half a minute.
    """

    def start(self) -> None:
        """Start all workers.

        Raises:
            SweepError: They cannot be started here: a package or a cluster is missing, or resources are not there.
                Nothing is left running then.
        """

    def poll(self) -> list[WorkerStatus]:
        """Return the state of every worker, in the order of their numbers."""

    def replace(self, name: str) -> None:
        """Start a worker anew under the same name after it has left or died; nothing happens to one that is alive.

        Raises:
            SweepError: It cannot be started.
        """

    def stop(self, *, now: bool, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """End the workers and return when they are gone. Ending those that are gone already does nothing.

        Args:
            now: False asks them to leave (SIGTERM: they save their place and give back their trial) and waits; True
                ends them at once.
            patience_seconds: How long to wait for those that were asked to leave, before ending them.
        """

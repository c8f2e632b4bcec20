"""The contract of launchers: start workers somewhere, say how they are, stop them.

A worker is a process that needs one thing only, the sweep's directory on a disk that it shares with the others
(`sweeps.work.worker.work`); it takes trials until none is left. Workers do not talk to their launcher: a launcher that
dies leaves its workers (or their trials) to the next one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

STARTING, RUNNING, DONE, DIED = "starting", "running", "done", "died"


@dataclass(frozen=True)
class WorkerSettings:
    """What a launcher is asked for.

    Attributes:
        directory: The sweep's directory, absolute.
        count: Workers.
        cores: CPU cores of each; None shares out those of the machine.
        gpus: GPUs of each, fractions allowed; None shares out those of the machine.
        options: Further settings of one launcher, from `launch.options` of the sweep.
    """

    directory: Path
    count: int
    cores: int | None = None
    gpus: float | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkerStatus:
    """One worker, as its launcher sees it.

    Attributes:
        name: Its name, unique within the launcher, for example "local-0".
        place: Where it is: "host:1234", "node 2", "job 17"; "" before it is known.
        state: STARTING, RUNNING, DONE (it left because there was nothing more to do) or DIED.
        reason: What is known of its death: signal, exit status, last line of its log; "" otherwise.
    """

    name: str
    place: str
    state: str
    reason: str = ""


class Launcher(Protocol):
    """Starts workers in one kind of place. Made with `WorkerSettings`; every method returns within seconds."""

    def start(self) -> None:
        """Start all workers.

        Raises:
            SweepError: They cannot be started here: a package or a cluster is missing, or resources are not there.
        """

    def poll(self) -> list[WorkerStatus]:
        """Return the state of every worker, in the order of their numbers."""

    def replace(self, name: str) -> None:
        """Start a worker anew under the same name after it has died."""

    def stop(self, *, now: bool) -> None:
        """End the workers and return when they are gone.

        Args:
            now: False asks them to leave (SIGTERM: they save their place and give back their trial) and waits; True
                ends them at once.
        """

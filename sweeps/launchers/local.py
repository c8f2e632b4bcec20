"""Workers as processes of this machine.

Each gets cores of its own (its CPU affinity), as many threads as cores, and its GPUs; workers end with the process that
started them. `launch.options` are not read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from sweeps.launchers.base import (
    DIED,
    LEFT,
    PATIENCE_SECONDS,
    PROGRAM,
    RUNNING,
    STARTING,
    WorkerSettings,
    WorkerStatus,
)
from sweeps.launchers.machine import CUDA_DEVICES, Machine, Share
from sweeps.launchers.process import WorkerProcess, end_with_parent, threads

__all__ = ["LocalLauncher", "end_with_parent"]


class LocalLauncher:
    """Starts workers on this machine.

    Args:
        settings: How many, and what each gets.
        program: What the Python interpreter is given to become a worker.
    """

    def __init__(self, settings: WorkerSettings, program: Sequence[str] = PROGRAM) -> None:
        self._settings, self._program = settings, tuple(program)
        self._names = settings.names("local")
        self._shares: dict[str, Share] = {}
        self._workers: dict[str, WorkerProcess] = {}

    def start(self) -> None:
        """See `Launcher.start`."""
        asked = self._settings
        shares = Machine.this().share_out(asked.count, asked.cores, asked.gpus)
        self._shares = dict(zip(self._names, shares, strict=True))
        try:
            for name in self._names:
                self._workers[name] = self._begin(name)
        except BaseException:
            self.stop(now=True)
            raise

    def poll(self) -> list[WorkerStatus]:
        """See `Launcher.poll`."""
        return [self._status(name) for name in self._names]

    def replace(self, name: str) -> None:
        """See `Launcher.replace`."""
        if self._status(name).state in (LEFT, DIED):
            self._workers[name] = self._begin(name)

    def stop(self, *, now: bool, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """See `Launcher.stop`."""
        workers = list(self._workers.values())
        if not now:
            for worker in workers:
                worker.leave()
            until = time.monotonic() + patience_seconds
            for worker in workers:
                worker.wait(max(0.0, until - time.monotonic()))
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.wait()

    def _begin(self, name: str) -> WorkerProcess:
        share = self._shares[name]
        environment = threads(share.threads)
        if share.gpus is not None:
            environment[CUDA_DEVICES] = share.gpus
        return WorkerProcess(self._settings.directory, name, self._program, environment, cores=share.cores)

    def _status(self, name: str) -> WorkerStatus:
        worker = self._workers.get(name)
        if worker is None:
            return WorkerStatus(name, "", STARTING)
        ending = worker.poll()
        if ending is None:
            return WorkerStatus(name, worker.place, RUNNING)
        return WorkerStatus(name, worker.place, ending.state, ending.reason)

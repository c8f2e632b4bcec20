"""What runs inside a job of Slurm: one worker, and the signals that reach it.

Slurm signals every process of a job, loaders of data included, and those would die of it. The signals below are
therefore blocked in the worker and in all it starts; the process here receives them and asks the worker, alone, to
leave (SIGTERM), or ends it. SIGUSR1 and SIGQUIT come from the launcher. SIGUSR2 comes from Slurm some time before the
job's time is over, or before it is preempted: then `submitit` has the same job queued again, which needs no launcher
that is still alive.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from sweeps.launchers.process import Ending, WorkerProcess
from sweeps.trials.processes import ProcessAddress

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

LEAVE_SIGNAL = signal.SIGUSR1
"""Asks a job's worker to leave without being queued again."""
KILL_SIGNAL = signal.SIGQUIT
"""Ends a job's worker at once."""
_NOT_FOR_WORKERS = (LEAVE_SIGNAL, KILL_SIGNAL, signal.SIGUSR2)
_LOOK_SECONDS = 1.0


class WorkerJob:
    """One worker as a job, given to `submitit`.

    Args:
        program: What the Python interpreter is given to become a worker.
        environment: Environment variables of the worker.
        launcher: Process without which the worker leaves; None lets it go on alone.
    """

    def __init__(
        self, program: Sequence[str], environment: dict[str, str], launcher: ProcessAddress | None = None
    ) -> None:
        self._program, self._environment, self._launcher = tuple(program), environment, launcher
        self._worker: WorkerProcess | None = None

    def __call__(self, directory: Path, name: str) -> Ending:
        """Run the worker, and return how it ended."""
        from submitit import JobEnvironment

        # A job that was queued again must not be judged by what it left behind the time before.
        JobEnvironment().paths.result_pickle.unlink(missing_ok=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_WORKERS)
        try:
            self._worker = worker = WorkerProcess(directory, name, self._program, self._environment)
            for number in (signal.SIGTERM, LEAVE_SIGNAL):
                signal.signal(number, self._leave)
            signal.signal(KILL_SIGNAL, self._kill)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            while (ending := worker.wait(_LOOK_SECONDS)) is None:
                if self._launcher is not None and self._launcher.is_gone():
                    worker.leave()
            return ending
        finally:
            worker.leave()

    def checkpoint(self, directory: Path, name: str) -> DelayedSubmission:
        """Have the worker leave, and return what is to run when the job begins again; called by `submitit`."""
        from submitit.helpers import DelayedSubmission

        if self._worker is not None:
            self._worker.leave()
            self._worker.hold_until_gone()
        return DelayedSubmission(WorkerJob(self._program, self._environment, self._launcher), directory, name)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        if self._worker is not None:
            self._worker.leave()

    def _kill(self, number: int, frame: FrameType | None) -> None:
        if self._worker is not None:
            self._worker.kill()

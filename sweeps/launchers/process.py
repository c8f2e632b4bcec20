"""A worker's process: started, watched and ended the same way on this machine, on a node of Ray and in a job of Slurm.

Each worker leads a session of its own, so a Ctrl-C in the terminal reaches the coordinator only, and what a worker
leaves behind (loaders of data, say) is found by its process group and ended with it. Its output is appended to
`workers/NAME.log` of the sweep.

No worker outlives its parent silently. The parent puts its process number into the worker's environment, and the
worker compares it with the kernel's (`end_with_parent`): when they differ, the parent is gone, and the worker leaves as
if it had been asked to. The kernel's own PR_SET_PDEATHSIG would fire when the *thread* that started the worker ends.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from calm_lightning.errors import SweepError
from sweeps.launchers.base import DIED, DONE, EXIT_DONE, EXIT_LEFT, LEFT, PATIENCE_SECONDS

PARENT = "CALM_PARENT"
"""Environment variable in which a worker finds the process that started it."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables that say how many threads a worker's numerical libraries start."""
_LOOK_SECONDS = 0.5
_TAIL_BYTES, _LONGEST_LINE = 8192, 300


@dataclass(frozen=True)
class Ending:
    """How a worker ended.

    Attributes:
        state: `DONE`, `LEFT` or `DIED`.
        reason: What is known of its death; "" where it is done.
    """

    state: str
    reason: str = ""


def log_path(directory: Path, name: str) -> Path:
    """Return where the output of a worker goes."""
    return directory / "workers" / f"{name}.log"


def threads(count: int) -> dict[str, str]:
    """Return the environment variables that keep a worker to a number of threads."""
    return dict.fromkeys(THREADS, str(count))


class WorkerProcess:
    """A worker that was started by this process, as its child.

    Args:
        directory: The sweep's directory.
        name: Name of the worker.
        program: What the Python interpreter is given before the sweep's directory and `--name NAME`.
        environment: Environment variables beside those of this process.
        cores: CPU cores that it may run on; None leaves it those of this process.
        where: Working directory; None, or one that is not there on this machine, leaves it that of this process.

    Raises:
        SweepError: It cannot be started.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        program: Sequence[str],
        environment: Mapping[str, str],
        *,
        cores: frozenset[int] | None = None,
        where: Path | None = None,
    ) -> None:
        self._log = log_path(directory, name)
        self._ending: Ending | None = None
        self._lock = threading.RLock()  # reentrant: signal handlers ask workers to leave
        command = [sys.executable, *program, str(directory), "--name", name]
        variables = {**os.environ, **environment, PARENT: str(os.getpid())}
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("ab") as log:
                self._begin = log.tell()
                with _on_cores(cores):
                    self._process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=variables,
                        cwd=where if where is not None and where.is_dir() else None,
                        start_new_session=True,
                    )
        except OSError as error:
            raise SweepError(f"worker {name} (log {self._log}) cannot be started: {error.strerror}") from None
        self.place = f"{socket.gethostname()}:{self._process.pid}"

    def poll(self) -> Ending | None:
        """Return how it ended, None while it is alive."""
        with self._lock:
            if self._ending is None:
                found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
                if found is not None:
                    self._ending = self._judge(found)
                    # Until it is reaped its number is not given to others, so this is its own group for sure.
                    self._signal_group()
                    self._process.wait()
            return self._ending

    def wait(self, seconds: float | None = None) -> Ending | None:
        """Return how it ended as soon as it has, or None after so many seconds."""
        until = None if seconds is None else time.monotonic() + seconds
        pause = 0.01
        while (ending := self.poll()) is None and (until is None or time.monotonic() < until):
            time.sleep(pause)
            pause = min(2 * pause, 0.2)
        return ending

    def leave(self) -> None:
        """Ask it to save its place and leave; one that was stopped (SIGSTOP) is continued so that it can."""
        with self._lock:
            if self._ending is None:
                os.kill(self._process.pid, signal.SIGTERM)
                os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it and everything it started, at once."""
        with self._lock:
            if self._ending is None:
                self._signal_group()

    def hold_until_gone(self) -> None:
        """Wait until it has ended; unlike `wait`, this may be called in a signal handler that interrupted anything."""
        with suppress(ChildProcessError):  # it was reaped already, and what it had left behind ended
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            self._signal_group()

    def _signal_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _judge(self, found: os.waitid_result) -> Ending:
        """Return what an exit status or a signal means."""
        status = found.si_status
        if found.si_code != os.CLD_EXITED and status == signal.SIGTERM:
            return Ending(LEFT, "asked to leave before it had begun")
        if found.si_code != os.CLD_EXITED:
            name = signal.Signals(status).name if status in set(signal.Signals) else f"signal {status}"
            memory = ", perhaps for want of memory" if status == signal.SIGKILL else ""
            return Ending(DIED, f"killed by {name}{memory}")
        if status == EXIT_DONE:
            return Ending(DONE)
        if status == EXIT_LEFT:
            return Ending(LEFT, "asked to leave, its place saved")
        return Ending(DIED, f"exit status {status}" + (f": {line}" if (line := self._last_line()) else ""))

    def _last_line(self) -> str:
        """Return the last line of its log that says anything; "" where it has said nothing since it was started."""
        try:
            with self._log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._begin, end - _TAIL_BYTES))
                lines = log.read().decode(errors="replace").split("\n")
        except OSError:
            return ""
        said = [line.strip() for line in lines if line.strip()]
        return said[-1][-_LONGEST_LINE:] if said else ""


@contextmanager
def _on_cores(cores: frozenset[int] | None) -> Iterator[None]:
    """Run on some CPU cores for a while: a child gets those of the thread that starts it, before it runs a line.

    Only this thread is moved, and only for as long as starting takes. Nothing has to run in the child between fork and
    exec (`preexec_fn`, which can deadlock where there are threads), and no worker can forget to move itself.
    """
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def end_with_parent(patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Have this worker leave when the process that started it dies, however that happens. Call it first of all.

    The worker then gets a SIGTERM, as when it is asked to leave, within a second; if it is still there
    `patience_seconds` later, SIGKILL. What it has started ends with it. Nothing happens in a process that no launcher
    started.

    Args:
        patience_seconds: How long leaving may take.
    """
    parent = os.environ.pop(PARENT, "")  # it says nothing true to this worker's own children
    if not parent:
        return
    orphaned = threading.Event()

    def end_group() -> None:
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)

    def at_exit() -> None:
        if orphaned.is_set():  # nobody is left to do it
            end_group()

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(_LOOK_SECONDS)
        orphaned.set()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(patience_seconds)
        end_group()

    atexit.register(at_exit)  # what is registered first comes last
    threading.Thread(target=watch, daemon=True, name="parent").start()

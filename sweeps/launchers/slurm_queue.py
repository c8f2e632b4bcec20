"""How jobs are, and signals to them: those of a Slurm cluster, and those of `submitit`'s stand-in on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sweeps.launchers.slurm_job import KILL_SIGNAL, LEAVE_SIGNAL

WAITING, AT_WORK, OVER, UNKNOWN = "waiting", "at work", "over", "unknown"
"""What a job does. "unknown" is what nobody could be asked about just now."""
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_AT_WORK = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT")
_ASK_SECONDS = 5.0
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class JobState:
    """One job at one moment.

    Attributes:
        phase: `WAITING`, `AT_WORK`, `OVER` or `UNKNOWN`.
        word: What Slurm calls it: "PENDING", "RUNNING", "OUT_OF_MEMORY"; "" for one that Slurm has forgotten.
        node: Where it runs or ran; "" where that is not known.
        why: Why it waits, in Slurm's word, "Resources" or "Priority"; "" otherwise.
    """

    phase: str
    word: str = ""
    node: str = ""
    why: str = ""


class Queue(Protocol):
    """Where jobs are."""

    def look(self, jobs: Sequence[Any], *, afresh: bool = False) -> dict[str, JobState]:
        """Return the state of jobs (those of `submitit`), by their ids; asks anew every few seconds, or at once."""

    def leave(self, jobs: Sequence[Any]) -> None:
        """Ask the jobs' workers to leave; those that wait for their turn are taken out."""

    def kill(self, jobs: Sequence[Any]) -> None:
        """End jobs at once."""


class SlurmQueue:
    """The queue of a Slurm cluster. Asks for all jobs at once, every few seconds, so that Slurm is not in the way."""

    def __init__(self) -> None:
        self._known: dict[str, JobState] = {}
        self._asked = float("-inf")
        self._killed: set[str] = set()

    def look(self, jobs: Sequence[Any], *, afresh: bool = False) -> dict[str, JobState]:
        """See `Queue.look`."""
        wanted = [str(job.job_id) for job in jobs]
        new = not set(wanted) <= self._known.keys()
        if wanted and (afresh or new or time.monotonic() - self._asked > _ASK_SECONDS):
            self._ask(wanted)
        return {job: self._known.get(job, JobState(UNKNOWN)) for job in wanted}

    def leave(self, jobs: Sequence[Any]) -> None:
        """See `Queue.leave`."""
        self._cancel(jobs, "--state=PENDING")
        self._cancel(jobs, _signal(LEAVE_SIGNAL))

    def kill(self, jobs: Sequence[Any]) -> None:
        """See `Queue.kill`."""
        # Slurm takes its own SIGKILL for a polite request first (SIGTERM, and as much as KillWait later SIGKILL). The
        # job as a whole is ended where that did not help: where there is no worker yet, only lines of `setup`.
        asked = [job for job in jobs if job.job_id in self._killed]
        self._killed |= {job.job_id for job in jobs}
        self._cancel(jobs, "--state=PENDING")
        self._cancel(jobs, _signal(KILL_SIGNAL))
        self._cancel(asked)

    def _ask(self, jobs: Sequence[str]) -> None:
        """Ask Slurm; where it does not answer, what was known remains."""
        command = ["squeue", "--noheader", "--states=all", "--format=%i|%T|%N|%r", f"--jobs={','.join(jobs)}"]
        answer = _run(command)
        self._asked = time.monotonic()
        # Slurm forgets jobs some minutes after their end, and calls the id invalid if it was the only one asked for.
        if answer is None or (answer.returncode and "Invalid job id" not in answer.stderr):
            return
        found = dict(_read(line) for line in answer.stdout.splitlines() if line.count("|") == 3)
        self._known = {job: found.get(job, JobState(OVER)) for job in jobs}

    @staticmethod
    def _cancel(jobs: Sequence[Any], *how: str) -> None:
        if jobs:
            _run(["scancel", "--quiet", *how, *(str(job.job_id) for job in jobs)])


class LocalQueue:
    """The jobs of `submitit`'s local executor: each is a process of this machine that starts another one."""

    def look(self, jobs: Sequence[Any], *, afresh: bool = False) -> dict[str, JobState]:
        """See `Queue.look`."""
        return {
            str(job.job_id): JobState(AT_WORK if job.state == "RUNNING" else OVER, job.state, os.uname().nodename)
            for job in jobs
        }

    def leave(self, jobs: Sequence[Any]) -> None:
        """See `Queue.leave`."""
        for job in jobs:
            with suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)

    def kill(self, jobs: Sequence[Any]) -> None:
        """See `Queue.kill`."""
        for job in jobs:
            for process in [int(job.job_id), *_descendants(int(job.job_id))]:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


def _signal(number: signal.Signals) -> str:
    return f"--signal={number.name.removeprefix('SIG')}"


def _read(line: str) -> tuple[str, JobState]:
    """Return the id and the state of a job from a line of `squeue`."""
    job, word, node, why = line.strip().split("|")
    phase = WAITING if word in _WAITING else AT_WORK if word in _AT_WORK else OVER
    return job, JobState(phase, word, node, "" if why == "None" else why)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    """Run a command of Slurm; None where it cannot be run or hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None


def _descendants(process: int) -> Iterable[int]:
    """Return the children of a process, theirs, and so on."""
    found: list[int] = []
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, listed.read_text(encoding="ascii").split())
    return [*found, *(below for child in found for below in _descendants(child))]

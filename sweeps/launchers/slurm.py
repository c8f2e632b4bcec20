"""Workers as jobs of a Slurm cluster, through `submitit`; its local executor serves for a dry run.

Each worker is one job. A job whose time is over, or that is preempted, has its worker leave and is queued again by
itself; a job that ends otherwise before its worker is done has died and is replaced. Jobs outlive the coordinator: the
next one finds them in `slurm/jobs.json` of the sweep's directory and goes on with those that are still there.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from calm_lightning.errors import SweepError
from sweeps.artifacts import write_whole
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
from sweeps.launchers.config import read_options
from sweeps.launchers.process import Ending, threads
from sweeps.launchers.slurm_job import WorkerJob
from sweeps.launchers.slurm_queue import AT_WORK, OVER, WAITING, JobState, LocalQueue, Queue, SlurmQueue
from sweeps.trials.processes import ProcessAddress

if TYPE_CHECKING:
    import submitit

SLURM, LOCAL = "slurm", "local"
JOBS = "jobs.json"
_REQUEUES = 1000
"""How often `submitit` lets a job run out of time: a sweep ends when its trials have, however many jobs that takes."""
_RESULT_SECONDS = 15.0
"""How long what a job has left behind may take to appear on a shared disk."""
_END_SECONDS = 60.0
_AGAIN_SECONDS, _PAUSE = 5.0, 1.0


@dataclass
class SlurmOptions:
    """`launch.options` of the launcher "slurm".

    Attributes:
        cluster: "slurm", or "local" for a dry run: the same jobs as processes of this machine, without Slurm. They
            get neither `setup` nor the resources asked for, and end with the coordinator.
        partition: Partition; null leaves it to Slurm, as with the following.
        account: Account.
        qos: Quality of service.
        constraint: Features that a node must have.
        exclude: Nodes to stay away from.
        time_minutes: Time limit of a job. At its end the worker leaves and the job is queued again.
        leave_seconds: How long before that the worker is asked to leave.
        mem_gb: Memory of a job, GB.
        setup: Lines of shell that run first in each job, for example "module load cuda".
        additional_parameters: Further arguments of `sbatch`, for example {reservation: name}.
    """

    cluster: str = SLURM
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    time_minutes: int = 240
    leave_seconds: int = 120
    mem_gb: float | None = None
    setup: list[str] = field(default_factory=list)
    additional_parameters: dict[str, Any] = field(default_factory=dict)


class SlurmLauncher:
    """Starts workers as jobs.

    Args:
        settings: How many, and what each gets.
        program: What the Python interpreter is given to become a worker.

    Raises:
        ConfigError: An unknown option.
        SweepError: `submitit` or Slurm's commands are missing, or the settings do not fit Slurm.
    """

    def __init__(self, settings: WorkerSettings, program: Sequence[str] = PROGRAM) -> None:
        self._settings, self._program = settings, tuple(program)
        self._options = read_options(SlurmOptions, settings.options)
        self._check()
        self._folder = settings.directory / "slurm"
        self._names = settings.names("slurm")
        self._queue: Queue = SlurmQueue() if self._options.cluster == SLURM else LocalQueue()
        self._jobs: dict[str, submitit.Job[Ending]] = {}
        self._endings: dict[str, Ending] = {}
        self._places: dict[str, str] = {}
        self._begun: set[str] = set()
        self._over_since: dict[str, float] = {}

    def start(self) -> None:
        """See `Launcher.start`."""
        self._adopt()
        try:
            for name in self._names:
                if name not in self._jobs:
                    self._submit(name)
        except BaseException:
            self.stop(now=True)
            raise

    def poll(self) -> list[WorkerStatus]:
        """See `Launcher.poll`."""
        return self._look()

    def replace(self, name: str) -> None:
        """See `Launcher.replace`."""
        status = self._look()[self._names.index(name)]
        if status.state in (LEFT, DIED):
            self._submit(name)

    def stop(self, *, now: bool, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """See `Launcher.stop`."""
        if not now:
            self._until_gone(self._queue.leave, patience_seconds)
        self._until_gone(self._queue.kill, _END_SECONDS)
        for name in self._alive():
            self._endings[name] = Ending(DIED, f"job {self._jobs[name].job_id} does not end: look at it with squeue")

    def _check(self) -> None:
        """Check that there is what this launcher needs.

        Raises:
            SweepError: There is not.
        """
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise SweepError("launcher slurm needs submitit: pip install 'calm-lightning[slurm]'") from None
        if self._options.cluster not in (SLURM, LOCAL):
            raise SweepError(f"launch.options.cluster={self._options.cluster} must be {SLURM} or {LOCAL}")
        missing = [command for command in ("sbatch", "srun", "squeue", "scancel") if shutil.which(command) is None]
        if missing and self._options.cluster == SLURM:
            raise SweepError(
                f"launcher slurm needs Slurm's commands, and there is no {missing[0]} here: run this on a login node "
                f"of the cluster, or try it without Slurm with launch.options.cluster=local"
            )
        if self._settings.gpus is not None and self._settings.gpus % 1:
            raise SweepError(
                f"Slurm gives whole GPUs to a job: launch.gpus={self._settings.gpus:g} must be 0, 1, 2, ..."
            )

    def _adopt(self) -> None:
        """Take over the jobs of a coordinator that is gone; those that are too many by now are asked to leave."""
        if self._options.cluster != SLURM:
            return
        import submitit

        try:
            known = json.loads((self._folder / JOBS).read_text(encoding="utf-8"))
            jobs = {str(name): submitit.SlurmJob[Ending](self._folder, str(job)) for name, job in known.items()}
        except (OSError, ValueError, AttributeError):
            return
        states = self._queue.look(list(jobs.values()), afresh=True)
        there = {name: job for name, job in jobs.items() if states[job.job_id].phase in (WAITING, AT_WORK)}
        self._jobs = {name: job for name, job in there.items() if name in self._names}
        self._queue.leave([job for name, job in there.items() if name not in self._names])

    def _submit(self, name: str) -> None:
        """Queue a job for a worker.

        Raises:
            SweepError: Slurm refuses it.
        """
        from submitit.core.utils import FailedJobError

        asked = self._settings
        launcher = ProcessAddress.own() if self._options.cluster == LOCAL else None
        work = WorkerJob(self._program, threads(asked.cores or 1), launcher)
        try:
            job = self._executor().submit(work, asked.directory, name)
        except (FailedJobError, OSError) as error:
            said = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise SweepError(f"Slurm does not take the job of worker {name}: {said[-1] if said else error}") from None
        self._endings.pop(name, None)
        self._places.pop(name, None)
        self._over_since.pop(name, None)
        self._begun.discard(name)
        self._jobs[name] = job
        ids = json.dumps({name: one.job_id for name, one in self._jobs.items()}, indent=2)
        write_whole(self._folder / JOBS, lambda path: path.write_text(ids, encoding="utf-8"))

    def _executor(self) -> submitit.AutoExecutor:
        import submitit

        options, cores = self._options, self._settings.cores or 1
        executor = submitit.AutoExecutor(self._folder, cluster=options.cluster, slurm_max_num_timeout=_REQUEUES)
        executor.update_parameters(
            name=f"calm-{self._settings.directory.name}",
            nodes=1,
            tasks_per_node=1,
            cpus_per_task=cores,
            gpus_per_node=int(self._settings.gpus or 0) or None,
            timeout_min=options.time_minutes,
            mem_gb=options.mem_gb,
            stderr_to_stdout=True,
            slurm_partition=options.partition,
            slurm_account=options.account,
            slurm_qos=options.qos,
            slurm_constraint=options.constraint,
            slurm_exclude=options.exclude,
            slurm_signal_delay_s=options.leave_seconds,
            slurm_setup=options.setup or None,
            slurm_additional_parameters=options.additional_parameters or None,
            # Since 22.05 `srun` does not take this from the job, and the worker would be kept on one core.
            slurm_srun_args=[f"--cpus-per-task={cores}"],
        )
        return executor

    def _look(self, *, afresh: bool = False) -> list[WorkerStatus]:
        states = self._queue.look([self._jobs[name] for name in self._alive()], afresh=afresh)
        return [self._status(name, states) for name in self._names]

    def _alive(self) -> list[str]:
        """Return the names of workers whose jobs are not known to be over."""
        return [name for name in self._jobs if name not in self._endings]

    def _status(self, name: str, states: dict[str, JobState]) -> WorkerStatus:
        job = self._jobs.get(name)
        if job is None:
            return WorkerStatus(name, "", STARTING)
        state = states.get(job.job_id, JobState(OVER))
        if state.node or name not in self._places:
            self._places[name] = f"job {job.job_id}" + (f" on {state.node}" if state.node else "")
        place = self._places[name]
        if name not in self._endings and state.phase == OVER:
            ending = self._judge(name, state)
            if ending is not None:
                self._endings[name] = ending
        if name in self._endings:
            return WorkerStatus(name, place, self._endings[name].state, self._endings[name].reason)
        if state.phase == AT_WORK:
            self._begun.add(name)
        if state.phase == WAITING or name not in self._begun:
            return WorkerStatus(name, place, STARTING, f"waits in the queue: {state.why}" if state.why else "")
        return WorkerStatus(name, place, RUNNING)

    def _judge(self, name: str, state: JobState) -> Ending | None:
        """Return how the worker of a job that is over ended; None while that may not have reached this machine yet."""
        from submitit.core.utils import UncompletedJobError

        job = self._jobs[name]
        if job.paths.result_pickle.exists():
            try:
                return job.result()
            except UncompletedJobError as error:
                trace = str(error).split("-" * 22)  # between two such lines, if it has one
                return Ending(DIED, f"job {job.job_id} failed: {_last_line(trace[min(1, len(trace) - 1)])}")
        since = self._over_since.setdefault(name, time.monotonic())
        if state.word in ("", "COMPLETED") and time.monotonic() - since < _RESULT_SECONDS:
            return None
        if state.word == "CANCELLED" and name not in self._begun:
            return Ending(LEFT, f"job {job.job_id} was cancelled before it began")
        said = _last_line(job.paths.stdout.read_text(errors="replace")) if job.paths.stdout.exists() else ""
        how = f"ended as {state.word}" if state.word else "is not known to Slurm any more"
        return Ending(DIED, f"job {job.job_id} {how}" + (f": {said}" if said else ""))

    def _until_gone(self, ask: Any, seconds: float) -> None:
        """Ask jobs to end, again and again, until they have or time is over."""
        until, again = time.monotonic() + seconds, 0.0
        while time.monotonic() < until:
            self._look(afresh=True)
            alive = self._alive()
            if not alive:
                return
            if time.monotonic() >= again:
                ask([self._jobs[name] for name in alive])
                again = time.monotonic() + _AGAIN_SECONDS
            time.sleep(_PAUSE)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-300:] if lines else ""

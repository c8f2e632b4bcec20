"""A worker: takes one trial after the other until none is left.

Workers need no coordinator. Each holds the lease of its trial; a trial whose worker died is free as soon as that is
noticed, and whoever takes it continues from its checkpoint, because the same configuration finds the same run
directory. A worker that finds nothing to take plans what comes next, or waits: others may die.
"""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from calm_lightning.config import RunConfig
from calm_lightning.metrics.names import ScorePoint
from calm_lightning.stages.watch import RunStopped
from sweeps.artifacts import CONFIG
from sweeps.cache.records import leases_directory
from sweeps.cache.stage_cache import Interrupted, StageCache
from sweeps.config import BRIER_LM, INFERENCE_FLOPS, TRAIN_FLOPS, load_sweep
from sweeps.directory import LEASES, Session, ask_to_stop, asked_to_stop, read_session
from sweeps.front.series import PRUNED, Series
from sweeps.launchers.base import EXIT_DONE, EXIT_LEFT
from sweeps.space.points import Point, PointMaker
from sweeps.trials.leases import Lease, Leases
from sweeps.trials.planner import Planner, planning
from sweeps.trials.record import AUTOENCODER, CACHE, REASON, SEED, VALUES, WORKER, TrialRecord, open_record
from sweeps.trials.storage import StorageAwayError, is_away
from sweeps.work.failures import keep_traceback, of_the_machine, reason
from sweeps.work.objective import Execute, Objective, Place
from sweeps.work.progress import tell
from sweeps.work.watcher import Finished, Pruned, Watcher, WorkerContext

NO_ROOM, HOPELESS = 4, 5
"""Further exit statuses: the disk is full; one trial after the other fails."""
_PAUSE, _LONGEST_PAUSE = 0.1, 2.0


@dataclass(frozen=True)
class Trade:
    """How runs are trained, found and read; tests bring a small trade of their own.

    Attributes:
        execute: Trains one run (`calm_lightning.run.execute`).
        locate: Says where a run is or will be (`calm_lightning.run.locate`).
        read_points: Reads the evaluations of a run directory (`calm_lightning.run.read_points`).
    """

    execute: Execute
    locate: Callable[[RunConfig], Place]
    read_points: Callable[[Path], tuple[ScorePoint, ...]]

    @classmethod
    def real(cls) -> Trade:
        """Return the platform's own."""
        from calm_lightning.run import execute, locate, read_points

        return cls(execute, locate, read_points)


class Worker:
    """One worker of a sweep.

    Args:
        directory: The sweep's directory.
        name: Name of the worker, unique among those alive.
        trade: How runs are trained.
        stop: Set by who wants the worker to leave.
    """

    def __init__(self, directory: Path, name: str, trade: Trade, stop: threading.Event) -> None:
        self.directory, self.name, self._trade, self._stop = directory, name, trade, stop
        self.sweep = load_sweep(directory / CONFIG)
        self.session: Session = read_session(directory)
        launch = self.sweep.launch
        beats = {"beat_seconds": launch.beat_seconds, "dead_after_seconds": launch.dead_after_seconds}
        self._leases = Leases(directory / LEASES, name, **beats)
        work_dir = Path(self.session.work_dir)
        cache = StageCache(
            work_dir,
            Leases(leases_directory(work_dir), f"{self.session.study}/{name}", **beats),
            announce=self._waits,
            locate=trade.locate,
            should_stop=self._leaving,
        )
        self._record: TrialRecord = open_record(
            directory, self.session.storage, self.session.study, self.sweep.objectives, create=False
        )
        maker = PointMaker(self.sweep, Path(self.session.corpus), work_dir, self.session.vocabulary)
        self._planner = Planner(maker, self._record)
        self._context = WorkerContext(
            self.sweep,
            directory,
            name,
            self.session.vocabulary,
            self._record,
            Finished(self._record),
            trade.read_points,
        )
        self._objective = Objective(
            trade.execute,
            trade.locate,
            cache,
            vocabulary=self.session.vocabulary,
            parent=self.session.parent,
            study=self.session.study,
        )

    def work(self) -> int:
        """Take trials until none is left.

        Returns:
            An exit status.
        """
        pause = _PAUSE
        while not self._leaving():
            trials = self._record.trials()
            if self._hopeless(trials):
                return HOPELESS
            claimed = self._claim(trials)
            if claimed is not None:
                pause = _PAUSE
                status = self._run(*claimed)
                if status is not None:
                    return status
            elif not self._plan():
                if all(trial.state.is_finished() for trial in self._record.trials()):
                    return EXIT_DONE
                tell(self.directory, self.name, "waiting")
                self._stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        return EXIT_LEFT

    def close(self) -> None:
        """Give back what is held."""
        self._leases.close()
        tell(self.directory, self.name, "left")

    def _leaving(self) -> bool:
        return self._stop.is_set() or asked_to_stop(self.directory)

    def _waits(self, what: str) -> None:
        print(what, flush=True)

    def _hopeless(self, trials: Sequence[FrozenTrial]) -> bool:
        """Return whether the last so many trials since the sweep was started have all failed; then all stop."""
        limit, before = self.sweep.stop_after_failures, set(self.session.ended)
        done = [trial for trial in trials if trial.state.is_finished() and trial.number not in before]
        last = sorted(done, key=lambda trial: (str(trial.datetime_complete), trial.number))
        failed = [trial.state == TrialState.FAIL for trial in last[-limit:]]
        if not limit or len(failed) < limit or not all(failed):
            return False
        ask_to_stop(
            self.directory,
            f"the last {limit} trials failed, the last one because of this: {last[-1].user_attrs.get(REASON, '')}",
        )
        return True

    def _plan(self) -> bool:
        """Add trials to the record, and return whether there were any to add."""
        with planning(self.directory, self._leaving) as held:
            if not held:
                return False
            self._record.refresh()
            return self._planner.plan(room=2 * max(1, self.sweep.launch.workers)) > 0

    def _claim(self, trials: Sequence[FrozenTrial]) -> tuple[FrozenTrial, Lease] | None:
        """Take the lease of a trial: first of those that a worker left behind, then of those that wait.

        Of those that wait, one whose autoencoder somebody is about to train comes last: there it would only wait.
        """
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
        without = [trial for trial in running if not (trial.user_attrs.get(CACHE) or {}).get("identity")]
        busy = {trial.user_attrs[AUTOENCODER] for trial in without} - {""}
        waiting.sort(key=lambda trial: trial.user_attrs[AUTOENCODER] in busy)
        for trial in (*running, *waiting):
            lease = self._leases.acquire(f"trial-{trial.number:06d}")
            if lease is None:
                continue
            if not self._record.trial(trial).state.is_finished():
                return trial, lease
            lease.release()
        return None

    def _run(self, trial: FrozenTrial, lease: Lease) -> int | None:
        """Train one trial and record what became of it; return an exit status if the worker has to leave."""
        deaths = self._record.begin(trial, self.name)
        if deaths > self.sweep.retries:
            last = trial.user_attrs.get(WORKER, "")
            self._record.fail(trial, f"its worker died {deaths} times, {last} last: perhaps for want of memory")
            lease.release()
            return None
        point = self._planner.maker.seeded(trial.user_attrs[VALUES], trial.user_attrs[SEED])
        watcher = Watcher(self._context, trial, point, lambda: self._leaving() or lease.lost.is_set())
        status: int | None = None
        try:
            tell(self.directory, self.name, "starting", trial.number)
            series = self._objective(point, trial.number, watcher)
            if lease.confirm():
                self._record.complete(trial, series, self._values(series))
        except Pruned as stopped:
            if lease.confirm():
                self._prune(trial, point, watcher, stopped)
        except (RunStopped, Interrupted, KeyboardInterrupt):
            status = self._give_back(trial, lease)
        except StorageAwayError:
            raise
        except Exception as error:
            if is_away(error):  # a storage that dies is waited for elsewhere; what got here is no fault of the trial
                raise
            status = self._fail(trial, lease, error)
        lease.release()
        gc.collect()  # trainers and tracebacks hold their tensors in cycles, which the next trial needs the room of
        return status

    def _give_back(self, trial: FrozenTrial, lease: Lease) -> int | None:
        """Leave a trial in good order; one that was lost belongs to somebody else by now."""
        if lease.lost.is_set() or not lease.confirm():
            return None
        self._record.give_back(trial)
        return EXIT_LEFT

    def _fail(self, trial: FrozenTrial, lease: Lease, error: Exception) -> int | None:
        if self._leaving():  # what ends a worker also ends its data loaders, which then look like the trial's own error
            return self._give_back(trial, lease)
        if of_the_machine(error, Path(self.session.work_dir)):
            self._give_back(trial, lease)
            print(f"{reason(error)}", file=sys.stderr, flush=True)
            return NO_ROOM
        if lease.confirm():
            keep_traceback(self.directory, trial.number, error)
            self._record.fail(trial, reason(error))
        return None

    def _prune(self, trial: FrozenTrial, point: Point, watcher: Watcher, stopped: Pruned) -> None:
        series = self._objective.series(
            point,
            trial.number,
            self._trade.read_points(watcher.run_dir),
            str(watcher.run_dir),
            watcher.autoencoder_dir,
            stopped.mlflow_run_id,
            state=PRUNED,
            reason=stopped.decision.reason,
        )
        why: dict[str, Any] = {f"pruning.{name}": value for name, value in stopped.decision.numbers.items()}
        self._record.prune(trial, series, self._values(series), why)

    def _values(self, series: Series) -> list[float]:
        """Return the objectives of a trial."""
        final = series.final
        found = {
            TRAIN_FLOPS: final.train_flops,
            INFERENCE_FLOPS: final.inference_flops_per_token,
            BRIER_LM: final.brier_lm,
        }
        return [found[name] for name in self.sweep.objectives]


def work(directory: Path, name: str, stop: threading.Event | None = None, trade: Trade | None = None) -> int:
    """Work on a sweep until nothing is left to do.

    Args:
        directory: The sweep's directory.
        name: Name of the worker.
        stop: Set by who wants the worker to leave; None makes SIGTERM, SIGINT and SIGUSR2 do so.
        trade: How runs are trained; None is the platform's own way.

    Returns:
        An exit status: `EXIT_DONE`, `EXIT_LEFT`, `NO_ROOM` or `HOPELESS`.

    Raises:
        SweepError: The sweep cannot be opened.
    """
    if stop is None:
        stop = threading.Event()
        leave = stop

        def handle(number: int, frame: FrameType | None) -> None:
            leave.set()

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, handle)
    tell(directory, name, "starting")
    worker = Worker(directory, name, trade or Trade.real(), stop)
    try:
        return worker.work()
    finally:
        worker.close()

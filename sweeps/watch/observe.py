"""From the record, the workers' own words and the journals of running runs to a snapshot."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from calm_lightning.errors import TrackingError
from calm_lightning.metrics import names
from calm_lightning.tracking.entries import by_step, read_journal
from calm_lightning.tracking.outbox.outbox import unsent
from sweeps.config import SweepConfig
from sweeps.directory import Session, asked_to_stop
from sweeps.front.series import Series, front_points
from sweeps.launchers.base import DIED, DONE, LEFT, RUNNING, STARTING, WorkerStatus
from sweeps.report.tables import front_numbers
from sweeps.trials.leases import Holder, Leases
from sweeps.trials.record import (
    CACHE,
    DEATHS,
    FORECAST,
    LABEL,
    REASON,
    SEED,
    STAGE,
    WORKER,
    TrialRecord,
    series_of,
)
from sweeps.watch import snapshot as views
from sweeps.watch.snapshot import CacheCounts, FrontPoint, Snapshot, TrialView, WorkerView
from sweeps.work.progress import Progress, read_progress

_STATES = {
    TrialState.WAITING: views.WAITING,
    TrialState.RUNNING: views.RUNNING,
    TrialState.COMPLETE: views.COMPLETE,
    TrialState.PRUNED: views.PRUNED,
    TrialState.FAIL: views.FAILED,
}

_DOING = {STARTING: views.STARTING, RUNNING: views.IDLE, DONE: views.LEFT, LEFT: views.LEFT, DIED: views.GONE}


_COUNT_UNSENT_EVERY_SECONDS = 10.0


class Observer:
    """Takes snapshots of a sweep; what has ended is read once.

    Args:
        directory: The sweep's directory.
        sweep: The sweep.
        session: Its session.
        record: Its trials.
        leases: The sweep's leases, for signs of life.
    """

    def __init__(
        self, directory: Path, sweep: SweepConfig, session: Session, record: TrialRecord, leases: Leases
    ) -> None:
        self._directory, self._sweep, self._session, self._record = directory, sweep, session, record
        self._leases = leases
        self.series: dict[int, Series] = {}
        self._drawn: tuple[int, tuple[tuple[FrontPoint, ...], float]] = (0, ((), 0.0))
        self._unsent = (-math.inf, 0)

    def look(self, statuses: Sequence[WorkerStatus] = ()) -> Snapshot:
        """Return the sweep as it is now.

        Args:
            statuses: Workers as their launcher sees them, where there is one.
        """
        self._record.refresh()
        trials = [trial for trial in self._record.trials() if not self._record.superseded(trial)]
        for trial in trials:
            if trial.number not in self.series and (found := series_of(trial)) is not None:
                self.series[trial.number] = found
        said = read_progress(self._directory)
        names = (_lease(one) for one in said if one.trial is not None)
        holders = {name: holder for name in names if (holder := self._leases.holder(name)) is not None}
        held = {one.trial: one for one in said if one.trial is not None and _holds(one, holders)}
        if len(self.series) != self._drawn[0]:
            self._drawn = (len(self.series), front_of(list(self.series.values())))
        points, volume = self._drawn[1]
        return Snapshot(
            study=self._session.study,
            title=self._sweep.title or self._sweep.name,
            directory=str(self._directory),
            taken=time.time(),
            planned=self._record.expected(self._session.planned),
            trials=tuple(self._view(trial, held.get(trial.number)) for trial in trials),
            workers=tuple(_workers(said, statuses, holders)),
            front=points,
            hypervolume=volume,
            cache=cache_counts(trials),
            stopping=asked_to_stop(self._directory),
            since=self._session.begun,
            unsent=self._waiting(),
        )

    def _waiting(self) -> int:
        """Return how many runs wait to be sent to MLflow; counted now and then, for it looks into all directories."""
        looked, waiting = self._unsent
        if self._session.parent and time.monotonic() - looked > _COUNT_UNSENT_EVERY_SECONDS:
            places = unsent(Path(self._session.work_dir))
            waiting = sum(place.parent == self._session.parent and not place.busy() for place in places)
            self._unsent = (time.monotonic(), waiting)
        return waiting

    def _view(self, trial: FrozenTrial, progress: Progress | None) -> TrialView:
        notes, series = trial.user_attrs, self.series.get(trial.number)
        step, flops, score, error, evaluated = 0, 0.0, None, 0.0, None
        if series is not None and series.points:
            final = series.final
            step, flops, score, error = final.step, final.train_flops, final.brier_lm, final.brier_lm_se
            evaluated = step
        elif progress is not None and progress.run_dir:
            step, flops, score, error, evaluated = _journal(Path(progress.run_dir), progress)
        return TrialView(
            number=trial.number,
            label=notes[LABEL],
            seed=notes[SEED],
            state=_STATES[trial.state],
            stage=progress.doing if progress else notes[STAGE] if series else "",
            step=step,
            max_steps=progress.max_steps if progress else step,
            train_flops=flops,
            budget_flops=float(notes.get(FORECAST) or 0.0),
            brier_lm=score,
            brier_lm_se=error,
            worker=progress.name if progress else notes.get(WORKER, "") if series else "",
            started=trial.datetime_start.timestamp()
            if trial.datetime_start and notes.get(WORKER) is not None
            else None,
            finished=trial.datetime_complete.timestamp() if trial.datetime_complete else None,
            attempts=int(notes.get(DEATHS, 0)) + (notes.get(WORKER) is not None),
            reason=notes.get(REASON, ""),
            reused_flops=_reused(trial),
            evaluated_step=evaluated,
        )


def front_of(series: Sequence[Series]) -> tuple[tuple[FrontPoint, ...], float]:
    """Return the front of all evaluations and its hypervolume below the largest cost so far."""
    points = tuple(
        FrontPoint(one.label, one.trial, point.train_flops, point.brier_lm, point.brier_lm_se)
        for one, point in front_points(series)
    )
    return points, front_numbers(series)["sweep/hypervolume"]


def cache_counts(trials: Sequence[FrozenTrial]) -> CacheCounts:
    """Return what the stage cache did for some trials."""
    notes = [trial.user_attrs[CACHE] for trial in trials if CACHE in trial.user_attrs]
    reused = [note for note in notes if not note["trained"]]
    return CacheCounts(len(notes) - len(reused), len(reused), sum(note.get("train_flops", 0.0) for note in reused))


def _reused(trial: FrozenTrial) -> float:
    """Return the FLOPs that a trial did not have to spend because its autoencoder was there."""
    note = trial.user_attrs.get(CACHE) or {}
    return 0.0 if note.get("trained", True) else float(note.get("train_flops", 0.0))


def _lease(progress: Progress) -> str:
    """Return the lease of the trial that a worker says it has."""
    return f"trial-{progress.trial:06d}"


def _holds(progress: Progress, holders: dict[str, Holder]) -> bool:
    holder = holders.get(_lease(progress))
    return holder is not None and holder.owner == progress.name


def _journal(run_dir: Path, progress: Progress) -> tuple[int, float, float | None, float, int | None]:
    """Return step, training FLOPs, BrierLM, its standard error and its step of a run that is being trained."""
    try:
        steps = by_step(read_journal(run_dir))
    except TrackingError:  # it may be rewritten at this very moment
        return 0, progress.before_flops, None, 0.0, None
    if not steps:
        return 0, progress.before_flops, None, 0.0, None
    step = max(steps)
    evaluated = [values for values in steps.values() if names.TRAIN_FLOPS_TOTAL in values]
    flops = max((values[names.TRAIN_FLOPS_TOTAL] for values in evaluated), default=progress.before_flops)
    scored = [step for step, values in steps.items() if names.BRIER_LM in values]
    if not scored:
        return step, flops, None, 0.0, None
    last = steps[scored[-1]]
    return step, flops, last[names.BRIER_LM], last[names.BRIER_LM_SE], scored[-1]


def _workers(
    said: Sequence[Progress], statuses: Sequence[WorkerStatus], holders: dict[str, Holder]
) -> Iterable[WorkerView]:
    known = {status.name: status for status in statuses}
    for one in said:
        status = known.pop(one.name, None)
        holder = holders.get(_lease(one)) if one.trial is not None else None
        dead = (status is not None and status.state == DIED) or (holder is not None and not holder.alive)
        yield WorkerView(
            name=one.name,
            place=one.place,
            trial=None if dead else one.trial,
            doing=views.GONE if dead else one.doing,
            silent_seconds=holder.silent_seconds if holder is not None else 0.0,
            reason=status.reason if status is not None else "",
        )
    for status in known.values():
        yield WorkerView(status.name, status.place, None, _DOING[status.state], 0.0, status.reason)

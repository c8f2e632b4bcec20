"""The Optuna study: a fixed list of trials that survives being killed.

The database says which points are done; the run directories hold how far the others came. A trial that a dead
process left behind is closed as failed and its point is queued again, and since the same configuration finds its
run directory, the new trial continues from the old one's checkpoint. There is no sampler at work: the grid is
complete, and Optuna contributes the record, the resumption and its own tools for looking at it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from calm_lightning.errors import SweepError
from sweeps.front.series import Series
from sweeps.space.points import Point, axes_of

POINT = "point"
SERIES = "series"
Train = Callable[[Point, int], Series]


def open_study(directory: Path, name: str) -> optuna.Study:
    """Open the study, or create it, with the objectives training FLOPs (minimised) and BrierLM (maximised).

    Args:
        directory: Where `study.db` (SQLite) lies; made if it is missing.
        name: Name of the study.

    Raises:
        SweepError: The database cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    database = directory.resolve() / "study.db"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.RDBStorage(f"sqlite:///{database.as_posix()}")
        return optuna.create_study(
            study_name=name,
            storage=storage,
            directions=["minimize", "maximize"],
            sampler=optuna.samplers.RandomSampler(seed=0),
            load_if_exists=True,
        )
    except Exception as error:  # SQLAlchemy's and SQLite's exceptions share no other base
        reason = " ".join(str(error).split())[:200]
        raise SweepError(f"the study database {database} cannot be opened ({reason}): mend or delete it") from None


def recover(study: optuna.Study) -> int:
    """Close trials that a dead process left running, as failed. Only the holder of the sweep lock may call this.

    Returns:
        How many there were.
    """
    stale = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in stale:
        study.tell(trial.number, state=TrialState.FAIL)
    return len(stale)


def completed(study: optuna.Study) -> dict[str, FrozenTrial]:
    """Return the completed trial of each point, by the point's slug."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return {trial.user_attrs[POINT]: trial for trial in done if SERIES in trial.user_attrs}


def enqueue_missing(study: optuna.Study, points: Sequence[Point]) -> int:
    """Queue a trial for every point that has neither a completed nor a waiting one.

    Returns:
        How many trials are waiting now.
    """
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    known = {*completed(study), *(trial.user_attrs[POINT] for trial in waiting)}
    for point in points:
        if point.slug not in known:
            study.enqueue_trial({"stage": point.stage, **point.values}, user_attrs={POINT: point.slug})
    return len(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def run_study(study: optuna.Study, points: Sequence[Point], train: Train, visit: Train | None = None) -> list[Series]:
    """Train what is missing.

    Args:
        study: The study; this process holds the sweep lock.
        points: Its points.
        train: Trains one point; what it raises closes the trial as failed and ends the study.
        visit: Called for completed points whose run still exists, so that their tracker can send what an outage
            kept back; nothing is trained there.

    Returns:
        The series of all points, in their order.
    """
    recover(study)
    enqueue_missing(study, points)
    by_slug, grid = {point.slug: point for point in points}, axes_of(points)
    stages = sorted({point.stage for point in points})
    if visit is not None:
        for slug, done in completed(study).items():
            if slug in by_slug and (Path(done.user_attrs[SERIES]["run_dir"]) / "result.json").is_file():
                visit(by_slug[slug], done.number)
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        trial = study.ask()
        try:
            point = by_slug[trial.user_attrs[POINT]]
            trial.suggest_categorical("stage", stages)
            for key in point.values:
                trial.suggest_categorical(key, grid[key])
            series = train(point, trial.number)
            trial.set_user_attr(SERIES, series.to_json())
            trial.set_user_attr("run_dir", series.run_dir)
            trial.set_user_attr("mlflow_run_id", series.mlflow_run_id)
            study.tell(trial, [series.final.train_flops, series.final.brier_lm])
        except BaseException:
            with contextlib.suppress(Exception):  # where this fails too, `recover` closes the trial next time
                study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            raise
    done_trials = completed(study)
    return [Series.from_json(done_trials[point.slug].user_attrs[SERIES]) for point in points]

"""A sweep read back from its directory: configuration, series, failures. Nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from optuna.trial import TrialState

from sweeps.artifacts import CONFIG
from sweeps.config import SweepConfig, load_sweep
from sweeps.directory import read_session
from sweeps.front.series import Series
from sweeps.trials.record import LABEL, REASON, SEED, TrialRecord, open_record, series_of
from sweeps.trials.storage import shown, storage_address


@dataclass(frozen=True)
class Failure:
    """One trial that has no result.

    Attributes:
        trial: Number of the trial.
        label: How tables call its model.
        seed: The seed of its runs.
        reason: What went wrong, one sentence.
    """

    trial: int
    label: str
    seed: int
    reason: str


@dataclass(frozen=True)
class SweepRecord:
    """What a sweep has so far.

    Attributes:
        directory: The sweep's directory.
        study: Name of the study.
        config: The resolved sweep.
        storage: Address of the Optuna storage, without its password.
        series: Complete and pruned trials, by number.
        failures: Failed trials that are not tried again, by number.
        unfinished: Trials that are still to come or to be completed.
    """

    directory: Path
    study: str
    config: SweepConfig
    storage: str
    series: tuple[Series, ...]
    failures: tuple[Failure, ...]
    unfinished: int


def open_trials(directory: Path) -> TrialRecord:
    """Open the trials of a sweep that exists.

    Raises:
        SweepError: The directory holds no sweep, or its storage cannot be opened.
    """
    sweep, session = load_sweep(directory / CONFIG), read_session(directory)
    return open_record(directory, session.storage, session.study, sweep.objectives, create=False)


def read_sweep(directory: Path) -> SweepRecord:
    """Read a sweep.

    Args:
        directory: The sweep's directory.

    Raises:
        SweepError: The directory holds no sweep, or its storage cannot be opened.
    """
    session = read_session(directory)
    sweep = load_sweep(directory / CONFIG)
    record = open_trials(directory)
    trials = record.trials()
    found = [series for trial in trials if (series := series_of(trial)) is not None]
    failures = [
        Failure(trial.number, trial.user_attrs[LABEL], trial.user_attrs[SEED], trial.user_attrs.get(REASON, "unknown"))
        for trial in trials
        if trial.state == TrialState.FAIL and not record.superseded(trial)
    ]
    return SweepRecord(
        directory=directory,
        study=session.study,
        config=sweep,
        storage=shown(storage_address(session.storage, directory)),
        series=tuple(found),
        failures=tuple(failures),
        unfinished=record.expected(session.planned) - len(found) - len(failures),
    )

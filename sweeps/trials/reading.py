"""A sweep read back from its directory: configuration, series, failures. Nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sweeps.config import SweepConfig
from sweeps.front.series import Series


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
        storage: Address of the Optuna storage.
        series: Complete and pruned trials, by number.
        failures: Failed trials, by number.
        unfinished: Trials that are still to come or to be completed.
    """

    directory: Path
    study: str
    config: SweepConfig
    storage: str
    series: tuple[Series, ...]
    failures: tuple[Failure, ...]
    unfinished: int

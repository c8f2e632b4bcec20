"""The record of a sweep's trials in an Optuna study.

One trial of the study is one point with one seed, from the moment it is planned to its result: a worker that dies
changes who works on it, never which trial it is, so an undisturbed sweep and one that was killed a hundred times leave
the same trials behind. Every write here may be repeated, because a storage can die between doing and answering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from calm_lightning.errors import SweepError
from sweeps.config import BRIER_LM
from sweeps.front.series import Series
from sweeps.trials.storage import open_storage, patiently, storage_address

KEY, POINT, SLUG, LABEL, SEED, VALUES, STAGE = "key", "point", "slug", "label", "seed", "values", "stage"
AUTOENCODER, FORECAST, DRAW = "autoencoder", "train_flops", "sampler"
WORKER, DEATHS, SERIES, REASON, CACHE = "worker", "deaths", "series", "reason", "cache"
"""Names of user attributes; optuna-dashboard shows them."""
_RETRIED, _EXHAUSTED = "retried", "exhausted"


@dataclass(frozen=True)
class Planned:
    """A trial that is to be.

    Attributes:
        key: Names the trial within its sweep: slug and seed.
        point: Number of its point, in the order in which points are drawn.
        slug: The point.
        label: How tables call it.
        seed: Seed of its runs.
        stage: "calm" or "baseline".
        values: Swept keys and their values.
        params: The same as Optuna stores them.
        distributions: Where they were drawn from.
        autoencoder: Names the autoencoder it needs, so that two trials with the same are not begun at once; "" none.
        train_flops: Training FLOPs that it will take, the autoencoder's included.
        draw: What the sampler noted with the draw, and needs to read again.
    """

    key: str
    point: int
    slug: str
    label: str
    seed: int
    stage: str
    values: dict[str, Any]
    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    autoencoder: str
    train_flops: float
    draw: dict[str, Any]


class TrialRecord:
    """The study of one sweep.

    Args:
        storage: The opened storage.
        study_id: The study's number there.
        name: Its name.
    """

    def __init__(self, storage: BaseStorage, study_id: int, name: str) -> None:
        self.storage, self.study_id, self.name = storage, study_id, name
        self._retried: frozenset[int] = frozenset()
        self.exhausted: int | None = None
        self.refresh()

    def study(self) -> optuna.Study:
        """Return the study as Optuna's own object, for its tools."""
        return patiently(lambda: optuna.load_study(study_name=self.name, storage=self.storage))

    def trials(self) -> list[FrozenTrial]:
        """Return all trials by number."""
        return patiently(lambda: self.storage.get_all_trials(self.study_id, deepcopy=False))

    def trial(self, trial: FrozenTrial) -> FrozenTrial:
        """Return a trial as it is now."""
        return patiently(lambda: self.storage.get_trial(trial._trial_id))

    def add(self, planned: Planned) -> None:
        """Add a trial whose key is not there. Only the holder of the planning lock may call this."""
        attributes = {
            KEY: planned.key,
            POINT: planned.point,
            SLUG: planned.slug,
            LABEL: planned.label,
            SEED: planned.seed,
            STAGE: planned.stage,
            VALUES: planned.values,
            AUTOENCODER: planned.autoencoder,
            FORECAST: planned.train_flops,
            DRAW: planned.draw,
        }
        template = create_trial(
            state=TrialState.WAITING,
            params=planned.params,
            distributions=planned.distributions,
            user_attrs=attributes,
        )
        tried = False

        def add() -> None:
            nonlocal tried
            again, tried = tried, True
            if again:  # it may have been added, and the answer lost
                there = self.storage.get_all_trials(self.study_id, deepcopy=False)
                if planned.key in {one.user_attrs[KEY] for one in there if not self.superseded(one)}:
                    return
            self.storage.create_new_trial(self.study_id, template)

        patiently(add)

    def retry_failed(self) -> int:
        """Have every trial that has failed so far tried again, as a trial of its own.

        Returns:
            How many there are.
        """
        failed = [trial.number for trial in self.trials() if trial.state == TrialState.FAIL]
        patiently(lambda: self.storage.set_study_user_attr(self.study_id, _RETRIED, failed))
        self._retried = frozenset(failed)
        return len(failed)

    def exhaust(self, point: int) -> None:
        """Note that the space holds no point of this number: nothing is left that may be trained."""
        patiently(lambda: self.storage.set_study_user_attr(self.study_id, _EXHAUSTED, point))
        self.exhausted = point

    def expected(self, planned: int) -> int:
        """Return how many trials there will be, as far as that is known.

        Args:
            planned: How many were meant to be when the sweep was started; 0 where there is no end.
        """
        there = sum(not self.superseded(trial) for trial in self.trials())
        return there if self.exhausted is not None else max(planned, there)

    def superseded(self, trial: FrozenTrial) -> bool:
        """Return whether a trial failed and is tried again as another one."""
        return trial.number in self._retried

    def refresh(self) -> None:
        """Read again which failed trials are tried again, and whether the space is exhausted."""
        attributes = patiently(lambda: self.storage.get_study_user_attrs(self.study_id))
        self._retried = frozenset(attributes.get(_RETRIED, ()))
        self.exhausted = attributes.get(_EXHAUSTED)

    def begin(self, trial: FrozenTrial, worker: str) -> int:
        """Note that a worker, which holds the trial's lease, has taken it.

        Args:
            trial: A waiting trial, or a running one whose worker left or died.
            worker: The worker's name.

        Returns:
            How many workers have died with it so far.
        """
        fresh = self.trial(trial)
        if fresh.state == TrialState.WAITING:
            patiently(lambda: self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING))
        deaths = int(fresh.user_attrs.get(DEATHS, 0)) + bool(fresh.user_attrs.get(WORKER))
        self.note(trial, {WORKER: worker} | ({DEATHS: deaths} if deaths else {}))
        return deaths

    def give_back(self, trial: FrozenTrial) -> None:
        """Note that the trial's worker left it in good order, its place saved."""
        self.note(trial, {WORKER: ""})

    def note(self, trial: FrozenTrial, attributes: Mapping[str, Any]) -> None:
        """Set user attributes of a trial that has not ended."""

        def write() -> None:
            for name, value in attributes.items():
                self.storage.set_trial_user_attr(trial._trial_id, name, value)

        patiently(write)

    def report(self, trial: FrozenTrial, step: int, value: float) -> None:
        """Store an intermediate value, for Optuna's pruners."""
        patiently(lambda: self.storage.set_trial_intermediate_value(trial._trial_id, step, value))

    def complete(self, trial: FrozenTrial, series: Series, values: Sequence[float]) -> None:
        """End a trial with its result."""
        self._end(trial, TrialState.COMPLETE, {SERIES: series.to_json()}, values)

    def prune(self, trial: FrozenTrial, series: Series, values: Sequence[float], why: Mapping[str, Any]) -> None:
        """End a trial that was stopped early; its evaluations stay.

        Args:
            trial: The trial.
            series: Its evaluations so far.
            values: Objectives at the last of them.
            why: The decision: attributes by name.
        """
        self._end(trial, TrialState.PRUNED, {SERIES: series.to_json(), REASON: series.reason, **why}, values)

    def fail(self, trial: FrozenTrial, reason: str) -> None:
        """End a trial without a result."""
        self._end(trial, TrialState.FAIL, {REASON: reason}, None)

    def _end(
        self, trial: FrozenTrial, state: TrialState, attributes: Mapping[str, Any], values: Sequence[float] | None
    ) -> None:
        def end() -> None:
            if self.storage.get_trial(trial._trial_id).state.is_finished():
                return  # done before, and the answer was lost
            try:
                for name, value in attributes.items():
                    self.storage.set_trial_user_attr(trial._trial_id, name, value)
                self.storage.set_trial_state_values(trial._trial_id, state, values)
            except UpdateFinishedTrialError:
                return

        patiently(end)


def open_record(
    directory: Path, storage: str, name: str, objectives: Sequence[str], create: bool = True
) -> TrialRecord:
    """Open the record of a sweep, or create it.

    Args:
        directory: The sweep's directory.
        storage: `SweepConfig.storage`.
        name: Name of the study.
        objectives: Names of its objectives, of `sweeps.config.OBJECTIVES`.
        create: Whether to create it where it is missing.

    Raises:
        SweepError: The storage cannot be opened, or the study is missing.
    """
    if create:
        directory.mkdir(parents=True, exist_ok=True)
    opened = open_storage(storage_address(storage, directory))
    directions = [StudyDirection.MAXIMIZE if one == BRIER_LM else StudyDirection.MINIMIZE for one in objectives]

    def find() -> int:
        known = {study.study_name: study._study_id for study in opened.get_all_studies()}
        if name in known or not create:
            return known.get(name, -1)
        try:
            made = opened.create_new_study(directions, name)
        except DuplicatedStudyError:
            return opened.get_study_id_from_name(name)
        opened.set_study_system_attr(made, "study:metric_names", list(objectives))
        return made

    study_id = patiently(find)
    if study_id < 0:
        raise SweepError(f"the storage holds no study {name}: run the sweep first (calm sweep run)")
    return TrialRecord(opened, study_id, name)


def series_of(trial: FrozenTrial) -> Series | None:
    """Return the evaluations of a complete or pruned trial, None for others."""
    found = trial.user_attrs.get(SERIES)
    if found is None or trial.datetime_complete is None:
        return None
    return replace(Series.from_json(found), finished=trial.datetime_complete.timestamp())

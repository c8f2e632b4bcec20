"""Samplers by name, and drawing one point with them.

Each draw is made in a small study in memory that holds the points so far, and with a generator seeded by the draw's
number. So a draw depends on what is known and on its number only, not on which process makes it, and a sweep may be
killed between any two draws. What a sampler notes with a trial (its generation, its optimiser's state) is kept with
the trial and given back to it. Nothing but finished means over seeds is shown to it: a sampler sees points, not trials.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from calm_lightning.errors import ConfigError
from sweeps.config import BRIER_LM, SamplerConfig
from sweeps.space.parameters import Parameter

GRID = "grid"
_SAMPLERS: dict[str, type[BaseSampler]] = {
    "random": RandomSampler,
    "qmc": QMCSampler,
    "tpe": TPESampler,
    "nsga2": NSGAIISampler,
    "gp": GPSampler,
    "cmaes": CmaEsSampler,
}
SAMPLERS = (GRID, *_SAMPLERS)
ADAPTIVE = ("tpe", "nsga2", "gp", "cmaes")
"""Samplers whose draws depend on results."""
_TRIES = 200
_QMC = "qmc:"


def quiet() -> None:
    """Have Optuna log errors only: what it does is in the record."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def make_sampler(config: SamplerConfig, number: int) -> BaseSampler:
    """Return the sampler for one draw.

    Args:
        config: Its name, seed and options.
        number: Number of the draw; with the seed it decides all randomness.

    Raises:
        ConfigError: The options are not the sampler's.
    """
    mixed = hashlib.sha256(f"{config.seed}:{number}".encode()).digest()
    options: dict[str, Any] = {"seed": int.from_bytes(mixed[:4], "big")}
    if config.name == "qmc":  # one sequence, of which every draw takes the next element
        options = {"seed": config.seed, "scramble": True, "warn_asynchronous_seeding": False}
    if config.name in ("qmc", "cmaes"):
        options["warn_independent_sampling"] = False
        options["independent_sampler"] = RandomSampler(seed=int.from_bytes(mixed[4:8], "big"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return _SAMPLERS[config.name](**options, **config.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"sampler.options={config.options} do not suit {config.name}: {error}") from None


@dataclass(frozen=True)
class Mirror:
    """A study in memory that holds the points so far.

    Attributes:
        study: The study.
        storage: Where it is kept.
    """

    study: optuna.Study
    storage: InMemoryStorage


def mirror(objectives: Sequence[str], past: Sequence[FrozenTrial], notes: Sequence[Mapping[str, Any]]) -> Mirror:
    """Return a study in memory that holds the points so far.

    Args:
        objectives: Names of the objectives.
        past: The points as trials, in the order of their draws.
        notes: What the sampler noted with each of them.
    """
    directions = [StudyDirection.MAXIMIZE if one == BRIER_LM else StudyDirection.MINIMIZE for one in objectives]
    storage = InMemoryStorage()
    study = optuna.create_study(directions=directions, storage=storage)
    study.add_trials(past)
    for note in notes:
        for name, value in note.get("study", {}).items():
            storage.set_study_system_attr(study._study_id, name, value)
    return Mirror(study, storage)


def draw(
    config: SamplerConfig,
    seen: Mirror,
    parameters: Sequence[Parameter],
    number: int,
    active: Callable[[Parameter, Mapping[str, Any]], bool],
    accept: Callable[[dict[str, Any]], bool],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]] | None:
    """Draw one point.

    Args:
        config: The sampler.
        seen: The points so far; rejected draws are added to them.
        parameters: The swept keys.
        number: Number of the draw.
        active: Whether a key is swept where those above it have some values.
        accept: Whether a point may be trained: it breaks no constraint, and is not there yet.

    Returns:
        Values, the same as Optuna stores them, and what the sampler noted; None where no acceptable point was found in
        `_TRIES` draws: the space is exhausted, or its constraints leave next to nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for attempt in range(_TRIES):
            seen.study.sampler = make_sampler(config, number * _TRIES + attempt)
            trial = seen.study.ask()
            values = _values(trial, parameters, active)
            if accept(values):
                return values, dict(trial.params), _notes(seen, trial)
            seen.study.tell(trial, state=TrialState.FAIL)
    return None


def _values(
    trial: Trial, parameters: Sequence[Parameter], active: Callable[[Parameter, Mapping[str, Any]], bool]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for parameter in parameters:
        if active(parameter, values):
            values[parameter.key] = parameter.suggest(trial)
    return values


def _notes(seen: Mirror, trial: Trial) -> dict[str, Any]:
    """Return what the sampler has to find again: its notes on the trial, and a sequence's position."""
    notes = seen.storage.get_study_system_attrs(seen.study._study_id)
    place = {name: value for name, value in notes.items() if name.startswith(_QMC)}
    found = {"trial": dict(seen.storage.get_trial(trial._trial_id).system_attrs), "study": place}
    return {name: value for name, value in found.items() if value}

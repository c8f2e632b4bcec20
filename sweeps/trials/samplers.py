"""Samplers by name, and drawing one point with them.

Each draw is made in a small study in memory that holds the points so far, and with a generator seeded by the draw's
number. So a draw depends on what is known and on its number only, not on which process makes it, and a sweep may be
killed between any two draws. What a sampler notes with a trial (its generation, its optimiser's state) is kept with
the trial and given back to it. Nothing but finished means over seeds is shown to it: a sampler sees points, not trials.
Sobol's sequence is SciPy's: Optuna's knows neither choices nor conditional keys.
"""

from __future__ import annotations

import hashlib
import math
import random
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
    RandomSampler,
    TPESampler,
)
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from calm_lightning.errors import ConfigError
from sweeps.config import BRIER_LM, SamplerConfig
from sweeps.space.parameters import Parameter

GRID, QMC = "grid", "qmc"
_SAMPLERS: dict[str, type[BaseSampler]] = {
    "random": RandomSampler,
    "tpe": TPESampler,
    "nsga2": NSGAIISampler,
    "gp": GPSampler,
    "cmaes": CmaEsSampler,
}
SAMPLERS = (GRID, QMC, *_SAMPLERS)
ADAPTIVE = ("tpe", "nsga2", "gp", "cmaes")
"""Samplers whose draws depend on results."""
_OWN_TRIES = 10
"""Proposals of a sampler that are rejected before chance takes over: a sampler that repeats itself would go on so."""
_TRIES = 200
_MOST_ENUMERATED = 5_000
"""Points of a finite space up to which the rest of it is looked through, one by one, before it counts as exhausted."""


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
    if config.name == "cmaes":
        options["warn_independent_sampling"] = False
        options["independent_sampler"] = RandomSampler(seed=int.from_bytes(mixed[4:8], "big"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return _SAMPLERS[config.name](**options, **config.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"sampler.options={config.options} do not suit {config.name}: {error}") from None


def mirror(objectives: Sequence[str], past: Sequence[FrozenTrial]) -> optuna.Study:
    """Return a study in memory that holds the points so far.

    Args:
        objectives: Names of the objectives.
        past: The points as trials, in the order of their draws.
    """
    directions = [StudyDirection.MAXIMIZE if one == BRIER_LM else StudyDirection.MINIMIZE for one in objectives]
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would tell of every study in memory
    study = optuna.create_study(directions=directions, storage=InMemoryStorage())
    study.add_trials(past)
    return study


@dataclass(frozen=True)
class Draw:
    """One point drawn.

    Attributes:
        values: Swept keys and their values.
        notes: What the sampler noted with it, and needs to read again.
    """

    values: dict[str, Any]
    notes: dict[str, Any]


def draw(
    config: SamplerConfig,
    past: optuna.Study,
    parameters: Sequence[Parameter],
    number: int,
    active: Callable[[Parameter, Mapping[str, Any]], bool],
    accept: Callable[[dict[str, Any]], bool],
) -> Draw | None:
    """Draw one point.

    Args:
        config: The sampler.
        past: A `mirror` of the points so far; rejected draws are added to it.
        parameters: The swept keys.
        number: Number of the draw.
        active: Whether a key is swept where those above it have some values.
        accept: Whether a point may be trained: it breaks no constraint, and is not there yet.

    Returns:
        The draw; None where no acceptable point is left, or none was found in `_TRIES` draws of an endless space.
    """
    if config.name == QMC:
        values = _sobol(config.seed, parameters, number, active)
        if accept(values):
            return Draw(values, {})
    else:
        for attempt in range(_OWN_TRIES):
            found = _propose(config, past, parameters, number * _TRIES + attempt, active, accept)
            if found is not None:
                return found
    chance = random.Random(f"{config.seed}:{number}")
    tries = _every_point(parameters, active)
    if tries is None:
        tries = [_chosen(parameters, active, lambda one: one.at(chance.random())) for _ in range(_TRIES)]
    chance.shuffle(tries)
    return next((Draw(values, {}) for values in tries if accept(values)), None)


def _propose(
    config: SamplerConfig,
    past: optuna.Study,
    parameters: Sequence[Parameter],
    number: int,
    active: Callable[[Parameter, Mapping[str, Any]], bool],
    accept: Callable[[dict[str, Any]], bool],
) -> Draw | None:
    """Return what Optuna's sampler proposes, None where that is not acceptable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        past.sampler = make_sampler(config, number)
        trial = past.ask()
        values = _chosen(parameters, active, lambda parameter: parameter.suggest(trial))
    if accept(values):
        return Draw(values, dict(past.get_trials(deepcopy=False)[trial.number].system_attrs))
    past.tell(trial, state=TrialState.FAIL)
    return None


def _chosen(
    parameters: Sequence[Parameter],
    active: Callable[[Parameter, Mapping[str, Any]], bool],
    choose: Callable[[Parameter], Any],
) -> dict[str, Any]:
    """Return a value of every key that is swept where those above it have theirs."""
    values: dict[str, Any] = {}
    for parameter in parameters:
        if active(parameter, values):
            values[parameter.key] = choose(parameter)
    return values


def _sobol(
    seed: int,
    parameters: Sequence[Parameter],
    number: int,
    active: Callable[[Parameter, Mapping[str, Any]], bool],
) -> dict[str, Any]:
    """Return one element of a scrambled Sobol sequence over all keys; those that are not swept there are passed over.

    Source: Owen, "Scrambling Sobol' and Niederreiter-Xing points", 1998, as SciPy has it.
    """
    from scipy.stats import qmc

    sequence = qmc.Sobol(len(parameters), scramble=True, rng=seed)
    if number:  # SciPy cannot pass over nothing
        sequence.fast_forward(number)
    place = dict(zip((parameter.key for parameter in parameters), sequence.random(1)[0], strict=True))
    return _chosen(parameters, active, lambda parameter: parameter.at(float(place[parameter.key])))


def _every_point(
    parameters: Sequence[Parameter], active: Callable[[Parameter, Mapping[str, Any]], bool]
) -> list[dict[str, Any]] | None:
    """Return all points of a small finite space, None of a large or an endless one."""
    size = math.prod(len(one.every_value()) for one in parameters if one.finite)
    if not all(one.finite for one in parameters) or size > _MOST_ENUMERATED:
        return None
    found: list[dict[str, Any]] = [{}]
    for one in parameters:
        longer = []
        for values in found:
            longer += [{**values, one.key: value} for value in one.every_value()] if active(one, values) else [values]
        found = longer
    return found

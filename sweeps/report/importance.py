"""Which of the chosen keys the results depend on: fANOVA, with a check that there is something to explain.

A random forest is fitted to the models, and the variance of its predictions is split by key (functional ANOVA): what
each key explains by itself, interactions left out, relative to the sum over keys. Importances sum to 1 whatever the
data, pure noise included. Therefore two more numbers go with them: the range over bootstrap resamples of the models,
and the share of the scores' variance that their standard errors do not explain,

    signal = 1 - mean(SE^2) / variance of the scores.

PED-ANOVA is not used: it asks what the best tenth of the models has in common, and with some ten models that is one.

Source: Hutter, Hoos, Leyton-Brown, "An efficient approach for assessing hyperparameter importance", ICML 2014.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from sweeps.report.comparisons import SWEEP, calm_models, free_keys, short, values_of
from sweeps.report.seeds import Model, complete

FEWEST = 8
"""Models below which nothing is said."""
PER_KEY = 3
"""Models for each key below which nothing is said."""
RESAMPLES = 8
MOST = 250
"""Models that a forest is fitted to at most; beyond, a random part of them is taken."""
TREES = 16
SEED = 0


@dataclass(frozen=True)
class Importance:
    """What one quantity depends on.

    Attributes:
        target: The quantity.
        shares: (key, importance, lowest and highest over resamples), the most important first; empty where nothing
            can be said.
        models: Models it was computed from.
        signal: Share of the variance that standard errors do not explain; None for costs, which have none.
        refusal: Why nothing can be said, one sentence; "" where something can.
        left_out: Keys that only some models have.
    """

    target: str
    shares: tuple[tuple[str, float, float, float], ...]
    models: int
    signal: float | None = None
    refusal: str = ""
    left_out: tuple[str, ...] = ()


def importances(models: Sequence[Model], sweep_of: dict[str, str]) -> list[Importance]:
    """Return what BrierLM, training FLOPs and inference FLOPs depend on.

    BrierLM is that of the last evaluation, models that were stopped early included with what they had reached.
    Training FLOPs are those of completely trained models. Costs are taken as logarithms.

    Args:
        models: The models; baselines are ignored.
        sweep_of: Name of the study by a model's slug.
    """
    calm = calm_models(models)
    keys = [key for key in free_keys(models, sweep_of) if key != SWEEP]
    whole = [model for model in calm if complete(model)]
    return [
        _of("BrierLM of the last evaluation", calm, keys, lambda model: model.final.score, noisy=True),
        _of("training FLOPs", whole, keys, lambda model: math.log10(model.final.train_flops)),
        _of("inference FLOPs per token", calm, keys, lambda model: math.log10(model.final.inference_flops_per_token)),
    ]


def _of(
    target: str, models: Sequence[Model], keys: Sequence[str], value: Callable[[Model], float], noisy: bool = False
) -> Importance:
    everywhere = [key for key in keys if all(model.setting(key) is not None for model in models)]
    varied = [key for key in everywhere if len(values_of(models, key)) > 1]
    left_out = tuple(key for key in keys if key not in everywhere)
    scores = np.array([value(model) for model in models])
    signal = None
    if noisy and len(models) > 1 and scores.var(ddof=1) > 0:
        signal = 1.0 - float(np.mean([model.final.se**2 for model in models]) / scores.var(ddof=1))
    refusal = _refusal(len(models), varied, scores, signal)
    if refusal:
        return Importance(target, (), len(models), signal, refusal, left_out)
    return Importance(target, _shares(models, varied, scores), len(models), signal, "", left_out)


def _refusal(count: int, keys: Sequence[str], scores: Any, signal: float | None) -> str:
    """Return why nothing can be said, "" where something can."""
    needed = max(FEWEST, PER_KEY * len(keys))
    if not keys:
        return "no chosen key has more than one value"
    if count < needed:
        return f"{count} models are too few for {len(keys)} keys: at least {needed} are needed"
    if np.ptp(scores) <= 1e-9 * max(1.0, float(np.abs(scores).max())):
        return "it is the same for all models"
    if signal is not None and signal <= 0:
        return "the models differ no more than their standard errors"
    return ""


def _shares(models: Sequence[Model], keys: Sequence[str], scores: Any) -> tuple[tuple[str, float, float, float], ...]:
    generator = np.random.default_rng(SEED)
    space = {key: _distribution([model.setting(key) for model in models]) for key in keys}
    rows = [{key: _plain(model.setting(key)) for key in keys} for model in models]
    part = generator.permutation(len(models))[:MOST]
    found = _fit(space, [rows[index] for index in part], scores[part])
    drawn: dict[str, list[float]] = {key: [] for key in keys}
    for _ in range(RESAMPLES):
        again = generator.choice(len(models), size=min(len(models), MOST))
        if np.ptp(scores[again]) > 0:
            for key, share in _fit(space, [rows[index] for index in again], scores[again]).items():
                drawn[key].append(share)
    ordered = sorted(keys, key=lambda key: -found[key])
    return tuple((key, found[key], *_range(found[key], drawn[key])) for key in ordered)


def _range(share: float, drawn: Sequence[float]) -> tuple[float, float]:
    return min([share, *drawn]), max([share, *drawn])


def _fit(space: dict[str, BaseDistribution], rows: Sequence[dict[str, Any]], scores: Any) -> dict[str, float]:
    """Return the importance of every key from a study in memory."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=SEED))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for row, score in zip(rows, scores, strict=True):
                study.add_trial(optuna.trial.create_trial(params=row, distributions=space, value=float(score)))
            evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=SEED)
            found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=list(space))
    finally:
        optuna.logging.set_verbosity(verbosity)
    return {key: float(share) for key, share in found.items()}


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """Return the range of numbers, or the choice of other values; numbers over a decade or more as logarithms."""
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return CategoricalDistribution(sorted({_plain(value) for value in values}, key=str))
    low, high = float(min(values)), float(max(values))
    return FloatDistribution(low, high, log=low > 0 and high / low >= 10)


def _plain(value: Any) -> Any:
    """Return a number as a float and anything else in a form that Optuna can compare."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return value if isinstance(value, (str, bool)) else json.dumps(value)


def in_words(found: Importance) -> str:
    """Return an importance as one sentence."""
    if found.refusal:
        return f"{found.target}: nothing is said about importance, since {found.refusal}."
    shares = ", ".join(f"{short(key)} {share:.2f} [{low:.2f}, {high:.2f}]" for key, share, low, high in found.shares)
    signal = ""
    if found.signal is not None:
        signal = f"; {100 * found.signal:.0f} % of the scores' variance lies beyond their standard errors"
    skipped = f"; left out, since only some models have them: {', '.join(found.left_out)}" if found.left_out else ""
    return f"{found.target}, {found.models} models: {shares}{signal}{skipped}."

"""Fit -> predictions: the score at a budget with its band, draws of it, and where K is best."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calm_lightning.errors import SweepError
from sweeps.scaling.curve import Curve
from sweeps.scaling.fitting import Fit, Range

Floats = NDArray[np.float64]
FARTHEST_FLOPS, FARTHEST_K, FARTHEST_SIZE = 10.0, 2.0, 3.0
"""Factors beyond what was observed up to which a prediction is made, marked as an extrapolation; then it is refused."""


@dataclass(frozen=True)
class Prediction:
    """The score that the law gives.

    Attributes:
        value: Median score over seeds, percent.
        low: Lower end of the law's 95 % band.
        high: Upper end.
        run_low: Lower end of the interval that holds the score of one new run with probability 95 %.
        run_high: Upper end.
        extrapolated: Whether FLOPs or K lie beyond what was observed.
    """

    value: float
    low: float
    high: float
    run_low: float
    run_high: float
    extrapolated: bool


def short(flops: float) -> str:
    """Return FLOPs with at most three digits, for example 1e14 or 2.35e13."""
    return f"{flops:.3g}".replace("e+", "e")


def predict(fit: Fit, flops: float, K: float, parameters: float | None = None) -> Prediction:
    """Return the score that the law gives at a budget.

    Args:
        fit: The law.
        flops: Training FLOPs, the autoencoder's included.
        K: Tokens per chunk; need not be whole.
        parameters: Parameters of the model; None takes those of the sweep's models of this K.

    Raises:
        SweepError: FLOPs, K or parameters lie too far beyond what was observed.
    """
    observed = _observed_flops(fit, K)
    _check(flops, observed, f"K = {K:g}")
    low, high = fit.Ks[0], fit.Ks[-1]
    if not low / FARTHEST_K <= K <= high * FARTHEST_K:
        raise SweepError(
            f"K = {K:g} lies too far from the observed {low} to {high}: ask for {low / FARTHEST_K:g} to "
            f"{high * FARTHEST_K:g}, or train it"
        )
    outside = not (observed[0] <= flops <= observed[1] and low <= K <= high)
    outside = _check_size(fit, parameters) or outside
    return _prediction(fit.curve, flops, K, parameters or _sizes_at(fit, K), outside)


def _check_size(fit: Fit, parameters: float | None) -> bool:
    """Return whether a size lies beyond what was observed, in a law where that matters.

    Raises:
        SweepError: It lies too far beyond.
    """
    if parameters is None or "p" not in fit.curve.law.terms:
        return False
    low, high = fit.sizes[0] * (1 - 1e-9), fit.sizes[1] * (1 + 1e-9)
    if not low / FARTHEST_SIZE <= parameters <= high * FARTHEST_SIZE:
        raise SweepError(
            f"{parameters:.3g} parameters lie too far from the observed {low:.3g} to {high:.3g}: ask for "
            f"{low / FARTHEST_SIZE:.3g} to {high * FARTHEST_SIZE:.3g}"
        )
    return not low <= parameters <= high


def predict_baseline(fit: Fit, flops: float) -> Prediction:
    """Return the score that the baseline's own law gives at a budget.

    Raises:
        SweepError: The baseline has no law, or the budget lies too far from it.
    """
    if fit.baseline is None:
        raise SweepError(fit.no_baseline)
    _check(flops, fit.baseline_flops, "the baseline")
    low, high = fit.baseline_flops
    return _prediction(fit.baseline, flops, 1.0, fit.baseline_parameters, not low <= flops <= high)


def _check(flops: float, observed: Range, what: str) -> None:
    low, high = observed[0] / FARTHEST_FLOPS, observed[1] * FARTHEST_FLOPS
    if not low <= flops <= high:
        raise SweepError(
            f"{short(flops)} training FLOPs lie too far from the {short(observed[0])} to {short(observed[1])} of "
            f"{what}: ask for {short(low)} to {short(high)}, or train with more FLOPs"
        )


def _observed_flops(fit: Fit, K: float) -> Range:
    """Return the FLOPs that a K was observed at, between two observed ones those in between."""
    known = np.log2(fit.Ks)
    ends = [np.log10([fit.flops[one][end] for one in fit.Ks]) for end in (0, 1)]
    low, high = (float(10 ** np.interp(math.log2(K), known, end)) for end in ends)
    return low * (1 - 1e-9), high * (1 + 1e-9)


def _sizes_at(fit: Fit, K: float) -> float:
    sizes = np.log10([fit.parameters[one] for one in fit.Ks])
    return float(10 ** np.interp(math.log2(K), np.log2(fit.Ks), sizes))


def _prediction(curve: Curve, flops: float, K: float, parameters: float, extrapolated: bool) -> Prediction:
    design = curve.design(np.array([flops]), np.array([K]), np.array([parameters]))
    values, errors = curve.expected(design)
    middle, error, quantile = float(values[0]), float(errors[0]), curve.quantile()
    tilt = curve.scatter.slope * (math.log10(flops) - curve.centre.x)
    run = math.sqrt(error**2 + curve.scatter.trial**2 + tilt**2 + curve.scatter.point**2)
    low, high, run_low, run_high = (10 ** (middle + quantile * half) for half in (-error, error, -run, run))
    return Prediction(10**middle, low, high, run_low, run_high, extrapolated)


def log_scores(fit: Fit, flops: Floats, K: int | None, parameters: float | None = None) -> Floats:
    """Return draws of log10 scores of a K, or of the baseline (None), at budgets, (draws, budgets).

    The same settings give the same draws, so that differences between K are those of one law.
    """
    curve = fit.curve if K is not None else fit.baseline
    if curve is None:
        raise SweepError(fit.no_baseline)
    size = parameters or (fit.parameters[K] if K is not None else fit.baseline_parameters)
    design = curve.design(flops, np.full_like(flops, K or 1.0), np.full_like(flops, size))
    return curve.law.value(_draws(fit, baseline=K is None), design)


def _draws(fit: Fit, baseline: bool = False) -> Floats:
    settings = fit.settings
    if baseline and fit.baseline is not None:
        return fit.baseline.draws(settings.draws, settings.seed + 1)
    return fit.curve.draws(settings.draws, settings.seed)


def optima(fit: Fit, flops: Floats) -> tuple[Floats, Floats]:
    """Return the best K of budgets between the observed ones: the estimate (budgets,) and draws (draws, budgets)."""
    centre = fit.curve.centre
    low, high = np.log2(fit.Ks[0]) - centre.k, np.log2(fit.Ks[-1]) - centre.k
    theta, drawn = np.array([fit.curve.theta]), _draws(fit)
    at = np.log10(flops) - centre.x
    best = np.array([fit.curve.law.best_k(theta, x, low, high)[0] for x in at])
    draws = np.stack([fit.curve.law.best_k(drawn, x, low, high) for x in at], axis=1)
    return 2 ** (best + centre.k), 2 ** (draws + centre.k)


def probabilities_best(fit: Fit, flops: Floats, parameters: float | None = None) -> tuple[Floats, Floats]:
    """Return for every observed K and budget the probability of being best and the expected loss, (K, budgets)."""
    scores = np.stack([log_scores(fit, flops, K, parameters) for K in fit.Ks])
    best = scores.max(axis=0)
    winners = scores >= best - 1e-12
    shares = winners / winners.sum(axis=0)
    return shares.mean(axis=1), (1 - 10 ** (scores - best)).mean(axis=1)

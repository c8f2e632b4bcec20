"""Two fronts compared: how far apart they lie, and what the one costs less at the same score.

Let c_X(s) be what BrierLM s costs on the front of a set X of models. Between two points of a front that follow each
other, log c is interpolated linearly in s, as learning curves run between two evaluations. Nothing is extrapolated:
below the first and above the last point of a front, c_X is not defined. Stepwise, c_X(s) is the cost of the cheapest
evaluation that scores at least s, also below the first point. It is the careful choice for what A can do, but it
charges B for scores that B need not reach, so both are given.

    saving of A against B at a level:    1 - c_A(s) / c_B(s)
    mean saving over levels [l, h]:      1 - 10^m,    m = 1 / (h - l) * integral of (log10 c_A - log10 c_B)(s) ds
    hypervolume:                         H_X = integral of max(0, log10 c_ref - log10 c_X(s)) ds, stepwise
    difference of hypervolumes:          H_A - H_B over one reference point, BrierLM 0 at the cost c_ref

The mean saving is that of the geometric mean of the cost ratios. Its levels are those that both fronts have: from the
higher one of their first scores to the lower one of their last scores; of every redraw, its own. Where one of the
fronts is a single point, that is its score alone.

Intervals come from redraws (`redraws.py`). A front is a maximum of noisy scores, so it lies above the true front, and a
redrawn front lies above the estimated one by about as much. Hypervolumes inherit this in full, which the basic interval
undoes; in ratios of costs it nearly cancels, and redraws centred on the estimate are best. Scores of all models are
measured on the same blocks, so their errors rise and fall together. In a comparison that cancels in part, and redraws
that are independent make intervals too wide rather than too narrow; a single hypervolume has nothing it could cancel
against, so there all models get the same draw for their evaluation's error. `benchmarks/bench_pareto_coverage.py`
measures all this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sweeps.front.intervals import Estimate, Kind, interval
from sweeps.front.redraws import Cloud, Floats, log_costs, reach, redraw, volumes

REDRAWS = 2000
"""How often scores are drawn anew."""
SEED = 20251027
VOLUME_INTERVAL: Kind = "basic"
SAVING_INTERVAL: Kind = "centred"
_LEVELS = 400
"""Levels of the score at which the integral is taken."""
_ENOUGH = 0.5
"""Part of the levels that a redraw must have on both fronts to count."""


@dataclass(frozen=True)
class Saving:
    """What A costs less than B at the same score.

    Attributes:
        share: 1 - c_A / c_B, so that 0.44 is 44 percent less; negative where A costs more.
        stepwise: The same without interpolation, None where one of the fronts does not come so high.
        low: Lowest level of the score, percent.
        high: Highest level; the same as `low` for a single one.
        log10_cost_a: What A pays, decimal logarithm of FLOPs, mean over the levels.
        log10_cost_b: What B pays.
        covered: Part of the redraws in which both fronts have these levels.
    """

    share: Estimate
    stepwise: float | None
    low: float
    high: float
    log10_cost_a: float
    log10_cost_b: float
    covered: float


def common_range(a: Cloud, b: Cloud, scores: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """Return the lowest and the highest score that both fronts have, (R,) each; NaN where there is none.

    Args:
        a: The points of A.
        b: The points of B.
        scores: Their scores, (R, P) each.
    """
    (first_a, last_a), (first_b, last_b) = reach(a, scores[0]), reach(b, scores[1])
    low, high = np.maximum(first_a, first_b), np.minimum(last_a, last_b)
    there = low <= high
    return np.where(there, low, np.nan), np.where(there, high, np.nan)


def levels_of(low: Floats, high: Floats) -> Floats:
    """Return levels of the score at the middles of equal parts of ranges, (R, L).

    Args:
        low: (R,) lower ends.
        high: (R,) upper ends.
    """
    parts = (np.arange(_LEVELS) + 0.5) / _LEVELS
    return np.asarray(low[:, None] + (high - low)[:, None] * parts)


def log_ratios(a: Cloud, b: Cloud, scores: tuple[Floats, Floats], levels: Floats, stepwise: bool = False) -> Floats:
    """Return the mean of log10 c_A - log10 c_B over levels, (R,); NaN where less than half of them are on both fronts.

    Args:
        a: The points of A.
        b: The points of B.
        scores: Their scores, (R, P) each.
        levels: Levels of the score, (R, L); one row stands for all redraws.
        stepwise: Do not interpolate.
    """
    of_a, of_b = (log_costs(one, drawn, levels, stepwise) for one, drawn in zip((a, b), scores, strict=True))
    ratios = of_a - of_b
    there = np.isfinite(ratios)
    counts = there.sum(axis=1)
    sums = np.where(there, ratios, 0.0).sum(axis=1)
    return np.where(counts >= _ENOUGH * levels.shape[-1], sums / np.maximum(counts, 1), np.nan)


def saving(a: Cloud, b: Cloud, span: tuple[float, float] | None = None, redraws: int = REDRAWS) -> Saving | None:
    """Return what A costs less than B at the same score, None where the fronts do not share these levels.

    Args:
        a: The points of A.
        b: The points of B; a model that is in A as well moves alike in both.
        span: Lowest and highest level, percent, equal for a single one; None takes those that both fronts have.
        redraws: How often scores are drawn anew.
    """

    def levels(scores: tuple[Floats, Floats]) -> Floats:
        if span is None:
            return levels_of(*common_range(a, b, scores))
        return levels_of(np.array([span[0]]), np.array([span[1]]))

    measured = a.score[None], b.score[None]
    own = levels(measured)
    value = float(log_ratios(a, b, measured, own)[0])
    if not np.isfinite(value):
        return None
    drawn_a, drawn_b = redraw([a, b], redraws, SEED)
    drawn = log_ratios(a, b, (drawn_a, drawn_b), levels((drawn_a, drawn_b)))
    there = np.isfinite(drawn)
    if not there.any():  # two single points of equal score: any error parts them
        return None
    lower, upper = interval(value, drawn[there], SAVING_INTERVAL)
    step = float(log_ratios(a, b, measured, own, stepwise=True)[0])
    ends = span or tuple(float(end[0]) for end in common_range(a, b, measured))
    paid = [float(np.nanmean(log_costs(one, one.score[None], own))) for one in (a, b)]
    return Saving(
        share=Estimate(1 - 10**value, 1 - 10**upper, 1 - 10**lower),
        stepwise=1 - 10**step if np.isfinite(step) else None,
        low=ends[0],
        high=ends[1],
        log10_cost_a=paid[0],
        log10_cost_b=paid[1],
        covered=float(there.mean()),
    )


def stepwise_saving(a: Cloud, b: Cloud, level: float) -> float | None:
    """Return the saving at a level without interpolation, None where one of the fronts does not come so high."""
    value = float(log_ratios(a, b, (a.score[None], b.score[None]), np.array([[level]]), stepwise=True)[0])
    return 1 - 10**value if np.isfinite(value) else None


def volume(cloud: Cloud, reference: float, redraws: int = REDRAWS) -> Estimate:
    """Return the hypervolume of a front with its interval, decades of cost times percent.

    Args:
        cloud: The points.
        reference: Cost that with BrierLM 0 is the reference point.
        redraws: How often scores are drawn anew.
    """
    value = float(volumes(cloud, cloud.score[None], reference)[0])
    (drawn,) = redraw([cloud], redraws, SEED, shared=1.0)
    low, high = interval(value, volumes(cloud, drawn, reference), VOLUME_INTERVAL)
    return _holding(value, max(0.0, low), high)


def volume_difference(a: Cloud, b: Cloud, reference: float, redraws: int = REDRAWS) -> Estimate:
    """Return the hypervolume of A minus that of B with its interval; arguments as for `volume`."""
    value = float((volumes(a, a.score[None], reference) - volumes(b, b.score[None], reference))[0])
    drawn_a, drawn_b = redraw([a, b], redraws, SEED)
    drawn = volumes(a, drawn_a, reference) - volumes(b, drawn_b, reference)
    return _holding(value, *interval(value, drawn, VOLUME_INTERVAL))


def _holding(value: float, low: float, high: float) -> Estimate:
    """Return an estimate whose interval reaches to it, which an interval that is corrected for bias need not do."""
    return Estimate(value, min(low, value), max(high, value))

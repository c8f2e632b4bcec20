"""What figures of two fronts draw: the interpolated front, its band, and the place of the saving."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sweeps.front.comparison import SEED, Saving
from sweeps.front.redraws import Cloud, Floats, log_costs, redraw
from sweeps.pareto.comparing import Side

_PLACES, _REDRAWS = 240, 1000
_SHOWN = 0.5
"""Part of redraws that must have a score at a cost for the band to be drawn there."""


@dataclass(frozen=True)
class FrontCurve:
    """A front as a curve, cost by cost.

    Attributes:
        cost: (L,) FLOPs.
        score: (L,) BrierLM that the interpolated front has there, percent.
        low: (L,) lower end of its 95 % interval, NaN where few redraws have a front.
        high: (L,) upper end.
    """

    cost: Floats
    score: Floats
    low: Floats
    high: Floats


def front_curve(cloud: Cloud) -> FrontCurve:
    """Return the front of some points with the band of its redraws, centred on it.

    It ends where its last point stands: more cost than that buys nothing that was measured.
    """
    (knots,) = _knots(cloud, cloud.score[None])
    places = np.unique(np.concatenate([np.linspace(knots[0][0], knots[0][-1], _PLACES), knots[0]]))
    own = np.interp(places, *knots)
    (scores,) = redraw([cloud], _REDRAWS, SEED)
    drawn = np.array([_at(places, *one) for one in _knots(cloud, scores)])
    enough = np.isfinite(drawn).mean(axis=0) >= _SHOWN
    low, middle, high = (np.full(len(places), np.nan) for _ in range(3))
    if enough.any():
        low[enough], middle[enough], high[enough] = np.nanquantile(drawn[:, enough], [0.025, 0.5, 0.975], axis=0)
    shift = own - middle
    return FrontCurve(10**places, own, np.maximum(low + shift, 0.0), high + shift)


def _knots(cloud: Cloud, scores_RP: Floats) -> list[tuple[Floats, Floats]]:
    """Return the points of fronts: decimal logarithms of costs, and scores."""
    best_RC = cloud.best_RC(scores_RP)
    rises_RC = np.diff(best_RC, axis=1, prepend=0.0) > 0
    return [(np.log10(cloud.costs[rises]), best[rises]) for best, rises in zip(best_RC, rises_RC, strict=True)]


def _at(places: Floats, costs: Floats, scores: Floats) -> Floats:
    """Return the scores at some costs; behind the last point its own, before the first one none."""
    return np.interp(places, costs, scores, left=np.nan) if len(costs) else np.full(len(places), np.nan)


def arrow(side: Side) -> tuple[float, float, float, Saving] | None:
    """Return where a saving is shown: (cost of B, cost of A, score, the saving), None where there is none.

    That of the score asked for, else the mean saving, drawn at the middle of its scores.
    """
    if side.at is not None:
        one = side.at
        return 10**one.log10_cost_b, 10**one.log10_cost_a, one.low, one
    if side.mean is None:
        return None
    level = np.array([(side.mean.low + side.mean.high) / 2])
    of_a, of_b = (float(log_costs(cloud, cloud.score[None], level)[0, 0]) for cloud in (side.a, side.b))
    return 10**of_b, 10**of_a, float(level[0]), side.mean

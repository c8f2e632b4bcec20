"""Scores drawn anew within their errors, and the fronts of every redraw.

A redraw moves all evaluations of one model by one draw of Student's t times their standard errors: they share weights
and texts, so their errors go together. The draws of different models are independent. Models are scored on the same
blocks, so that their errors in truth rise and fall together; `shared` lets a part of every evaluation's error be the
same draw for all models.

Arrays: R redraws, P points, C different costs, L levels of the score, G models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cloud:
    """All evaluations that may stand on the front of a set of models, by rising cost.

    Attributes:
        keys: What tells the models apart: the same key in two clouds is the same model.
        freedom: (G,) degrees of freedom of the models' standard errors; infinite for a normal distribution.
        owner: (P,) number of the model of each point.
        cost: (P,) FLOPs, above 0.
        score: (P,) BrierLM, percent.
        error: (P,) its standard error, percent.
        evaluation: (P,) the part of it that comes from the evaluation's texts, percent.
    """

    keys: tuple[str, ...]
    freedom: Floats
    owner: NDArray[np.intp]
    cost: Floats
    score: Floats
    error: Floats
    evaluation: Floats

    @cached_property
    def starts(self) -> NDArray[np.intp]:
        """(C,) where in the points each different cost begins."""
        return np.flatnonzero(np.concatenate(([True], np.diff(self.cost) > 0)))

    @property
    def costs(self) -> Floats:
        """(C,) the different costs."""
        return self.cost[self.starts]

    def best_RC(self, scores_RP: Floats) -> Floats:
        """Return the highest score to be had at each cost or below it; 0 where there is none above 0."""
        highest = np.maximum.reduceat(scores_RP, self.starts, axis=1)
        return np.maximum.accumulate(np.maximum(highest, 0.0), axis=1)


def student(generator: np.random.Generator, freedom: float, count: int) -> Floats:
    """Return draws of Student's t; of the normal distribution where freedom is infinite."""
    normal = generator.standard_normal(count)
    if not np.isfinite(freedom):
        return normal
    return np.asarray(normal / np.sqrt(generator.chisquare(freedom, count) / freedom))


def moves(freedoms: Sequence[float], count: int, seed: int) -> Floats:
    """Return the draws of some models, (R, G); the same every time.

    Args:
        freedoms: Degrees of freedom, one for each model.
        count: Redraws R.
        seed: Of the draws.
    """
    generator = np.random.default_rng(seed)
    return np.stack([student(generator, freedom, count) for freedom in freedoms], axis=1)


def redraw(clouds: Sequence[Cloud], count: int, seed: int, shared: float = 0.0) -> list[Floats]:
    """Return the redrawn scores of some clouds, (R, P) each; a model that is in several moves alike in all.

    Args:
        clouds: The clouds.
        count: Redraws R.
        seed: Of the draws.
        shared: Part of the variance of every evaluation's error that all models share, from 0 to 1.
    """
    freedom: dict[str, float] = {}
    for cloud in clouds:
        for key, value in zip(cloud.keys, cloud.freedom, strict=True):
            freedom[key] = min(float(value), freedom.get(key, math.inf))
    place = {key: number for number, key in enumerate(freedom)}
    own_RG = moves(list(freedom.values()), count, seed)
    common_R1 = np.random.default_rng([seed, 1]).standard_normal((count, 1))
    found = []
    for cloud in clouds:
        rest_P = np.sqrt(np.maximum(cloud.error**2 - shared * cloud.evaluation**2, 0.0))
        models = np.array([place[key] for key in cloud.keys])
        own_RP = own_RG[:, models[cloud.owner]]
        found.append(cloud.score + rest_P * own_RP + math.sqrt(shared) * cloud.evaluation * common_R1)
    return found


def volumes(cloud: Cloud, scores_RP: Floats, reference: float) -> Floats:
    """Return the hypervolumes of fronts, (R,), decades of cost times percent.

    Args:
        cloud: The points.
        scores_RP: Their scores.
        reference: Cost that with BrierLM 0 is the reference point.
    """
    rise_RC = np.diff(cloud.best_RC(scores_RP), axis=1, prepend=0.0)
    return np.asarray(rise_RC @ np.maximum(np.log10(reference / cloud.costs), 0.0))


def log_costs(cloud: Cloud, scores_RP: Floats, levels_RL: Floats, stepwise: bool = False) -> Floats:
    """Return what levels of the score cost on fronts, (R, L), decimal logarithm; NaN where a front does not reach them.

    Between two points of a front that follow each other, the logarithm of the cost is interpolated linearly in the
    score; below its first point and above its last one there is no cost. Stepwise, the cost is that of the cheapest
    point that scores at least so much.

    Args:
        cloud: The points.
        scores_RP: Their scores.
        levels_RL: Levels of the score, percent, above 0, or NaN; one row stands for all redraws.
        stepwise: Do not interpolate.
    """
    best_RC, cost_C = cloud.best_RC(scores_RP), np.log10(cloud.costs)
    rises_RC = np.diff(best_RC, axis=1, prepend=0.0) > 0
    all_levels_RL = np.broadcast_to(levels_RL, (len(scores_RP), levels_RL.shape[-1]))
    found = np.full(all_levels_RL.shape, np.nan)
    for row, (best, rises, levels) in enumerate(zip(best_RC, rises_RC, all_levels_RL, strict=True)):
        scores, costs = best[rises], cost_C[rises]
        if not len(scores):
            continue
        if stepwise:
            places = np.searchsorted(scores, levels)
            reached = places < len(scores)
            found[row, reached] = costs[places[reached]]
        else:
            known = np.isfinite(levels)  # where two fronts share no scores there are no levels
            found[row, known] = np.interp(levels[known], scores, costs, left=np.nan, right=np.nan)
    return found


def reach(cloud: Cloud, scores_RP: Floats) -> tuple[Floats, Floats]:
    """Return the scores of the first and of the last point of fronts, (R,) each; NaN where no score is above 0.

    Args:
        cloud: The points.
        scores_RP: Their scores.
    """
    best_RC = cloud.best_RC(scores_RP)
    above_RC = np.where(best_RC > 0, best_RC, np.inf)
    first_R, last_R = above_RC.min(axis=1), best_RC[:, -1]
    return np.where(last_R > 0, first_R, np.nan), np.where(last_R > 0, last_R, np.nan)

"""The Pareto rule: whether a trial can still contribute to the front of FLOPs and BrierLM. Pure functions.

A trial is stopped only if every evaluation so far lies under the front by more than the interval of the difference, and
its extrapolation, taken from the upper end of its interval and with all the growth that its past allows, stays below
the lower end of the front's interval everywhere up to its last step. `docs/pruning.md` has the formulas.

Shape suffixes: E evaluations of the trial, R evaluations of all other trials (rivals).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calm_lightning.metrics.names import ScorePoint
from sweeps.pruning.config import PruningConfig

Floats = NDArray[np.float64]


class Evaluation(NamedTuple):
    """One evaluation of another trial.

    Attributes:
        train_flops: Training FLOPs, the autoencoder's included.
        brier_lm: BrierLM, percent.
        brier_lm_se: Its standard error, percent.
    """

    train_flops: float
    brier_lm: float
    brier_lm_se: float


@dataclass(frozen=True)
class Decision:
    """Whether a trial is stopped.

    Attributes:
        stop: Whether it is.
        reason: Why, one sentence with the numbers.
        numbers: What the decision rests on, as far as it got; scores in percent, costs in training FLOPs.
    """

    stop: bool
    reason: str
    numbers: dict[str, float] = field(default_factory=dict)


class Rivals(NamedTuple):
    """Evaluations of other trials as arrays, (R,), by rising cost; what is not a number is left out.

    Attributes:
        cost: Training FLOPs, the autoencoder's included.
        score: BrierLM, percent.
        error: Its standard error, percent.
    """

    cost: Floats
    score: Floats
    error: Floats

    @classmethod
    def of(cls, others: Sequence[Evaluation] | Floats) -> Rivals:
        """Return evaluations, or their array (R, 3), in this form."""
        rows_R3 = np.asarray(others, dtype=np.float64).reshape(-1, 3)
        rows_R3 = rows_R3[np.isfinite(rows_R3[:, 0]) & np.isfinite(rows_R3[:, 1]) & (rows_R3[:, 2] >= 0)]
        rows_R3 = rows_R3[np.argsort(rows_R3[:, 0], kind="stable")]
        return cls(rows_R3[:, 0], rows_R3[:, 1], rows_R3[:, 2])

    def until(self, cost: float) -> Rivals:
        """Return the evaluations that cost no more."""
        count = int(np.searchsorted(self.cost, cost, side="right"))
        return Rivals(self.cost[:count], self.score[:count], self.error[:count])


class Curve(NamedTuple):
    """A trial's evaluations after some training as arrays, (E,); what is not a number is left out.

    Attributes:
        cost: Training FLOPs, the autoencoder's included, rising.
        stage: Training FLOPs of the language model alone.
        score: BrierLM, percent.
        error: Its standard error, percent; infinite where it is unknown.
        brier: Brier-1..4, percent, (E, 4).
        brier_error: Their standard errors, percent.
    """

    cost: Floats
    stage: Floats
    score: Floats
    error: Floats
    brier: Floats
    brier_error: Floats

    @classmethod
    def of(cls, points: Sequence[ScorePoint]) -> Curve:
        """Return evaluations in this form, without those of the untrained model."""
        trained = sorted((point for point in points if point.step > 0), key=lambda point: point.train_flops)
        rows = [(p.train_flops, p.stage_train_flops, p.brier_lm, p.brier_lm_se, *p.brier, *p.brier_se) for p in trained]
        rows_EC = np.asarray(rows, dtype=np.float64).reshape(-1, 12)
        rows_EC = rows_EC[np.isfinite(rows_EC[:, :3]).all(1) & (rows_EC[:, :2] > 0).all(1)]
        error_EC = rows_EC[:, [3, 8, 9, 10, 11]]
        error_EC[~(error_EC >= 0)] = np.inf
        unknown_E4 = ~np.isfinite(rows_EC[:, 4:8])
        rows_EC[:, 4:8][unknown_E4], error_EC[:, 1:][unknown_E4] = 0.0, np.inf
        return cls(rows_EC[:, 0], rows_EC[:, 1], rows_EC[:, 2], error_EC[:, 0], rows_EC[:, 4:8], error_EC[:, 1:])

    def until(self, count: int) -> Curve:
        """Return the first evaluations."""
        return Curve._make(values[:count] for values in self)


def decide(
    settings: PruningConfig,
    curve: Sequence[ScorePoint],
    final_flops: float,
    others: Sequence[Evaluation],
    finished: int,
) -> Decision:
    """Return whether a trial is to be stopped.

    Args:
        settings: Settings of the rule.
        curve: Its evaluations so far; those of step 0 are ignored.
        final_flops: Training FLOPs at its last step, the autoencoder's included.
        others: Evaluations of the trials that it competes with (`sweeps.pruning.rivals`), whatever became of them.
        finished: Trials among them that have ended.
    """
    return judge(settings, Curve.of(curve), final_flops, Rivals.of(others), finished)


def judge(settings: PruningConfig, own: Curve, final_flops: float, rivals: Rivals, finished: int) -> Decision:
    """Return the same for evaluations in array form."""
    rivals = rivals.until(final_flops)
    waiting = _too_early(settings, own, final_flops, rivals, finished)
    if waiting:
        return Decision(False, waiting)
    numbers = {
        "evaluations": float(len(own.cost)),
        "cost": float(own.cost[-1]),
        "brier_lm": float(own.score[-1]),
        "front": float(rivals.score[rivals.cost <= own.cost[-1]].max(initial=0.0)),
        "z_front": _quantile(settings, len(rivals.cost)),
        "z_trial": _quantile(settings, len(own.cost)),
    }
    judged_E = _fraction(own, final_flops) >= settings.warmup
    level_E = _level(own, rivals, numbers["z_front"])
    if (judged_E & (own.score > 0) & (level_E <= 0)).any():
        index = int(np.flatnonzero(judged_E & (own.score > 0) & (level_E <= 0))[-1])
        reason = f"BrierLM {own.score[index]:.3g} at {own.cost[index]:.3g} FLOPs is on the front or within its interval"
        return Decision(False, reason, numbers)
    return _reach(settings, own, final_flops, rivals, numbers)


def _too_early(settings: PruningConfig, own: Curve, final_flops: float, rivals: Rivals, finished: int) -> str:
    """Return why it is too early, or too late, to judge a trial; "" where it is not."""
    if finished < settings.min_finished:
        return f"{finished} trials are finished, fewer than {settings.min_finished}"
    judged = int((_fraction(own, final_flops) >= settings.warmup).sum()) if len(own.cost) else 0
    if judged < settings.min_evaluations:
        return (
            f"{judged} evaluations after {100 * settings.warmup:.0f} % of its training, "
            f"fewer than {settings.min_evaluations}"
        )
    if not own.cost[-1] < final_flops < math.inf:
        return f"its training ends at {final_flops:.3g} FLOPs: nothing is left to save"
    if not (rivals.cost <= own.cost[-1]).any():
        return f"no other trial has been evaluated at {own.cost[-1]:.3g} FLOPs or less"
    return ""


def _fraction(own: Curve, final_flops: float) -> Floats:
    """Return which fraction of its own training each evaluation comes after, (E,)."""
    autoencoder = own.cost[-1] - own.stage[-1]
    return own.stage / max(final_flops - autoencoder, own.stage[-1])


def _quantile(settings: PruningConfig, count: int) -> float:
    """Return the normal quantile of a one-sided interval that holds for `count` scores at once (Bonferroni)."""
    return NormalDist().inv_cdf(1 - (1 - settings.confidence) / max(count, 1))


def _level(own: Curve, rivals: Rivals, z: float) -> Floats:
    """Return by how much each evaluation lies under some rival beyond the interval of their difference, (E,).

    Every rival that cost no more is compared, with z for all of them at once: the front is the largest of many noisy
    scores and so too high, but if the trial is truly not below any of them, all comparisons together find a positive
    level only with probability 1 - confidence.
    """
    error_ER = np.hypot(own.error[:, None], rivals.error[None, :])
    level_ER = rivals.score[None, :] - own.score[:, None] - z * error_ER
    level_ER = np.where(rivals.cost[None, :] <= own.cost[:, None], level_ER, -np.inf)
    return level_ER.max(axis=1, initial=-np.inf)


def _reach(
    settings: PruningConfig, own: Curve, final_flops: float, rivals: Rivals, numbers: dict[str, float]
) -> Decision:
    """Return whether the extrapolation stays below the front up to the end.

    The front is a step function that rises at rivals' costs, and the extrapolation rises in between: it is enough to
    look just before each step, and at the end.
    """
    cost, stage = float(own.cost[-1]), float(own.stage[-1])
    upper, growth = extrapolation(settings, own, numbers["z_trial"])
    best_R = np.maximum.accumulate(rivals.score - numbers["z_front"] * rivals.error)
    ahead_P = rivals.cost[rivals.cost > cost]
    places_P = np.append(ahead_P, final_flops)
    known_P = np.append(np.searchsorted(rivals.cost, ahead_P, side="left"), len(rivals.cost))
    front_P = best_R[known_P - 1]
    reach_P = upper * (1 + (places_P - cost) / stage) ** growth
    with np.errstate(over="ignore"):  # a front that may be at 0 is reached by a factor without bound
        nearest = int(np.argmax(reach_P / np.maximum(front_P, np.finfo(np.float64).tiny)))
    place, reach, front = (float(values_P[nearest]) for values_P in (places_P, reach_P, front_P))
    numbers |= {"upper": upper, "growth": growth, "place": place, "reach": reach, "front_lower": front}
    grown = (
        f"growing from BrierLM {upper:.3g} as FLOPs^{growth:.2f} it reaches at most {reach:.3g} by {place:.3g} FLOPs, "
        f"where the front is at least {front:.3g}"
    )
    if not reach < front:
        return Decision(False, f"it may still reach the front: {grown}", numbers)
    now = f"last {own.score[-1]:.3g} against {numbers['front']:.3g} at {cost:.3g} FLOPs"
    return Decision(True, f"every evaluation lies under the front beyond its interval ({now}), and {grown}", numbers)


def extrapolation(settings: PruningConfig, own: Curve, z: float) -> tuple[float, float]:
    """Return where an optimistic extrapolation starts, and the exponent with which it grows.

    It assumes that log BrierLM is concave in the log of the language model's training FLOPs, as it is for power laws,
    saturating curves, sigmoids in log FLOPs and late starts alike: then growth between any earlier evaluation and the
    last one bounds all growth that is to come. Each such exponent is taken from the lower end of the earlier interval
    to the upper end of the last one, and the smallest counts; an evaluation whose interval holds 0 bounds nothing.

    Args:
        settings: Settings of the rule.
        own: The trial's evaluations, at least one.
        z: Quantile of its intervals.

    Returns:
        BrierLM at the last evaluation, percent, upper end; the exponent.
    """
    error_E = np.hypot(own.error, settings.training_noise * own.score)
    parts = np.clip(own.brier[-1] + z * own.brier_error[-1], 0.0, None)
    # Where one of Brier-1..4 is not positive BrierLM is 0, whatever the others say: their upper ends say more.
    by_parts = float(np.prod(parts) ** 0.25) if np.isfinite(parts).all() else math.inf
    upper = max(float(own.score[-1] + z * error_E[-1]), by_parts)
    lower_E = (own.score - z * error_E)[:-1]
    earlier_E = (lower_E > 0) & (own.stage[:-1] < own.stage[-1])
    if not (earlier_E.any() and math.isfinite(upper)):
        return max(upper, settings.noise_floor), settings.steepest_growth
    time_E = np.log(own.stage[-1] / own.stage[:-1][earlier_E])
    risen_E = np.log(max(upper, np.finfo(np.float64).tiny) / lower_E[earlier_E])
    growth = np.clip(settings.optimism * (risen_E / time_E).min(), settings.least_growth, settings.steepest_growth)
    return max(upper, settings.noise_floor), float(growth)

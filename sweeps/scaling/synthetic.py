"""Sweeps from a known law: what the fit is held against, and what a planned sweep could show.

Trials stand above or below the law as whole curves, rise faster or slower, wander a little, and are read with error,
as trained models do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calm_lightning.metrics.names import ScorePoint
from sweeps.front.series import COMPLETE, PRUNED, Series


@dataclass(frozen=True)
class Truth:
    """A known law and the scatter around it.

    Attributes:
        a: log10 BrierLM at the centre.
        b: Per decade of training FLOPs.
        c: Per doubling of K.
        d: Per squared doubling of K.
        e: Per decade and doubling.
        f: Per decade of parameters.
        ceiling: Ceiling of the score, percent; None for a power law.
        centre_flops: FLOPs of the centre.
        centre_chunk: K of the centre, tokens per chunk.
        centre_parameters: Parameters of the centre.
        trial: Standard deviation between trials, log10.
        slope: Standard deviation between trials of the rise per decade.
        point: Standard deviation of single evaluations beyond their errors, log10.
        error: Relative standard error of a score.
        floor: Standard error that no score falls below, percent.
    """

    a: float = 0.6
    b: float = 0.35
    c: float = 0.02
    d: float = -0.04
    e: float = 0.03
    f: float = 0.0
    ceiling: float | None = None
    centre_flops: float = 1e14
    centre_chunk: float = 2.0**1.5
    centre_parameters: float = 3e6
    trial: float = 0.03
    slope: float = 0.02
    point: float = 0.01
    error: float = 0.05
    floor: float = 0.0

    def score(self, flops: float, K: float, parameters: float | None = None) -> float:
        """Return the score that the law gives, percent."""
        x, k = np.log10(flops / self.centre_flops), np.log2(K / self.centre_chunk)
        p = np.log10((parameters or self.centre_parameters) / self.centre_parameters)
        power = 10 ** (self.a + self.b * x + self.c * k + self.d * k * k + self.e * x * k + self.f * p)
        return float(power if self.ceiling is None else 1 / (1 / power + 1 / self.ceiling))

    def best_K(self, flops: float) -> float:
        """Return the K of highest score."""
        x = np.log10(flops / self.centre_flops)
        return float(self.centre_chunk * 2 ** (-(self.c + self.e * x) / (2 * self.d)))


def trial(
    truth: Truth,
    K: int | None,
    seed: int,
    flops: Sequence[float],
    random: np.random.Generator,
    parameters: int = 3_000_000,
    state: str = COMPLETE,
) -> Series:
    """Return one trial.

    Args:
        truth: The law.
        K: Tokens per chunk; None makes a baseline that follows the law at K = 1.
        seed: What its label says.
        flops: Training FLOPs of its evaluations, rising.
        random: Source of its scatter.
        parameters: Its size.
        state: "complete" or "pruned".
    """
    level, tilt = truth.trial * random.standard_normal(), truth.slope * random.standard_normal()
    points = []
    for step, cost in enumerate(flops, start=1):
        law = truth.score(cost, K or 1, parameters)
        x = np.log10(cost / truth.centre_flops)
        true = law * 10 ** (level + tilt * x + truth.point * random.standard_normal())
        error = max(truth.error * true, truth.floor)
        points.append(_point(step, cost, max(0.0, true + error * random.standard_normal()), error))
    stage, name = ("baseline", "baseline") if K is None else ("calm", f"CALM K={K}")
    values = {} if K is None else {"model.K": K}
    slug = f"{stage}-K{K}-P{parameters}"
    return Series(
        f"{name} seed {seed}", stage, values, parameters, tuple(points), "", "", None, "", slug, seed, state=state
    )


def sweep(
    truth: Truth,
    random: np.random.Generator,
    *,
    Ks: Sequence[int] = (1, 2, 4, 8),
    seeds: int = 3,
    flops: tuple[float, float] = (3e13, 3e14),
    evaluations: int = 6,
    pruned_after: int = 0,
) -> list[Series]:
    """Return a sweep over K: every trial is evaluated at evenly spaced steps up to the same budget.

    Args:
        truth: The law.
        random: Source of all scatter.
        Ks: Values of K.
        seeds: Trials of each.
        flops: FLOPs of the first and the last evaluation.
        evaluations: Evaluations of a trial.
        pruned_after: Stop the trials that are worse than the median of all at this evaluation; 0 stops none.
    """
    costs = np.linspace(*flops, evaluations).tolist()
    made = [trial(truth, K, seed, costs, random) for K in Ks for seed in range(seeds)]
    if pruned_after:
        at = [one.points[pruned_after - 1].brier_lm for one in made]
        made = [
            one if value >= np.median(at) else _stopped(one, pruned_after) for one, value in zip(made, at, strict=True)
        ]
    return made


def _stopped(one: Series, after: int) -> Series:
    return Series(**{**vars(one), "points": one.points[:after], "state": PRUNED})


def _point(step: int, cost: float, score: float, error: float) -> ScorePoint:
    """Return an evaluation whose four Brier scores are all equal to BrierLM."""
    return ScorePoint(
        step=step,
        train_flops=cost,
        stage_train_flops=cost,
        inference_flops_per_token=1e6,
        text_tokens=cost / 1e7,
        seconds=cost / 1e10,
        brier_lm=score,
        brier_lm_se=error,
        brier_lm_low=max(0.0, score - 1.96 * error),
        brier_lm_high=score + 1.96 * error,
        brier=(score,) * 4,
        brier_se=(error,) * 4,
    )

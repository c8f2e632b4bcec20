"""Several seeds of one point of the search space are one model: means, and how far they can be trusted.

The scores s_1..s_R of R seeds scatter for two reasons. Training differs between seeds (initial weights, the head's
noise): S^2, the sample variance of the scores, shows how much, and averaging over R seeds divides it by R. And the
evaluation texts are a sample: each score has a standard error e_r over documents. All seeds are scored on the same
blocks, so averaging does not reduce this part. Hence

    SE^2 = S^2 / R + mean(e_r^2),

with Student's t of nu degrees of freedom (Welch and Satterthwaite; the second part counts as known exactly)

    nu = SE^4 (R - 1) / (S^2 / R)^2,     95 % interval: mean +- t(0.975, nu) SE.

S^2 holds the part of the evaluation's noise that seeds do not share as well, so that SE errs on the wide side. A single
run has no S^2: its interval is that of its evaluation, and says nothing about another seed.

Source: Satterthwaite, "An approximate distribution of estimates of variance components", Biometrics 2, 1946.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from calm_lightning.metrics.names import ScorePoint
from sweeps.front.series import COMPLETE, PRUNED, Series
from sweeps.front.tracked import UNFINISHED

LEVEL = 0.95
"""Probability that intervals are made for."""


@dataclass(frozen=True)
class MeanPoint:
    """One evaluation of a model: the mean over its seeds, or a single run's.

    Attributes:
        step: Optimiser steps trained.
        train_flops: Training FLOPs, the autoencoder's included.
        inference_flops_per_token: FLOPs to generate one text token.
        text_tokens: Text tokens trained on.
        seconds: Seconds of training of the language model, mean over seeds.
        score: BrierLM, percent, mean over seeds.
        spread: Standard deviation of BrierLM between seeds, percent; None for a single run.
        evaluation_se: Standard error of the evaluation, percent (root mean square over seeds).
        se: Standard error of `score`, percent.
        freedom: Degrees of freedom of `se`; infinite where seeds add nothing to it.
        low: Lower end of the 95 % interval, percent, at least 0.
        high: Upper end of the 95 % interval, percent.
        seeds: Seeds that the mean is over.
        of: Seeds that the model was trained with. Where `seeds` is smaller, the others were stopped before, so that
            what is left are survivors, whose mean is too good; or they have not come so far yet.
    """

    step: int
    train_flops: float
    inference_flops_per_token: float
    text_tokens: float
    seconds: float
    score: float
    spread: float | None
    evaluation_se: float
    se: float
    freedom: float
    low: float
    high: float
    seeds: int
    of: int

    @property
    def whole(self) -> bool:
        """Whether all seeds of the model are in it."""
        return self.seeds == self.of


@dataclass(frozen=True)
class Model:
    """One point of the search space with its seeds.

    Attributes:
        label: How tables and figures call it.
        slug: The point of the search space.
        stage: "calm" or "baseline".
        runs: One series per seed, those without an evaluation after training left out.
        curve: Its evaluations by rising step, the untrained one left out.
    """

    label: str
    slug: str
    stage: str
    runs: tuple[Series, ...]
    curve: tuple[MeanPoint, ...]

    @property
    def final(self) -> MeanPoint:
        """The last evaluation."""
        return self.curve[-1]

    @property
    def single(self) -> bool:
        """Whether it was trained with one seed only."""
        return len(self.runs) == 1

    @property
    def pruned(self) -> bool:
        """Whether none of its seeds was trained to the end."""
        return all(run.state == PRUNED for run in self.runs)

    @property
    def unfinished(self) -> bool:
        """Whether one of its seeds is still being trained, or was left in the middle."""
        return any(run.state == UNFINISHED for run in self.runs)

    @property
    def named(self) -> str:
        """The label, with what is to be known of a model whose last evaluation is not the end of its training."""
        note = " (stopped early)" if self.pruned else " (unfinished)" if self.unfinished else ""
        return f"{self.label}{note}"

    @property
    def parameters(self) -> int:
        """Trained parameters, the autoencoder's left out."""
        return self.runs[0].parameters

    def setting(self, key: str) -> Any:
        """Return the value of a setting or swept key, None where the model has none."""
        return self.runs[0].setting(key)

    def admitted(self) -> list[MeanPoint]:
        """Return the evaluations that may stand on a front: of all seeds, and above 0."""
        return [point for point in self.curve if point.whole and point.score > 0]

    def seeds_in_words(self) -> str:
        """Return how many seeds there are and how many were stopped early: "3", "1 (pruned)", "3 (1 pruned)"."""
        stopped = sum(run.state == PRUNED for run in self.runs)
        note = "" if not stopped else " (pruned)" if stopped == len(self.runs) else f" ({stopped} pruned)"
        return f"{len(self.runs)}{note}"


def quantile(freedom: float) -> float:
    """Return t(0.975) of Student's distribution; the normal distribution's where freedom is infinite."""
    return float(stdtrit(min(freedom, 1e12), 0.5 + LEVEL / 2))


def mean_point(points: Sequence[ScorePoint], of: int) -> MeanPoint:
    """Return the mean of one step's evaluations over seeds.

    Args:
        points: One evaluation of each seed, all after the same number of steps.
        of: Seeds of the model.

    Source: the formulas at the head of this module.
    """
    scores = np.array([point.brier_lm for point in points])
    evaluation = float(np.mean(np.square([point.brier_lm_se for point in points])))
    R, score, first = len(points), float(scores.mean()), points[0]
    spread = float(scores.std(ddof=1)) if R > 1 else None
    between = 0.0 if spread is None else spread**2 / R
    se = math.sqrt(between + evaluation)
    freedom = se**4 * (R - 1) / between**2 if between > 0 and between**2 > 0 else math.inf
    margin = quantile(freedom) * se
    return MeanPoint(
        step=first.step,
        train_flops=float(np.mean([point.train_flops for point in points])),
        inference_flops_per_token=first.inference_flops_per_token,
        text_tokens=first.text_tokens,
        seconds=float(np.mean([point.seconds for point in points])),
        score=score,
        spread=spread,
        evaluation_se=math.sqrt(evaluation),
        se=se,
        freedom=freedom,
        low=first.brier_lm_low if R == 1 else max(0.0, score - margin),
        high=first.brier_lm_high if R == 1 else score + margin,
        seeds=R,
        of=of,
    )


def models_of(series: Sequence[Series]) -> list[Model]:
    """Return the models of some series, in order of first appearance.

    Series of one slug are one model. Runs that were never evaluated after training began are left out.
    """
    groups: dict[str, list[Series]] = {}
    for one in series:
        if one.trained:
            groups.setdefault(one.slug or one.label, []).append(one)
    return [Model(runs[0].label, slug, runs[0].stage, tuple(runs), _curve(runs)) for slug, runs in groups.items()]


def _curve(runs: Sequence[Series]) -> tuple[MeanPoint, ...]:
    by_step: dict[int, list[ScorePoint]] = {}
    for run in runs:
        for point in run.trained:
            by_step.setdefault(point.step, []).append(point)
    return tuple(mean_point(by_step[step], len(runs)) for step in sorted(by_step))


@dataclass(frozen=True)
class Difference:
    """How far one score lies above another.

    Attributes:
        value: The difference, percent.
        se: Its standard error, percent.
        freedom: Degrees of freedom of `se`.
        low: Lower end of its 95 % interval, percent.
        high: Upper end of its 95 % interval, percent.
        single: Whether one of the two is a single run, so that the spread between seeds is missing from `se`.
    """

    value: float
    se: float
    freedom: float
    low: float
    high: float
    single: bool

    @property
    def significant(self) -> bool:
        """Whether the 95 % interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def difference(first: MeanPoint, second: MeanPoint) -> Difference:
    """Return `first` minus `second`, with Welch's interval.

    Both are scored on the same blocks, which makes their errors rise and fall together; treating them as independent
    makes the interval too wide rather than too narrow.

    Source: Welch, "The generalization of Student's problem when several different population variances are involved",
    Biometrika 34, 1947.
    """
    variance = first.se**2 + second.se**2
    parts = sum(one.se**4 / one.freedom for one in (first, second))
    freedom = variance**2 / parts if parts > 0 else math.inf
    value, se = first.score - second.score, math.sqrt(variance)
    margin = quantile(freedom) * se
    single = first.seeds == 1 or second.seeds == 1
    return Difference(value, se, freedom, value - margin, value + margin, single)


def complete(model: Model) -> bool:
    """Return whether a seed of the model was trained to the end."""
    return any(run.state == COMPLETE for run in model.runs)

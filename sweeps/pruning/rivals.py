"""Which trials compete: the evaluations that a trial is held against."""

from __future__ import annotations

import math
from collections.abc import Iterable

from sweeps.front.series import Series
from sweeps.pruning.rule import Evaluation


def competitors(series: Iterable[Series], stage: str, inference_flops: float = math.inf) -> list[Series]:
    """Return the models that a trial competes with.

    The token baseline is a reference and no rival: at small budgets it is far ahead of every continuous model, and
    would have all of them stopped. Where inference FLOPs are an objective, a model that costs more to use cannot
    dominate one that costs less, whatever its score.

    Args:
        series: The other models.
        stage: Stage of the trial, "calm" or "baseline".
        inference_flops: Its inference FLOPs per token where these are an objective, else infinity.
    """
    return [
        one
        for one in series
        if one.stage == stage and one.trained and one.final.inference_flops_per_token <= inference_flops
    ]


def evaluations(series: Iterable[Series]) -> list[Evaluation]:
    """Return all evaluations of some models in the form that the rule takes."""
    return [Evaluation(point.train_flops, point.brier_lm, point.brier_lm_se) for one in series for point in one.trained]

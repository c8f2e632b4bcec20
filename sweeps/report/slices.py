"""Scores along one key: at the last evaluation, and at equal training FLOPs between evaluations.

A score at a given cost is interpolated along the curve, linearly in the logarithm of training FLOPs:

    w = log(C / C_0) / log(C_1 / C_0),     s = (1 - w) s_0 + w s_1,     SE = (1 - w) SE_0 + w SE_1.

The two neighbours share weights and texts, so their errors go together; this SE is exact for errors that do so
entirely and too wide otherwise. The ends of the interval are interpolated alike. Nothing is extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from sweeps.report.comparisons import Contrast, contrasts, free_keys
from sweeps.report.seeds import MeanPoint, Model, complete

FIRST = ("model.K", "model.l", "model.N", "model.M", "model.alpha")
"""Keys that slices show first, where they were chosen."""


@dataclass(frozen=True)
class Slice:
    """Scores along one key.

    Attributes:
        key: The key.
        values: Its values, sorted.
        contrasts: Models that differ in it and are equal in the other free keys.
        budget: Training FLOPs at which scores are compared; None where no two curves overlap.
        left_out: Models whose curves do not reach `budget`, or begin above it.
    """

    key: str
    values: tuple[Any, ...]
    contrasts: tuple[Contrast, ...]
    budget: float | None
    left_out: int


def at_flops(curve: Sequence[MeanPoint], cost: float) -> MeanPoint | None:
    """Return a model's score at a cost, None outside its curve.

    Args:
        curve: Evaluations by rising cost.
        cost: Training FLOPs, the autoencoder's included.
    """
    for point in curve:
        if math.isclose(point.train_flops, cost, rel_tol=1e-9):
            return point
    for before, after in pairwise(curve):
        if 0 < before.train_flops < cost < after.train_flops:
            return _between(before, after, cost)
    return None


def _between(before: MeanPoint, after: MeanPoint, cost: float) -> MeanPoint:
    w = math.log(cost / before.train_flops) / math.log(after.train_flops / before.train_flops)

    def mixed(name: str) -> float:
        return float((1 - w) * getattr(before, name) + w * getattr(after, name))

    wide = before if before.freedom < after.freedom else after
    return replace(
        after,
        train_flops=cost,
        text_tokens=mixed("text_tokens"),
        seconds=mixed("seconds"),
        score=mixed("score"),
        spread=None if before.spread is None or after.spread is None else mixed("spread"),
        evaluation_se=mixed("evaluation_se"),
        se=mixed("se"),
        low=mixed("low"),
        high=mixed("high"),
        freedom=wide.freedom,
        seeds=min(before.seeds, after.seeds),
    )


def shared_budget(models: Sequence[Model]) -> float | None:
    """Return the largest training FLOPs that all completely trained models reach; None where two curves do not overlap.

    Models that were stopped early do not lower it: they would shrink it to where little can be told.
    """
    ends = [model.final.train_flops for model in models if complete(model)]
    budget = min(ends, default=0.0)
    covered = [model for model in models if at_flops(model.curve, budget) is not None]
    return budget if len(covered) > 1 else None


def slice_keys(models: Sequence[Model], sweep_of: dict[str, str]) -> list[str]:
    """Return the chosen keys along which there is something to compare, K, l, N, M and alpha first."""
    free = [key for key in free_keys(models, sweep_of) if contrasts(models, [key], sweep_of)]
    return [key for key in FIRST if key in free] + [key for key in free if key not in FIRST]


def slice_of(models: Sequence[Model], key: str, sweep_of: dict[str, str]) -> Slice:
    """Return the scores along a key.

    Args:
        models: The models.
        key: A chosen key, see `slice_keys`.
        sweep_of: Name of the study by a model's slug.
    """
    found = contrasts(models, [key], sweep_of)
    inside = [model for contrast in found for _, model in contrast.models]
    values: list[Any] = []
    for contrast in found:
        values += [value for (value,), _ in contrast.models if value not in values]
    budget = shared_budget(inside)
    reached = [] if budget is None else [model for model in inside if at_flops(model.curve, budget) is not None]
    numbers = all(isinstance(value, (int, float)) for value in values)
    ordered = sorted(values) if numbers else sorted(values, key=str)
    return Slice(key, tuple(ordered), tuple(found), budget, len(inside) - len(reached))

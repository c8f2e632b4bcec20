"""Fronts in the plane of cost and score: pure functions, cost is minimised, score is maximised.

Error bars play no part: a front of noisy scores is itself noisy, and a point can lie on it by luck. Tables and
figures therefore show the intervals next to the front.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Plane = Sequence[tuple[float, float]]


def front(points: Plane) -> list[int]:
    """Return the indices of the points that no other point dominates, by rising cost.

    A point dominates another if it costs no more, scores no less, and is better in one of the two; of points equal
    in both, all stay.

    Args:
        points: (cost, score) pairs.

    Raises:
        ValueError: A coordinate is NaN, which has no order.
    """
    if any(math.isnan(cost) or math.isnan(score) for cost, score in points):
        raise ValueError("a point of the plane is NaN")
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1], index))
    kept: list[int] = []
    for index in order:
        if not kept or points[index][1] > points[kept[-1]][1] or points[index] == points[kept[-1]]:
            kept.append(index)
    return kept


def hypervolume(points: Plane, reference: tuple[float, float]) -> float:
    """Return the area that a front dominates, seen from a reference point.

    The unit is decades of cost times score: halving every cost adds the same area at any scale.

    Args:
        points: (cost, score) pairs, dominated ones allowed; costs are positive.
        reference: (cost, score) that counts as worst; points beyond it add nothing.

    Returns:
        The area, >= 0.

    Source: Zitzler, Thiele, "Multiobjective evolutionary algorithms", 1999 (the S metric), in two dimensions.
    """
    worst_cost, worst_score = reference
    area, below = 0.0, worst_score
    for index in front(points):
        cost, score = points[index]
        if cost < worst_cost and score > below:
            area += math.log10(worst_cost / cost) * (score - below)
            below = score
    return area

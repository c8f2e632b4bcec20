"""Fronts and hypervolumes, against their definitions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.front.pareto import front, hypervolume

small = st.tuples(st.integers(1, 6).map(float), st.integers(0, 6).map(float))
planes = st.lists(small, max_size=25)


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(planes)
def test_front_is_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    expected = {i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)}
    found = front(points)
    assert set(found) == expected
    assert len(found) == len(expected)
    costs = [points[index][0] for index in found]
    assert costs == sorted(costs)


@given(planes)
def test_hypervolume_counts_the_dominated_cells(points: list[tuple[float, float]]) -> None:
    # With whole decades and whole scores the area is the number of unit cells that lie wholly behind some point.
    cells = sum(any(cost <= x and score >= y + 1 for cost, score in points) for x in range(1, 7) for y in range(0, 6))
    decades = [(10**cost, score) for cost, score in points]
    assert hypervolume(decades, (1e7, 0.0)) == pytest.approx(cells)


def test_hypervolume_of_one_point_in_closed_form() -> None:
    assert hypervolume([(10.0, 3.0)], (1000.0, 1.0)) == pytest.approx(2 * 2.0)
    assert hypervolume([], (1000.0, 0.0)) == 0.0
    assert hypervolume([(2000.0, 3.0), (10.0, -1.0)], (1000.0, 0.0)) == 0.0


@given(planes.filter(bool), st.floats(1e-3, 1e3))
def test_log_hypervolume_does_not_depend_on_the_unit_of_cost(points: list[tuple[float, float]], unit: float) -> None:
    scaled = [(cost * unit, score) for cost, score in points]
    expected = hypervolume(points, (10.0, 0.0))
    assert hypervolume(scaled, (10.0 * unit, 0.0)) == pytest.approx(expected, abs=1e-9)


def test_agrees_with_optuna() -> None:
    numpy = pytest.importorskip("numpy")
    wfg = pytest.importorskip("optuna._hypervolume.wfg")
    points = [(1.0, 2.0), (2.0, 3.5), (4.0, 3.0), (5.0, 6.0)]
    losses = numpy.array([[cost, -score] for cost, score in points])
    theirs = wfg.compute_hypervolume(losses, numpy.array([8.0, 0.0]))
    decades = [(10**cost, score) for cost, score in points]
    assert hypervolume(decades, (1e8, 0.0)) == pytest.approx(theirs)


def test_equal_points_all_stay_and_nan_is_refused() -> None:
    assert front([(1.0, 2.0), (1.0, 2.0), (1.0, 1.0)]) == [0, 1]
    with pytest.raises(ValueError, match="NaN"):
        front([(1.0, math.nan)])

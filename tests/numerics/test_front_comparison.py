"""Savings and hypervolumes of two fronts against closed forms, brute force and the paper's table."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from calm_lightning.flops.paper import PUBLISHED
from sweeps.front.comparison import common_range, saving, stepwise_saving, volume, volume_difference
from sweeps.front.intervals import interval
from sweeps.front.pareto import hypervolume
from sweeps.front.redraws import Cloud, log_costs, reach, redraw, volumes


def cloud(
    points: list[tuple[float, float]],
    error: float = 0.0,
    name: str = "m",
    freedom: float = math.inf,
    single: bool = True,
) -> Cloud:
    """Evaluations of one model, or each of a model of its own."""
    points = sorted(points)
    count = len(points)
    models = 1 if single else count
    return Cloud(
        keys=tuple(f"{name}{number}" for number in range(models)),
        freedom=np.full(models, freedom),
        owner=np.zeros(count, dtype=np.intp) if single else np.arange(count),
        cost=np.array([cost for cost, _ in points]),
        score=np.array([score for _, score in points]),
        error=np.full(count, error),
        evaluation=np.full(count, error),
    )


def line(start: float, slope: float, scores: tuple[float, ...] = (1, 2, 3, 4, 5), **more: float) -> Cloud:
    """A front with log10 cost = start + slope * score."""
    return cloud([(10 ** (start + slope * score), score) for score in scores], **more)  # type: ignore[arg-type]


def test_a_constant_ratio_is_saved_at_every_level_and_in_the_mean() -> None:
    a, b = line(12.0, 0.3), line(12.0 + math.log10(2), 0.3)
    found = saving(a, b)
    assert found is not None
    assert (found.low, found.high) == (1, 5)
    assert found.share.value == pytest.approx(0.5)
    assert saving(a, b, (2.7, 2.7)).share.value == pytest.approx(0.5)  # type: ignore[union-attr]
    assert (found.share.low, found.share.high) == pytest.approx((0.5, 0.5))  # without errors
    assert 10 ** (found.log10_cost_a - found.log10_cost_b) == pytest.approx(0.5)


def test_the_mean_saving_is_the_geometric_mean_of_the_ratios() -> None:
    # log10 c_A - log10 c_B = -0.5 - 0.1 s, whose mean over [1.5, 4] is -0.5 - 0.1 * 2.75
    found = saving(line(11.5, 0.3), line(12.0, 0.4, (1.5, 3.0, 4.0)))
    assert found is not None
    assert (found.low, found.high) == (1.5, 4.0)
    assert found.share.value == pytest.approx(1 - 10**-0.775, rel=1e-6)


def test_levels_that_were_asked_for() -> None:
    found = saving(line(11.5, 0.3), line(12.0, 0.4), (2.0, 3.0))
    assert found is not None
    assert found.share.value == pytest.approx(1 - 10**-0.75, rel=1e-6)


def test_whole_evaluations_cost_what_the_cheapest_one_that_is_good_enough_costs() -> None:
    a, b = cloud([(10.0, 2.0), (100.0, 4.0)]), cloud([(20.0, 1.0), (40.0, 3.0), (400.0, 5.0)])
    assert stepwise_saving(a, b, 1.5) == pytest.approx(1 - 10 / 40)  # also below A's first point
    assert stepwise_saving(a, b, 3.5) == pytest.approx(1 - 100 / 400)
    assert stepwise_saving(a, b, 4.5) is None


def test_nothing_is_extrapolated() -> None:
    a, b = line(12.0, 0.3, (1, 2)), line(12.0, 0.3, (3, 4))
    assert saving(a, b) is None
    assert saving(a, line(12.0, 0.3, (1.5, 4)), (2.5, 2.5)) is None
    (low,), (high,) = common_range(a, b, (a.score[None], b.score[None]))
    assert math.isnan(low)
    assert math.isnan(high)


def test_a_front_of_one_point_is_compared_at_its_own_score() -> None:
    one = cloud([(1e12, 3.0)], error=0.1)
    found = saving(one, line(12.0, 0.5, error=0.1, name="b"))  # type: ignore[arg-type]
    assert found is not None
    assert (found.low, found.high) == (3.0, 3.0)
    assert found.share.value == pytest.approx(1 - 10**-1.5)
    # both scores move by 0.1, and 0.5 decades is a score of 1: the standard error of the ratio is 0.5 * 0.1 * sqrt(2)
    spread = 1.96 * 0.5 * 0.1 * math.sqrt(2)
    assert found.share.low == pytest.approx(1 - 10 ** (-1.5 + spread), abs=0.01)
    assert found.share.high == pytest.approx(1 - 10 ** (-1.5 - spread), abs=0.01)


POINTS = st.lists(
    st.tuples(st.floats(1.0, 1e6), st.floats(-1.0, 10.0)).map(lambda pair: (round(pair[0], 2), round(pair[1], 2))),
    min_size=1,
    max_size=12,
)


@given(POINTS, st.floats(0.1, 9.9))
@settings(max_examples=150, deadline=None)
def test_costs_of_levels_agree_with_brute_force(points: list[tuple[float, float]], level: float) -> None:
    one = cloud(points)
    reached = [cost for cost, score in points if score >= level and score > 0]
    step = log_costs(one, one.score[None], np.array([[level]]), stepwise=True)[0, 0]
    assert (math.isnan(step)) == (not reached)
    smooth = log_costs(one, one.score[None], np.array([[level]]))[0, 0]
    if reached:
        assert 10**step == pytest.approx(min(reached))
    if not math.isnan(smooth):
        assert smooth <= step + 1e-9  # between the points around the level, the upper one of which is the stepwise cost


@given(POINTS, st.floats(2.0, 1e7))
@settings(max_examples=150, deadline=None)
def test_hypervolumes_agree_with_the_other_way_of_computing_them(
    points: list[tuple[float, float]], reference: float
) -> None:
    one = cloud(points)
    assert volumes(one, one.score[None], reference)[0] == pytest.approx(hypervolume(points, (reference, 0.0)), abs=1e-9)


@given(POINTS, POINTS, st.floats(0.1, 100.0))
@settings(max_examples=80, deadline=None)
def test_savings_do_not_depend_on_units_and_turn_around(
    of_a: list[tuple[float, float]], of_b: list[tuple[float, float]], unit: float
) -> None:
    a, b = cloud(of_a, name="a"), cloud(of_b, name="b")
    found = saving(a, b, redraws=5)
    scaled = saving(
        cloud([(cost * unit, score) for cost, score in of_a]), cloud([(c * unit, s) for c, s in of_b]), redraws=5
    )
    turned = saving(b, a, redraws=5)
    assert (found is None) == (scaled is None) == (turned is None)
    if found is not None and scaled is not None and turned is not None:
        assert scaled.share.value == pytest.approx(found.share.value, abs=1e-6)
        assert (1 - found.share.value) * (1 - turned.share.value) == pytest.approx(1.0)


def test_a_set_saves_exactly_nothing_against_itself() -> None:
    """A model that is in both sets moves alike in both, whatever its errors."""
    one = line(12.0, 0.3, error=0.5, freedom=4.0)
    found = saving(one, one)
    assert found is not None
    assert (found.share.value, found.share.low, found.share.high) == pytest.approx((0, 0, 0), abs=1e-12)
    gap = volume_difference(one, one, 1e14)
    assert (gap.value, gap.low, gap.high) == pytest.approx((0, 0, 0), abs=1e-12)


@pytest.mark.parametrize(("freedom", "quantile"), [(math.inf, 1.96), (4.0, stats.t.ppf(0.975, 4))])
def test_the_interval_of_one_evaluations_hypervolume_is_that_of_its_score(freedom: float, quantile: float) -> None:
    found = volume(cloud([(1e12, 5.0)], error=0.2, freedom=freedom), 1e14, redraws=20_000)
    # the evaluation's part of the error is normal and the same for all models; here it is all of the error
    margin = 2 * 0.2 * 1.96
    assert found.value == pytest.approx(10.0)
    assert (found.low, found.high) == pytest.approx((10 - margin, 10 + margin), rel=0.02)
    alone = redraw([cloud([(1e12, 5.0)], error=0.2, freedom=freedom)], 20_000, 1)[0]
    assert np.quantile(alone, 0.975) == pytest.approx(5 + 0.2 * quantile, rel=0.02)


def test_a_common_error_widens_a_hypervolume_and_narrows_a_difference() -> None:
    a = cloud([(10.0**power, power - 11.0) for power in range(12, 17)], error=0.1, name="a", single=False)
    b = cloud([(10.0**power, power - 11.5) for power in range(12, 17)], error=0.1, name="b", single=False)
    spreads = {}
    for shared in (0.0, 1.0):
        of_a, of_b = (
            volumes(one, drawn, 1e17) for one, drawn in zip((a, b), redraw([a, b], 4000, 1, shared), strict=True)
        )
        spreads[shared] = float(of_a.std()), float((of_a - of_b).std())
    # five points that rise by one weigh 1 decade each: sqrt(5) * 0.1 against 5 * 0.1
    assert spreads[0.0][0] == pytest.approx(math.sqrt(5) * 0.1, rel=0.06)
    assert spreads[1.0][0] == pytest.approx(5 * 0.1, rel=0.06)
    assert spreads[1.0][1] < 0.2 * spreads[0.0][1]


def test_draws_are_the_same_every_time_and_models_move_whole() -> None:
    one = line(12.0, 0.3, error=0.5)
    first, again = redraw([one], 50, 3)[0], redraw([one], 50, 3)[0]
    assert np.array_equal(first, again)
    shifts = (first - one.score) / one.error
    assert np.allclose(shifts, shifts[:, :1])


def test_kinds_of_intervals() -> None:
    drawn = np.linspace(0.0, 4.0, 4001)  # quantiles 0.1, 2 and 3.9 around an estimate of 1
    assert interval(1.0, drawn, "percentile") == pytest.approx((0.1, 3.9))
    assert interval(1.0, drawn, "basic") == pytest.approx((-1.9, 1.9))
    assert interval(1.0, drawn, "centred") == pytest.approx((-0.9, 2.9))
    z_0 = stats.norm.ppf(0.25)
    ends = 4 * stats.norm.cdf([2 * z_0 - 1.96, 2 * z_0 + 1.96])
    assert interval(1.0, drawn, "bias-corrected") == pytest.approx(tuple(ends), abs=2e-3)


def published(family: str, inference: bool) -> Cloud:
    rows = [row for preset, row in PUBLISHED.items() if preset.startswith(family)]
    points = [(row.inference_flops_per_token if inference else row.training_flops, row.brier_lm) for row in rows]
    return cloud(points, name=family, single=False)


@pytest.mark.parametrize(
    ("inference", "claimed", "equal", "mean"), [(False, 0.44, 0.257, 0.131), (True, 0.34, 0.213, 0.270)]
)
def test_the_papers_table(inference: bool, claimed: float, equal: float, mean: float) -> None:
    """What the paper claims compares CALM-M at 5.72 with Transformer-S at 6.05: the saving between whole evaluations.

    At equal scores less is saved: CALM's cost of 6.05 lies between CALM-M and CALM-L.
    """
    calm, transformer = published("calm", inference), published("transformer", inference)
    assert stepwise_saving(calm, transformer, 5.72) == pytest.approx(claimed, abs=0.005)
    at = saving(calm, transformer, (6.05, 6.05))
    assert at is not None
    assert at.share.value == pytest.approx(equal, abs=0.001)
    over = saving(calm, transformer)
    assert over is not None
    assert (over.low, over.high) == (6.05, 8.53)
    assert over.share.value == pytest.approx(mean, abs=0.001)


def test_reach_is_from_the_first_to_the_last_point_of_the_front() -> None:
    one = cloud([(1.0, 0.0), (2.0, 1.5), (3.0, 1.0), (4.0, 4.0), (5.0, 3.0)])
    (low,), (high,) = reach(one, one.score[None])
    assert (low, high) == (1.5, 4.0)
    nothing = cloud([(1.0, 0.0)])
    assert all(math.isnan(end[0]) for end in reach(nothing, nothing.score[None]))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """A short run of the benchmark whose long run is in docs/pareto.md."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from bench_pareto_coverage import ALONE, CHOSEN, Scenario, measure

    scenario = Scenario(models_a=8, models_b=8, seeds=3, shared=0.5, error=0.04, spread=0.03, quality=0.08)
    for one in measure(scenario, 60):
        if one.quantity != ALONE:
            assert one.coverage[CHOSEN[one.quantity]] >= 0.88, one
            assert one.width[CHOSEN[one.quantity]] < 12 * one.deviation, one  # 3.9 would be exact
            assert abs(one.bias) < one.deviation, one

"""The scaling law on sweeps whose law is known: what is recovered, how often bands hold it, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from calm_lightning.errors import SweepError
from sweeps.front.series import Series
from sweeps.scaling.advice import advise
from sweeps.scaling.crossing import AHEAD, BEHIND, CROSSES, crossing
from sweeps.scaling.curve import Curve, fit_curve
from sweeps.scaling.fitting import Fit, fit
from sweeps.scaling.laws import Centre, offered
from sweeps.scaling.mixed import Curves, Scatter, condition, degrees_of_freedom, estimate_scatter
from sweeps.scaling.observations import observe, sufficient
from sweeps.scaling.predicting import optima, predict, predict_baseline, probabilities_best
from sweeps.scaling.settings import FitSettings
from sweeps.scaling.synthetic import Truth, sweep, trial

QUIET = Truth(trial=1e-4, slope=1e-4, point=1e-4, error=1e-3)
POWER = FitSettings(law="moving-optimum", draws=400)
FLAT = Truth(a=0.62, b=0.2, c=0.0, d=0.0, e=0.0)
COSTS = np.linspace(3e13, 3e14, 6).tolist()
MOVING = next(law for law in offered(False) if law.name == "moving-optimum")
CENTRE = Centre(14.0, 1.5, math.log10(3e6))


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def baselines(truth: Truth, seeds: int = 3, seed: int = 7) -> list[Series]:
    source = random(seed)
    return [trial(truth, None, one, COSTS, source) for one in range(seeds)]


@cache
def usual() -> Fit:
    """Return the fit to a sweep of four K with three seeds each."""
    return fit(sweep(Truth(), random()), FitSettings(draws=400))


def moving(series: list[Series]) -> Curve:
    return fit_curve(MOVING, sufficient(series, POWER), CENTRE)


def scaled(one: Series, factor: float) -> Series:
    return replace(one, points=tuple(replace(point, train_flops=point.train_flops * factor) for point in one.points))


# recovery


def test_coefficients_of_a_power_law_are_recovered() -> None:
    found = moving(sweep(QUIET, random()))
    assert found.theta == pytest.approx((QUIET.a, QUIET.b, QUIET.c, QUIET.d, QUIET.e), abs=2e-3)
    assert found.r2 > 0.999


def test_a_ceiling_is_recovered_and_preferred() -> None:
    truth = replace(QUIET, ceiling=9.0)
    found = fit(sweep(truth, random()))
    assert found.curve.law.name == "moving-optimum+ceiling"
    assert 1 / found.curve.theta[-1] == pytest.approx(9.0, rel=0.05)
    assert optima(found, np.array([1e14]))[0][0] == pytest.approx(truth.best_K(1e14), rel=0.02)


def test_parameters_are_a_variable_where_they_vary() -> None:
    truth, source = replace(QUIET, f=0.2), random()
    made = [
        trial(truth, K, seed, COSTS, source, parameters)
        for K in (1, 2, 4, 8)
        for seed, parameters in enumerate((1_000_000, 3_000_000, 9_000_000))
    ]
    found = fit(made, FitSettings(draws=100))
    by_letter = {one.letter: one for one in found.coefficients}
    assert by_letter["f"].value == pytest.approx(0.2, abs=5e-3)
    large, small = (predict(found, 1e14, 4, size).value for size in (9e6, 1e6))
    assert large / small == pytest.approx(9**0.2, rel=0.02)
    assert predict(found, 1e14, 4, 2e7).extrapolated
    with pytest.raises(SweepError, match="parameters lie too far"):
        predict(found, 1e14, 4, 1e9)


def test_the_best_K_moves_with_the_budget_as_in_the_truth() -> None:
    found = fit(sweep(QUIET, random()), POWER)
    budgets = np.array([5e13, 1e14, 2e14])
    estimate, draws = optima(found, budgets)
    assert estimate == pytest.approx([QUIET.best_K(one) for one in budgets], rel=0.02)
    assert (np.diff(estimate) > 0).all()
    assert np.abs(np.median(draws, axis=0) - estimate).max() < 0.02


def test_scatter_is_recovered_from_many_trials() -> None:
    truth = Truth(trial=0.05, slope=0.0, point=0.02, error=0.01)
    found = moving(sweep(truth, random(), seeds=40))
    assert found.scatter.trial == pytest.approx(0.05, rel=0.15)
    assert found.scatter.point == pytest.approx(0.02, rel=0.1)


def test_one_value_per_trial_is_ordinary_regression() -> None:
    source = random()
    x, y = source.standard_normal(30), source.standard_normal(30)
    curves = Curves(np.arange(30), x, np.zeros(30))
    design = np.column_stack([np.ones(30), x])
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    found = estimate_scatter(curves, design, y)
    assert found == Scatter(0.0, pytest.approx(math.sqrt(residual @ residual / 28), rel=1e-3), 0.0)


def test_scatter_of_balanced_trials_is_that_of_analysis_of_variance() -> None:
    source = random(3)
    trials, n = 15, 8
    y = (0.5 * source.standard_normal(trials)[:, None] + 0.2 * source.standard_normal((trials, n))).ravel()
    which = np.repeat(np.arange(trials), n)
    within = y.reshape(trials, n).var(axis=1, ddof=1).mean()
    between = y.reshape(trials, n).mean(axis=1).var(ddof=1)
    found = estimate_scatter(Curves(which, np.zeros(trials * n), np.zeros(trials * n)), np.ones((trials * n, 1)), y)
    assert found.point**2 == pytest.approx(within, rel=1e-3)
    assert found.trial**2 == pytest.approx(between - within / n, rel=1e-3)


def test_jacobian_is_the_derivative() -> None:
    law = next(one for one in offered(True) if one.name == "moving-optimum+parameters+ceiling")
    source = random()
    design = law.design(*source.standard_normal((3, 9)))
    theta = np.array([0.3, 0.4, 0.1, -0.1, 0.05, 0.2, 0.15])
    step = 1e-6 * np.eye(len(theta))
    numeric = (law.value(theta + step, design) - law.value(theta - step, design)).T / 2e-6
    assert law.jacobian(theta, design) == pytest.approx(numeric, abs=1e-8)


@given(st.lists(st.floats(-1, 1), min_size=5, max_size=5), st.floats(-1, 1))
@settings(max_examples=50, deadline=None)
def test_best_k_is_the_best_of_a_fine_grid(theta: list[float], x: float) -> None:
    k = np.linspace(-1.5, 1.5, 3001)
    values = MOVING.value(np.array(theta), MOVING.design(np.full_like(k, x), k, k))
    best = MOVING.best_k(np.array([theta]), x, -1.5, 1.5)
    found = MOVING.value(np.array(theta), MOVING.design(np.array([x]), best, best))
    assert found[0] == pytest.approx(values.max(), abs=1e-6)


# bands


def test_bands_hold_the_truth_about_as_often_as_they_say() -> None:
    truth, source, repetitions = Truth(), random(11), 200
    budgets, Ks = np.repeat([4e13, 1e14, 2.5e14], 4), np.tile([1.0, 2.0, 4.0, 8.0], 3)
    expected = np.log10([truth.score(cost, K) for cost, K in zip(budgets, Ks, strict=True)])
    covered, best = [], []
    for _ in range(repetitions):
        found = moving(sweep(truth, source, seeds=2))
        values, errors = found.expected(found.design(budgets, Ks, np.full(12, 3e6)))
        covered.append(np.abs(values - expected) <= found.quantile() * errors)
        draws = MOVING.best_k(found.draws(400, 0), 0.3, -1.5, 1.5)
        low, high = np.quantile(draws, (0.025, 0.975))
        best.append(low <= math.log2(truth.best_K(10**14.3) / truth.centre_chunk) <= high)
    share = np.mean(covered, axis=0)
    assert share.min() >= 0.88 and share.max() <= 0.99, share
    assert 0.92 <= share.mean() <= 0.98
    assert 0.88 <= np.mean(best) <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("truth", [Truth(), Truth(ceiling=8.0)], ids=["power law", "ceiling"])
def test_bands_hold_the_truth_when_the_trials_choose_the_law(truth: Truth) -> None:
    source, budgets, Ks = random(12), np.repeat([4e13, 2.5e14], 4), np.tile([1, 2, 4, 8], 2)
    covered = []
    repetitions = 40
    for _ in range(repetitions):
        found = fit(sweep(truth, source))
        shown = [predict(found, cost, K) for cost, K in zip(budgets, Ks, strict=True)]
        scores = [truth.score(cost, K) for cost, K in zip(budgets, Ks, strict=True)]
        covered.append([one.low <= value <= one.high for one, value in zip(shown, scores, strict=True)])
    assert 0.88 <= np.mean(covered) <= 0.99
    # of a place that is covered in 90 % of all sweeps, 40 of them show less than this once in a thousand times
    assert np.mean(covered, axis=0).min() >= stats.binom.ppf(0.001, repetitions, 0.9) / repetitions


def test_interval_of_one_run_holds_new_runs() -> None:
    truth, source = Truth(error=0.01), random(5)
    held = []
    for _ in range(5):
        found = fit(sweep(truth, source), POWER)
        new = [trial(truth, 4, seed, [2e14], source).points[0].brier_lm for seed in range(40)]
        shown = predict(found, 2e14, 4)
        held += [shown.run_low <= value <= shown.run_high for value in new]
        assert shown.run_low < shown.low < shown.value < shown.high < shown.run_high
    assert 0.88 <= np.mean(held) <= 0.995


def test_more_evaluations_of_the_same_trials_do_not_make_bands_much_narrower() -> None:
    truth = Truth(error=0.005, point=0.001)
    few, many = (moving(sweep(truth, random(4), evaluations=n)) for n in (5, 40))
    at = few.design(np.array([1e14]), np.array([4.0]), np.array([3e6]))
    assert many.expected(at)[1] > 0.6 * few.expected(at)[1]


def test_stopped_trials_do_not_bias_the_law() -> None:
    truth, source = Truth(), random(9)
    found, whole = [], []
    for _ in range(20):
        made = sweep(truth, source, seeds=4, flops=(2e13, 3e14), evaluations=7, pruned_after=3)
        assert sum(one.state == "pruned" for one in made) >= 6
        found.append(moving(made).theta)
        kept = [one for one in made if one.state == "complete"]
        whole.append(np.mean([math.log10(one.final.brier_lm / truth.score(3e14, one.K or 1)) for one in kept]))
    bias = np.mean(found, axis=0) - (truth.a, truth.b, truth.c, truth.d, truth.e)
    assert np.abs(bias).max() < 0.015
    assert np.mean(whole) > 0.005, (
        "without the stopped trials the rest looks better than the law: there is a bias to avoid"
    )


# choosing a law


def test_the_wrong_form_is_noticed() -> None:
    bent = Truth(ceiling=6.0, error=0.02, point=0.005, slope=0.01)
    straight = replace(bent, ceiling=None)
    source, chosen = random(2), {"bent": 0, "straight": 0}
    for _ in range(6):
        for name, truth in (("bent", bent), ("straight", straight)):
            observed = sufficient(sweep(truth, source), FitSettings())
            power, ceiling = (fit_curve(one, observed, CENTRE) for one in offered(False) if "xk" in one.terms)
            chosen[name] += sum(ceiling.held_out) > sum(power.held_out)
    assert chosen["bent"] == 6
    assert chosen["straight"] <= 3


def test_a_law_without_K_is_said_to_do_as_well() -> None:
    found = fit(sweep(replace(FLAT, trial=0.06), random(3)))
    assert any("do not show that K matters" in note for note in found.notes)
    assert not usual().notes


def test_held_out_density_is_that_of_a_refit_without_the_trial() -> None:
    series = sweep(Truth(), random())
    observed = sufficient(series, POWER)
    found = fit_curve(MOVING, observed, CENTRE)
    rest = sufficient(series[:-1], POWER)
    without = fit_curve(MOVING, rest, CENTRE, found.scatter, found.df)
    rows = observed.trial == len(series) - 1
    design = MOVING.design(observed.x[rows] - CENTRE.x, observed.k[rows] - CENTRE.k, observed.p[rows] - CENTRE.p)
    own = Curves(observed.trial[rows], observed.x[rows] - CENTRE.x, observed.error[rows])
    spread = own.covariance(found.scatter)[0] + design @ np.array(without.covariance) @ design.T
    expected = stats.multivariate_normal.logpdf(observed.y[rows], design @ np.array(without.theta), spread)
    assert found.held_out[-1] == pytest.approx(expected, rel=1e-6)


# invariance


def test_the_unit_of_FLOPs_does_not_matter() -> None:
    series = [*sweep(Truth(), random()), *baselines(FLAT)]
    one, two = (fit([scaled(each, factor) for each in series], POWER) for factor in (1.0, 1e6))
    assert two.curve.theta == pytest.approx(one.curve.theta, rel=1e-6, abs=1e-8)
    first, second = advise(one, 2e14), advise(two, 2e20)
    assert second.optimum == pytest.approx(first.optimum, rel=1e-6)
    for a, b in zip(first.choices, second.choices, strict=True):
        assert b.probability_best == pytest.approx(a.probability_best, abs=5e-3)
        assert a.crossing is not None and b.crossing is not None
        assert (b.crossing.state, a.crossing.state) == (a.crossing.state, b.crossing.state)
        if a.crossing.flops:
            assert b.crossing.flops == pytest.approx(1e6 * a.crossing.flops, rel=1e-4)


def test_the_order_of_trials_and_repetitions_does_not_matter() -> None:
    series = [replace(one, run_dir=f"runs/{number}") for number, one in enumerate(sweep(Truth(), random()))]
    shuffled = [series[index] for index in random(1).permutation(len(series))]
    assert moving([*shuffled, *series[:5]]).theta == pytest.approx(moving(series).theta, rel=1e-5, abs=1e-7)


# answers


def test_advice_is_sure_where_the_trials_are_and_only_there() -> None:
    found = fit([*sweep(QUIET, random()), *baselines(replace(FLAT, trial=1e-4, slope=1e-4, point=1e-4))], POWER)
    best = max((1, 2, 4, 8), key=lambda K: QUIET.score(2e14, K))
    advice = advise(found, 2e14)
    assert advice.best == best
    assert f"K = {best} is best (probability 1.00)" in advice.verdict
    assert sum(choice.probability_best for choice in advice.choices) == pytest.approx(1)
    truths = [1 - QUIET.score(2e14, K) / QUIET.score(2e14, best) for K in (1, 2, 4, 8)]
    assert [choice.expected_loss for choice in advice.choices] == pytest.approx(truths, abs=0.01)
    unsure = advise(fit(sweep(replace(Truth(), trial=0.15), random(1)), POWER), 2e14)
    assert "cannot be told apart" in unsure.verdict
    assert "there is no baseline" in unsure.verdict


def test_where_the_baseline_is_overtaken() -> None:
    quiet = {"trial": 1e-3, "slope": 1e-3, "point": 1e-3, "error": 0.005}
    calm, token = replace(Truth(), **quiet), replace(FLAT, **quiet)
    made = sweep(calm, random())
    found = fit([*made, *baselines(token)], POWER)
    where = crossing(found, 4)
    slope = calm.b + calm.e * 0.5 - token.b
    gap = token.score(1e14, 1) / calm.score(1e14, 4)
    truth = 1e14 * gap ** (1 / slope)
    assert where.state == CROSSES
    assert where.flops == pytest.approx(truth, rel=0.05)
    assert where.low is not None and where.high is not None
    assert where.low < truth < where.high
    ahead = fit([*made, *baselines(replace(token, a=-0.9))], POWER)
    assert crossing(ahead, 4).state == AHEAD
    behind = fit([*made, *baselines(replace(token, a=1.4))], POWER)
    assert crossing(behind, 4).state == BEHIND
    assert crossing(behind, 4).probability < 0.05
    with pytest.raises(SweepError, match="there is no baseline"):
        predict_baseline(usual(), 1e14)


def test_certainty_changes_hands_where_the_best_K_does() -> None:
    found = fit(sweep(replace(Truth(), e=0.08), random()), POWER)
    best, loss = probabilities_best(found, np.geomspace(3e13, 3e14, 5))
    assert best.sum(axis=0) == pytest.approx(np.ones(5))
    assert (np.diff(best[1]) <= 0.02).all() and (np.diff(best[3]) >= -0.02).all()
    assert (loss >= 0).all()


# what is chosen, left out and refused


def test_points_choose_evaluations() -> None:
    made = sweep(Truth(), random(), pruned_after=2)
    pruned = sum(one.state == "pruned" for one in made)
    every = observe(made, FitSettings())
    last = observe(made, FitSettings(points="last"))
    front = observe(made, FitSettings(points="envelope"))
    assert len(every.y) == sum(len(one.points) for one in made)
    assert len(last.y) == len(made) - pruned
    assert set(last.x.round(6)) == {round(math.log10(3e14), 6)}
    for K in (1, 2, 4, 8):
        mine = front.of_K(K)
        order = np.argsort(front.x[mine])
        assert (np.diff(front.y[mine][order]) > 0).all()
    assert f"{len(every.y) - len(front.y)} evaluations off the front of their K" in front.left_out


def test_last_evaluations_of_several_budgets_carry_a_fit() -> None:
    source = random()
    made = [
        trial(Truth(), K, seed, [budget / 2, budget], source)
        for K in (1, 2, 4, 8)
        for seed, budget in enumerate((3e13, 5e13, 1e14, 2e14, 3e14))
    ]
    found = fit(made, FitSettings(points="last", law="moving-optimum"))
    assert found.evaluations == 20
    assert found.curve.df == 15, "one value per trial: every coefficient costs a trial"
    assert found.curve.theta[1] == pytest.approx(0.35, abs=0.08)


def test_scores_below_the_detection_limit_are_left_out_and_counted() -> None:
    made = sweep(Truth(floor=1.5, trial=0.0, slope=0.0), random())
    low = sum(point.brier_lm < 2 * point.brier_lm_se for one in made for point in one.points)
    assert low > 5
    found = fit(made, POWER)
    assert f"{low} scores below the detection limit (2 standard errors)" in found.left_out
    assert found.evaluations == 72 - low


def refusal(series: list[Series], asked: FitSettings = POWER) -> str:
    with pytest.raises(SweepError) as caught:
        fit(series, asked)
    text = str(caught.value)
    assert "\n" not in text and not text.endswith(".")
    return text


def test_too_few_points_are_refused_with_what_is_missing() -> None:
    made = sweep(Truth(), random())
    two = refusal([one for one in made if one.K in (2, 4)])
    assert "2 values of K can be used and 3 are needed" in two
    single = refusal(sweep(Truth(), random(), seeds=1))
    assert "K = 8 has 1 of 2 trials" in single
    short = refusal(sweep(Truth(), random(), flops=(1e14, 2e14)))
    assert "K = 1 has 0.3 of 0.5 decades of FLOPs" in short
    censored = [replace(one, points=tuple(replace(point, brier_lm=0.0) for point in one.points)) for one in made]
    assert "72 scores below the detection limit" in refusal(censored)
    assert "0 values of K can be used" in refusal([])
    assert "are too few" in refusal(sweep(Truth(), random(), Ks=(1, 2, 4), seeds=1), replace(POWER, least_trials=1))


def test_one_seed_is_answered_only_on_demand_and_with_wide_bands() -> None:
    lone = predict(fit(sweep(Truth(), random(), seeds=1), replace(POWER, least_trials=1)), 1e14, 4)
    several = predict(usual(), 1e14, 4)
    assert math.log(lone.high / lone.low) > 3 * math.log(several.high / several.low)


def test_K_and_FLOPs_that_rise_together_are_refused() -> None:
    source = random()
    made = [
        trial(Truth(), K, seed, [1e13 * K**3.5, 1.02e13 * K**3.5], source) for K in (1, 2, 4, 8) for seed in range(3)
    ]
    text = refusal(made, replace(POWER, decades=0.001))
    assert "vary together" in text


def test_a_K_without_enough_points_is_left_out_by_name() -> None:
    made = [one for one in sweep(Truth(), random()) if one.K != 8 or one.seed == 0]
    found = fit(made, POWER)
    assert found.Ks == (1, 2, 4)
    assert "K = 8 has 1 of 2 trials (left out)" in found.left_out


def test_far_budgets_are_marked_and_farther_ones_refused() -> None:
    found = usual()
    assert not predict(found, 1e14, 4).extrapolated
    assert not predict(found, 3e14, 3).extrapolated
    assert predict(found, 2e15, 4).extrapolated
    assert predict(found, 1e14, 16).extrapolated
    verdict = advise(found, 2e15).verdict
    assert "This is an extrapolation" in verdict
    assert "a ceiling (" in verdict
    with pytest.raises(SweepError, match="4e15 training FLOPs lie too far from the 3e13 to 3e14 of K = 4"):
        predict(found, 4e15, 4)
    with pytest.raises(SweepError, match="K = 32 lies too far"):
        predict(found, 1e14, 32)


def test_settings_without_meaning_are_refused() -> None:
    for wrong in ({"target": "loss"}, {"points": "best"}, {"least_trials": 0}, {"decades": 0.0}, {"draws": 1}):
        with pytest.raises(SweepError):
            FitSettings(**wrong)  # type: ignore[arg-type]
    text = refusal(sweep(Truth(), random()), FitSettings(law="chinchilla"))
    assert "choose one of flops, line, optimum, moving-optimum" in text


def test_a_shared_autoencoder_is_mentioned() -> None:
    made = [replace(one, autoencoder_dir=f"ae/{one.K}") for one in sweep(Truth(), random())]
    assert any("K = 1, 2, 4, 8 share an autoencoder" in note for note in fit(made, POWER).notes)


def test_what_else_was_swept_is_mentioned() -> None:
    made = [
        replace(one, values={**one.values, "model.l": 32 * (one.K or 1), "model.N": 2 + one.seed})
        for one in sweep(Truth(), random())
    ]
    (note,) = fit(made, POWER).notes
    assert note.startswith("model.N vary"), "l follows from K and is not a variable of its own"


def test_confounded_designs_have_large_condition_numbers() -> None:
    x = np.linspace(-1, 1, 20)
    assert condition(np.column_stack([np.ones(20), x])) == pytest.approx(1)
    assert condition(np.column_stack([x, x + 1e-3 * np.sin(9 * x)])) > 100
    assert condition(np.zeros((3, 1))) == math.inf
    which = np.repeat(np.arange(5), 4)
    design = np.column_stack([np.ones(20), which.astype(float), x])
    assert degrees_of_freedom(Curves(which, x, x * 0), design) == 3

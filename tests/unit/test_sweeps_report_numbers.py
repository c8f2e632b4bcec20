"""The numbers of a report against closed forms and direct recomputation: seeds, fronts, history, slices, importance."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from synthetic_sweeps import AUTOENCODER_FLOPS, baseline, evaluation, grid, record, run

from calm_lightning.errors import SweepError
from sweeps.front.pareto import front, hypervolume
from sweeps.front.series import front_points
from sweeps.report.best import choose, stretches, to_json, verdict
from sweeps.report.comparisons import contrasts, following_keys, free_keys
from sweeps.report.findings import find
from sweeps.report.frontier import front_shares, model_front
from sweeps.report.gathering import gather
from sweeps.report.history import history
from sweeps.report.importance import importances, in_words
from sweeps.report.seeds import difference, mean_point, models_of, quantile
from sweeps.report.slices import at_flops, shared_budget, slice_of

K, N = "model.K", "model.N"


def test_interval_of_seeds_is_students_with_welch_and_satterthwaites_freedom() -> None:
    scores, errors = [5.0, 5.6, 6.2], [0.2, 0.3, 0.25]
    points = [evaluation(10, 1e13, score, se) for score, se in zip(scores, errors, strict=True)]
    found = mean_point(points, of=3)
    between = np.var(scores, ddof=1) / 3
    shared = np.mean(np.square(errors))
    freedom = (between + shared) ** 2 / (between**2 / 2)
    margin = stats.t.ppf(0.975, freedom) * math.sqrt(between + shared)
    assert found.score == pytest.approx(5.6)
    assert found.spread == pytest.approx(0.6)
    assert found.evaluation_se == pytest.approx(math.sqrt(shared))
    assert found.freedom == pytest.approx(freedom)
    assert (found.low, found.high) == pytest.approx((5.6 - margin, 5.6 + margin))


def test_exact_scores_leave_students_t_of_the_seeds_alone() -> None:
    found = mean_point([evaluation(10, 1e13, score, 0.0) for score in (4.0, 6.0)], of=2)
    assert found.freedom == pytest.approx(1.0)
    assert found.high - found.score == pytest.approx(stats.t.ppf(0.975, 1) * math.sqrt(2) / math.sqrt(2), rel=1e-9)


def test_seeds_that_agree_leave_the_error_of_the_evaluation_which_they_share() -> None:
    found = mean_point([evaluation(10, 1e13, 5.0, 0.3)] * 4, of=4)
    assert found.se == pytest.approx(0.3)
    assert math.isinf(found.freedom)
    assert found.high == pytest.approx(5.0 + stats.norm.ppf(0.975) * 0.3)


def test_a_single_run_keeps_the_interval_of_its_evaluation() -> None:
    point = replace(evaluation(10, 1e13, 5.0, 0.3), brier_lm_low=4.1, brier_lm_high=5.3)
    found = mean_point([point], of=1)
    assert (found.low, found.high, found.spread) == (4.1, 5.3, None)


@given(st.floats(1.0, 1e4))
def test_quantile_is_that_of_students_distribution(freedom: float) -> None:
    assert quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-6)


def test_seeds_cover_the_truth_as_often_as_stated() -> None:
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(600):
        documents = generator.normal(0, 0.2)
        scores = 5 + documents + generator.normal(0, 0.3, 3)
        found = mean_point([evaluation(10, 1e13, float(score), 0.2) for score in scores], of=3)
        hits += found.low <= 5 <= found.high
    assert 0.93 <= hits / 600 <= 1.0


def test_series_of_one_slug_are_one_model_and_survivors_are_no_part_of_the_front() -> None:
    whole = [run([2.0, 4.0, 6.0], {K: 4}, seed=seed) for seed in (0, 1)]
    stopped = run([1.0], {K: 4}, seed=2, state="pruned")
    (model,) = models_of([*whole, stopped])
    assert [(point.seeds, point.of, point.score) for point in model.curve] == [
        (3, 3, pytest.approx(5 / 3)),
        (2, 3, 4.0),
        (2, 3, 6.0),
    ]
    assert [point.step for _, point in model_front([model])] == [10]
    assert model.seeds_in_words() == "3 (1 pruned)"


def test_difference_is_welchs() -> None:
    a = mean_point([evaluation(10, 1e13, score, 0.0) for score in (5.0, 5.4, 5.9)], of=3)
    b = mean_point([evaluation(10, 1e13, score, 0.0) for score in (4.0, 4.9, 4.1)], of=3)
    expected = stats.ttest_ind([5.0, 5.4, 5.9], [4.0, 4.9, 4.1], equal_var=False)
    interval = expected.confidence_interval(0.95)
    found = difference(a, b)
    assert found.freedom == pytest.approx(expected.df)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.significant == (expected.pvalue < 0.05)


def test_front_shares_are_certain_without_errors_and_even_between_equals() -> None:
    sure = models_of([run([2.0, 5.0], {K: 4}, se=0.0), run([1.0, 4.0], {K: 8}, se=0.0)])
    assert front_shares(sure) == {"K4": 1.0, "K8": 0.0}
    even = models_of([run([5.0], {K: 4}, se=0.5, flops=[1e13]), run([5.0], {K: 8}, se=0.5, flops=[1e13])])
    shares = front_shares(even)
    assert shares["K4"] + shares["K8"] == pytest.approx(1.0)
    assert shares["K4"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_history_is_the_hypervolume_recomputed_from_all_evaluations(seeds: tuple[int, ...]) -> None:
    series = grid(seeds=seeds)
    reference = max(point.train_flops for one in series for point in one.trained)
    moments = history(series)
    for count, moment in enumerate(moments, start=1):
        plane = [(p.train_flops, p.brier_lm) for one in series[:count] for p in one.trained if p.brier_lm > 0]
        assert moment.trials == count
        assert moment.hypervolume == pytest.approx(hypervolume(plane, (reference, 0.0)))
    assert [one.hypervolume for one in moments] == sorted(one.hypervolume for one in moments)


def test_spent_flops_count_a_shared_autoencoder_once_and_follow_the_clock() -> None:
    first = run([1.0], {K: 4}, flops=[5e12], seed=0, trial=0, finished=20.0)
    second = run([2.0], {K: 4}, flops=[5e12], seed=1, trial=1, finished=10.0)
    own = replace(run([1.0], {K: 8}, flops=[6e12], trial=2, finished=30.0))
    moments = history([first, second, own])
    assert [moment.hypervolume > 0 for moment in moments] == [True, True, True]
    spent = [5e12, 5e12 + 3e12, 8e12 + 6e12]
    assert [moment.spent for moment in moments] == pytest.approx(spent)
    assert moments[0].hypervolume == pytest.approx(math.log10(6e12 / 5e12) * 2.0)
    assert first.final.train_flops - first.final.stage_train_flops == AUTOENCODER_FLOPS


def test_interpolation_by_hand() -> None:
    (model,) = models_of([run([2.0, 4.0], {K: 4}, flops=[1e13, 1e14], se=0.1)])
    middle = at_flops(model.curve, 10**13.25)
    assert middle is not None
    assert (middle.score, middle.se) == pytest.approx((2.5, 0.1))
    assert (middle.low, middle.high) == pytest.approx((2.5 - 0.196, 2.5 + 0.196))
    assert at_flops(model.curve, 1e14) == model.final
    assert at_flops(model.curve, 9e12) is None
    assert at_flops(model.curve, 1.1e14) is None


def test_equal_flops_are_what_all_completely_trained_models_reach() -> None:
    long, short = run([2.0, 4.0], {K: 1}, flops=[1e13, 1e14]), run([3.0, 5.0], {K: 4}, flops=[1e13, 5e13])
    early = run([1.0], {K: 8}, flops=[1e13], state="pruned")
    found = slice_of(models_of([long, short, early]), K, {})
    assert found.budget == 5e13
    assert found.left_out == 1
    assert found.values == (1, 4, 8)
    apart = models_of([run([2.0], {K: 1}, flops=[1e13]), run([3.0, 5.0], {K: 4}, flops=[1e14, 5e14])])
    assert shared_budget(apart) is None


def test_contrasts_hold_all_other_chosen_keys_equal_and_name_what_follows() -> None:
    series = [
        run([float(k + n)], {K: k, N: n}, settings={"model.l": 32 * k}, trial=k * n) for k in (1, 4) for n in (2, 8)
    ]
    models = models_of(series)
    assert free_keys(models, {}) == [K, N]
    found = contrasts(models, [K], {})
    assert [one.equal for one in found] == [{N: 8}, {N: 2}]
    assert [value for (value,), _ in found[0].models] == [1, 4]
    assert found[0].following == ("model.l",)
    assert following_keys(models, [K, N]) == ["model.l"]


def test_a_setting_that_only_differs_between_sweeps_can_be_compared() -> None:
    a = record([run([2.0, 3.0], {K: k}, settings={"model.head": "energy"}) for k in (1, 4)])
    b = replace(record([run([1.0, 2.0], {K: k}, settings={"model.head": "flow"}) for k in (1, 4)]), study="other")
    gathered = gather([a, b])
    found = contrasts(gathered.models, ["model.head"], gathered.sweep_of)
    assert [[value for (value,), _ in one.models] for one in found] == [["energy", "flow"]] * 2
    assert {model.label[:3] for _, model in found[0].models} == {"A: ", "B: "}
    within = contrasts(gathered.models, [K], gathered.sweep_of)
    assert all(len({model.label[:3] for _, model in one.models}) == 1 for one in within)


def test_importance_finds_the_key_that_matters() -> None:
    models = models_of(grid(Ns=(2, 4, 8, 12), noise=0.02, with_baseline=False))
    score, cost, inference = importances(models, {})
    assert [found.shares[0][0] for found in (score, cost, inference)] == [K, N, K]
    assert score.shares[0][1] > 0.8
    assert score.signal is not None
    assert score.signal > 0.9
    for _, share, low, high in score.shares:
        assert low <= share <= high
    assert "K 0." in in_words(score)


def test_importance_is_refused_politely() -> None:
    few = importances(models_of(grid(Ns=(8,))), {})[0]
    assert "4 models are too few for 1 keys: at least 8 are needed" in in_words(few)
    assert "no chosen key has more than one value" in in_words(importances(models_of([run([1.0], {K: 4})]), {})[0])
    flat = [run([0.0], {K: 4, N: n}) for n in range(2, 12)]
    assert "it is the same for all models" in in_words(importances(models_of(flat), {})[0])
    noisy = [run([5.0 + 0.01 * n], {K: 4, N: n}, se=1.0) for n in range(2, 12)]
    assert "differ no more than their standard errors" in in_words(importances(models_of(noisy), {})[0])


def test_best_within_a_budget_and_whether_it_is_sure() -> None:
    cheap = [run([3.0 + 0.01 * seed, 3.5], {K: 8}, flops=[1e13, 2e13], seed=seed, se=0.05) for seed in (0, 1, 2)]
    dear = [run([1.0, 5.0 + 0.01 * seed], {K: 4}, flops=[1e13, 5e13], seed=seed, se=0.05) for seed in (0, 1, 2)]
    models = models_of([*cheap, *dear])
    small, large = choose(models, 2e13), choose(models, 1e14)
    assert (small.best.model.slug, large.best.model.slug) == ("K8", "K4")
    assert large.gap is not None
    assert large.gap.value == pytest.approx(1.51)
    assert large.gap.significant
    assert small.level is not None
    assert small.level.value == pytest.approx(3.5 - (1.0 + 4.01 * math.log(2) / math.log(5)))
    assert to_json(large)["commands"] == [
        "calm train autoencoder runs/autoencoder-K4/config.yaml",
        *(f"calm train calm runs/K4-{seed}/config.yaml" for seed in (0, 1, 2)),
    ]
    with pytest.raises(SweepError, match=r"the cheapest that does costs 1\.00e13"):
        choose(models, 1e12)


def test_best_of_single_runs_says_what_its_interval_leaves_out() -> None:
    choice = choose(models_of([run([5.0], {K: 4}), run([4.95], {K: 8}), baseline([1.0])]), 1e15)
    assert "no significant difference" in verdict(choice)
    assert "what another seed would change is not in this interval" in verdict(choice)
    with pytest.raises(SweepError, match="none is best"):
        choose(models_of([run([0.0], {K: 4})]), 1e15)


def test_stretches_cover_the_front_without_gaps() -> None:
    findings = find(gather([record(grid())]), importance=False)
    found = stretches(findings)
    assert found[0][0] == findings.front[0][1].train_flops
    assert math.isinf(found[-1][1])
    assert all(a[1] == b[0] and a[2] is not b[2] for a, b in pairwise(found))


def test_fronts_of_one_seed_each_are_the_front_of_evaluations() -> None:
    series = grid()
    findings = find(gather([record(series)]), importance=False)
    assert [(point.train_flops, point.score) for _, point in findings.front] == [
        (point.train_flops, point.brier_lm) for _, point in front_points(series)
    ]
    assert findings.hypervolume == pytest.approx(findings.runs_hypervolume)


def test_several_seeds_do_not_lift_the_front_of_models_as_they_lift_that_of_runs() -> None:
    findings = find(gather([record(grid(seeds=(0, 1, 2), noise=0.4))]), importance=False)
    assert findings.hypervolume < findings.runs_hypervolume
    plane = [(point.train_flops, point.score) for _, point in findings.front]
    assert front(plane) == list(range(len(plane)))


def test_nothing_finished_is_one_sentence() -> None:
    with pytest.raises(SweepError, match=r"no trial of runs/sweeps/synthetic has a result yet \(5 to come\)"):
        gather([record([], unfinished=5)])

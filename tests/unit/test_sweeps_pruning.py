"""The Pareto rule: what it promises for all curves, and single decisions by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from calm_lightning.errors import ConfigError
from calm_lightning.metrics.names import ScorePoint
from sweeps.pruning.config import PruningConfig, validate_pruning
from sweeps.pruning.rule import Decision, Evaluation, decide

ONE_SIDED_95 = 1.6449
SETTINGS = PruningConfig(rule="pareto", min_finished=1)
PARTS = (4.0, 1.5, 0.6, 1 / 3.6)


def point(step: int, stage_flops: float, score: float, error: float, autoencoder: float = 0.0) -> ScorePoint:
    """Return an evaluation whose Brier-1..4 have BrierLM as their geometric mean."""
    one, two, three, four = PARTS
    return ScorePoint(
        step=step,
        train_flops=stage_flops + autoencoder,
        stage_train_flops=stage_flops,
        inference_flops_per_token=1.0,
        text_tokens=float(step),
        seconds=float(step),
        brier_lm=score,
        brier_lm_se=error,
        brier_lm_low=score - 2 * error,
        brier_lm_high=score + 2 * error,
        brier=(one * score, two * score, three * score, four * score),
        brier_se=(one * error, two * error, three * error, four * error),
    )


def scored(old: ScorePoint, score: float, error: float) -> ScorePoint:
    """Return an evaluation with another score."""
    return point(old.step, old.stage_train_flops, score, error, old.train_flops - old.stage_train_flops)


class Case(NamedTuple):
    """What the rule is asked."""

    curve: tuple[ScorePoint, ...]
    final: float
    others: tuple[Evaluation, ...]

    def decide(self, settings: PruningConfig = SETTINGS) -> Decision:
        return decide(settings, self.curve, self.final, self.others, finished=4)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a trial that is often well below the front of the others, and sometimes on it."""
    autoencoder = draw(st.sampled_from([0.0, 0.5, 3.0]))
    count = draw(st.integers(1, 8))
    score = st.one_of(st.just(0.0), st.floats(0.01, 6))
    scores = draw(st.lists(score, min_size=count, max_size=count))
    errors = draw(st.lists(st.floats(0, 0.4), min_size=count, max_size=count))
    curve = [
        point(step, float(step), *pair, autoencoder)
        for step, pair in enumerate(zip(scores, errors, strict=True), start=1)
    ]
    final = autoencoder + draw(st.integers(count, 10))
    other = st.tuples(st.floats(0.5, 14), st.floats(0, 12), st.floats(0, 0.4))
    others = [Evaluation(*values) for values in draw(st.lists(other, min_size=1, max_size=12))]
    return Case(tuple(curve), final, tuple(others))


def judged(case: Case) -> list[ScorePoint]:
    """Return the evaluations after the warm-up."""
    autoencoder = case.curve[-1].train_flops - case.curve[-1].stage_train_flops
    length = max(case.final - autoencoder, case.curve[-1].stage_train_flops)
    return [one for one in case.curve if one.stage_train_flops >= SETTINGS.warmup * length]


def best(case: Case, cost: float) -> Evaluation | None:
    """Return the front at a cost."""
    known = [other for other in case.others if other.train_flops <= cost]
    return max(known, key=lambda other: other.brier_lm) if known else None


@given(cases())
def test_no_trial_is_stopped_that_has_an_evaluation_on_the_front_or_within_its_interval(case: Case) -> None:
    near = False
    for one in judged(case):
        rivals = [other for other in case.others if other.train_flops <= one.train_flops]
        margins = (ONE_SIDED_95 * math.hypot(one.brier_lm_se, rival.brier_lm_se) for rival in rivals)
        clearly = any(r.brier_lm - one.brier_lm > margin for r, margin in zip(rivals, margins, strict=True))
        near = near or (one.brier_lm > 0 and not clearly)
    last, front = case.curve[-1], best(case, case.curve[-1].train_flops)
    near = near or front is None or last.brier_lm >= front.brier_lm
    assert not (near and case.decide().stop)


@given(cases(), st.floats(0, 5))
def test_a_higher_last_evaluation_never_stops_a_trial(case: Case, more: float) -> None:
    last = case.curve[-1]
    raised = case._replace(curve=(*case.curve[:-1], scored(last, last.brier_lm + more, last.brier_lm_se)))
    assert case.decide().stop or not raised.decide().stop


@given(cases(), st.floats(1, 5))
def test_a_curve_raised_in_proportion_never_stops_a_trial(case: Case, factor: float) -> None:
    curve = tuple(scored(one, factor * one.brier_lm, factor * one.brier_lm_se) for one in case.curve)
    assert case.decide().stop or not case._replace(curve=curve).decide().stop


@given(cases(), st.floats(1, 4))
def test_wider_intervals_never_stop_a_trial(case: Case, factor: float) -> None:
    curve = tuple(scored(one, one.brier_lm, factor * one.brier_lm_se) for one in case.curve)
    others = tuple(other._replace(brier_lm_se=factor * other.brier_lm_se) for other in case.others)
    assert case.decide().stop or not case._replace(curve=curve, others=others).decide().stop


@given(cases(), st.integers(-60, 60))
def test_decisions_do_not_depend_on_the_unit_of_cost(case: Case, power: int) -> None:
    unit = 2.0**power
    curve = tuple(
        replace(one, train_flops=one.train_flops * unit, stage_train_flops=one.stage_train_flops * unit)
        for one in case.curve
    )
    others = tuple(other._replace(train_flops=other.train_flops * unit) for other in case.others)
    before, after = case.decide(), Case(curve, case.final * unit, others).decide()
    assert before.stop == after.stop
    for name, value in before.numbers.items():
        expected = value * unit if name in ("cost", "place") else value
        assert after.numbers[name] == pytest.approx(expected, rel=1e-9), name


@given(cases(), st.randoms())
def test_decisions_depend_on_their_arguments_only(case: Case, shuffle: object) -> None:
    first = case.decide()
    untrained = point(0, 0.0, 0.0, 0.0)
    beyond = Evaluation(case.final * 1.01, 99.0, 0.1)
    unknown = [Evaluation(math.nan, 99.0, 0.1), Evaluation(1.0, math.nan, 0.1), Evaluation(1.0, 99.0, math.nan)]
    shuffled = [*case.others, beyond, *unknown]
    shuffle.shuffle(shuffled)  # type: ignore[attr-defined]
    broken = replace(case.curve[-1], train_flops=case.curve[-1].train_flops + 0.1, brier_lm=math.nan)
    again = decide(SETTINGS, [broken, *reversed(case.curve), untrained], case.final, shuffled, finished=4)
    assert again == first == case.decide()


@given(cases())
def test_more_care_stops_fewer(case: Case) -> None:
    stopped = case.decide().stop
    careful: list[dict[str, float]] = [
        {"confidence": 0.99},
        {"optimism": 2.0},
        {"least_growth": 1.0},
        {"steepest_growth": 12.0},
        {"noise_floor": 0.5},
        {"min_evaluations": 5},
    ]
    for change in careful:
        assert stopped or not case.decide(replace(SETTINGS, **change)).stop, change  # type: ignore[arg-type]


def test_the_drawn_cases_hold_both_answers() -> None:
    draw = np.random.default_rng(0)
    answers = []
    for _ in range(200):
        curve = [point(step, step, draw.uniform(0, 4), 0.1) for step in range(1, 6)]
        others = [Evaluation(*draw.uniform((0.5, 0, 0), (14, 12, 0.4))) for _ in range(10)]
        answers.append(decide(SETTINGS, curve, 8.0, others, finished=4).stop)
    assert 0.2 < np.mean(answers) < 0.8


HIGH = [Evaluation(1.0, 20.0, 0.1), Evaluation(6.0, 22.0, 0.1)]
LOW_CURVE = [point(step, float(step), 1.0, 0.05) for step in range(1, 6)]


def stops(
    curve: Sequence[ScorePoint] = LOW_CURVE,
    final: float = 10.0,
    others: Sequence[Evaluation] = HIGH,
    finished: int = 4,
    settings: PruningConfig = SETTINGS,
) -> bool:
    return decide(settings, curve, final, others, finished).stop


def test_a_flat_curve_far_below_the_front_is_stopped_and_the_reason_has_the_numbers() -> None:
    decision = decide(SETTINGS, LOW_CURVE, 10.0, HIGH, finished=4)
    assert decision.stop
    assert "last 1 against 20 at 5 FLOPs" in decision.reason
    # Two rivals, five evaluations: one-sided 95 % for all of them at once.
    assert decision.numbers["z_front"] == pytest.approx(1.95996, abs=1e-4)
    assert decision.numbers["z_trial"] == pytest.approx(2.32635, abs=1e-4)
    error = math.hypot(0.05, 0.03)
    upper, lower = 1 + 2.32635 * error, 1 - 2.32635 * error
    growth = SETTINGS.optimism * math.log(upper / lower) / math.log(5)
    assert decision.numbers["upper"] == pytest.approx(upper, rel=1e-4)
    assert decision.numbers["growth"] == pytest.approx(max(growth, SETTINGS.least_growth), rel=1e-4)
    assert decision.numbers["place"] == 10.0
    assert decision.numbers["reach"] == pytest.approx(upper * 2 ** decision.numbers["growth"], rel=1e-4)
    assert decision.numbers["front_lower"] == pytest.approx(22 - 1.95996 * 0.1, rel=1e-4)


def test_growth_is_measured_in_the_models_own_flops() -> None:
    exact = replace(SETTINGS, training_noise=0.0, optimism=1.0, least_growth=0.0)
    curve = [point(step, float(step), 0.5 * step**0.7, 0.0, autoencoder=100.0) for step in range(1, 6)]
    others = [Evaluation(100.5, 20.0, 0.0)]
    numbers = decide(exact, curve, 110.0, others, finished=4).numbers
    assert numbers["growth"] == pytest.approx(0.7)
    assert numbers["reach"] == pytest.approx(0.5 * 10**0.7)


def test_a_late_starter_is_let_run() -> None:
    rising = [point(step, float(step), score, 0.05) for step, score in enumerate((0, 0, 0.1, 0.6, 1.6), start=1)]
    assert not stops(rising)
    assert stops([scored(one, 1.6, 0.05) for one in rising])


def test_a_model_that_shows_nothing_is_stopped_only_late() -> None:
    def nothing(steps: int) -> list[ScorePoint]:
        return [point(step, float(step), 0.0, 0.02) for step in range(1, steps + 1)]

    assert [stops(nothing(steps)) for steps in range(3, 9)] == [False, False, False, True, True, True]
    # Brier-1..3 say that only Brier-4 is in the way of a score: that counts.
    near = [replace(one, brier=(30.0, 9.0, 3.0, -0.01), brier_se=(0.5, 0.3, 0.2, 0.1)) for one in nothing(5)]
    assert not stops(near)


def test_the_cheapest_trial_is_on_the_front() -> None:
    assert not stops(others=[Evaluation(5.1, 20.0, 0.1)])
    assert not stops(others=[Evaluation(11.0, 20.0, 0.1)])
    # Cheaper at an evaluation after the warm-up; the warm-up's own do not count.
    assert not stops(others=[Evaluation(3.1, 20.0, 0.1)])
    assert stops(others=[Evaluation(2.9, 20.0, 0.1)])


def test_a_later_step_of_the_front_is_looked_at_just_before_it_rises() -> None:
    curve = [point(step, float(step), 4.0, 0.1) for step in range(1, 6)]
    gap_closes = [Evaluation(1.0, 6.0, 0.01), Evaluation(9.9, 20.0, 0.01)]
    assert not stops(curve, others=gap_closes)
    assert stops(curve, others=[Evaluation(1.0, 6.0, 0.01), Evaluation(5.1, 20.0, 0.01)])


def test_conditions_under_which_nothing_is_stopped() -> None:
    assert stops()
    assert not stops(finished=0)
    assert not stops(LOW_CURVE[:4], final=20.0), "two evaluations of a fifth of its training"
    assert not stops(final=5.0), "its training is at its end"
    assert not stops(final=math.nan)
    assert not stops(others=[])
    assert not stops([])
    assert not stops([point(0, 0.0, 0.0, 0.0)])
    assert not stops([scored(one, 1.0, math.nan) for one in LOW_CURVE]), "its errors are unknown"
    assert not stops([scored(one, 1.0, math.inf) for one in LOW_CURVE])
    assert not stops(others=[Evaluation(1.0, 20.0, math.inf)]), "the front's error is unknown"


def test_one_lucky_rival_among_many_is_not_taken_for_the_front() -> None:
    """The largest of 300 equal scores with error 0.5 lies about 1.5 above them."""
    draw = np.random.default_rng(1)
    others = [Evaluation(1.0, 3 + 0.5 * noise, 0.5) for noise in draw.standard_normal(300)]
    assert max(other.brier_lm for other in others) > 4.2
    flat = replace(SETTINGS, optimism=1.0, least_growth=0.0, training_noise=0.0)
    curve = [point(step, float(step), 3.0, 0.0) for step in range(1, 6)]
    assert not stops(curve, others=others, settings=flat)
    assert stops([scored(one, 1.0, 0.0) for one in curve], others=others, settings=flat)


def test_settings_are_a_structured_configuration_and_are_checked() -> None:
    merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PruningConfig), {"warmup": 0.1}))
    assert merged == PruningConfig(warmup=0.1)
    validate_pruning(PruningConfig())
    wrong = [
        {"rule": "best"},
        {"confidence": 1.0},
        {"warmup": 1.0},
        {"min_finished": 0},
        {"optimism": 0.5},
        {"training_noise": -0.1},
        {"least_growth": 9.0},
    ]
    for change in wrong:
        with pytest.raises(ConfigError, match=next(iter(change))):
            validate_pruning(PruningConfig(**change))  # type: ignore[arg-type]

"""Replays against sweeps worked out by hand, rates against closed forms, false stops on curves of known truth."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from calm_lightning.errors import SweepError
from calm_lightning.metrics.names import ScorePoint
from sweeps.front.series import PRUNED, Series
from sweeps.pruning.config import PruningConfig
from sweeps.pruning.evidence import gather, rate, sensitivity
from sweeps.pruning.replay import SECONDS, Trial, recorded, replay
from sweeps.pruning.report import evidence_table, outcome_table, report
from sweeps.pruning.rivals import competitors, evaluations
from sweeps.pruning.rule import Evaluation
from sweeps.pruning.synthetic import KINDS, sweep

RECKLESS = PruningConfig(
    rule="pareto",
    min_finished=1,
    min_evaluations=1,
    warmup=0.0,
    training_noise=0.0,
    noise_floor=0.0,
    optimism=1.0,
    least_growth=0.0,
    steepest_growth=0.0,
)
"""Takes every score as it is, and for the last word."""


def series(label: str, costs: list[float], scores: list[float], error: float = 0.0, **more: object) -> Series:
    points = [ScorePoint(0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, (0.0,) * 4, (0.0,) * 4)]
    for step, (cost, score) in enumerate(zip(costs, scores, strict=True), start=1):
        values = (cost, cost, 1.0, float(step), 10.0 * step, score, error, score, score)
        points.append(ScorePoint(step, *values, (score,) * 4, (error,) * 4))
    return Series(label, "calm", {}, 1, tuple(points), "", "", None, "", **more)  # type: ignore[arg-type]


GOOD = series("good", [1, 2, 3, 4], [4, 6, 8, 10])
BAD = series("bad", [1.5, 2.5, 3.5, 4.5], [1, 2, 3, 3.5])
LATE = series("late", [2, 4, 6, 8], [0, 1, 4, 13])


def test_contributions_are_those_of_the_whole_sweep() -> None:
    good, bad, late = recorded([GOOD, BAD, LATE])
    assert good.lasting.tolist() == [True] * 4
    assert not bad.lasting.any()
    assert late.lasting.tolist() == [False, False, False, True]
    assert late.significant.tolist() == late.lasting.tolist()
    # Above the front by 3, with errors of 2 on both sides: 1.96 * 2.83 is more.
    noisy = recorded([series("good", [1, 2, 3, 4], [4, 6, 8, 10], 2.0), series("late", [8], [13], 2.0)])
    assert noisy[1].lasting.tolist() == [True]
    assert noisy[1].significant.tolist() == [False]


def test_one_worker_by_hand() -> None:
    trials = recorded([GOOD, BAD, LATE])
    found = replay(trials, RECKLESS, workers=1)
    # `bad` is 1 against 4 at its first evaluation, `late` scores 0 at its first: both are stopped there.
    assert [(stop.trial, stop.evaluation) for stop in found.stops] == [(1, 0), (2, 0)]
    assert [(stop.false, stop.significantly_false) for stop in found.stops] == [(False, False), (True, True)]
    assert found.saved == pytest.approx((3 + 6) / (4 + 4.5 + 8))
    # Seen from cost 8 and score 0: the front keeps its first four steps; the one at cost 8 adds no area.
    assert found.hypervolume_loss == pytest.approx(0)


def test_lost_hypervolume_by_hand() -> None:
    longer = series("good", [1, 10], [4, 5])
    late = series("late", [2, 5, 8], [0, 1, 9])
    found = replay(recorded([longer, late]), RECKLESS, workers=1)
    assert [(stop.trial, stop.evaluation, stop.false) for stop in found.stops] == [(1, 0, True)]
    whole = 4 * math.log10(10) + 5 * math.log10(10 / 8)
    assert found.hypervolume_loss == pytest.approx(1 - 4 / whole)


def test_workers_side_by_side_know_less() -> None:
    trials = recorded([GOOD, BAD, LATE])
    found = replay(trials, RECKLESS, workers=3)
    # `good` is finished at 4, and only then is anything stopped: `late` at once, `bad` at 4.5 has come to its end.
    assert [(stop.trial, stop.evaluation) for stop in found.stops] == [(2, 1)]
    # In seconds all three end together.
    assert replay(trials, RECKLESS, workers=3, clock=SECONDS).stops == ()
    assert replay(trials, replace(RECKLESS, min_finished=3), workers=1).stops == ()


def test_a_trial_begins_when_a_worker_is_free() -> None:
    short, long = series("short", [1, 2], [4, 6]), series("long", [3, 5, 10], [1, 1, 1])
    trials = recorded([short, long, replace(short, label="next")])
    # `next` begins at 2, when `short` has ended, and ends at 4: `long` is stopped at 5, not at 3.
    found = replay(trials, replace(RECKLESS, min_finished=2), workers=2)
    assert [(stop.trial, stop.evaluation) for stop in found.stops] == [(1, 1)]


def test_what_was_evaluated_before_the_stop_is_not_lost() -> None:
    early = series("early", [0.5, 5, 6, 10], [3, 3, 3, 3])
    found = replay(recorded([GOOD, early]), replace(RECKLESS, warmup=0.4), workers=1)
    assert recorded([GOOD, early])[1].lasting.tolist() == [True, False, False, False]
    assert [(stop.trial, stop.evaluation, stop.false) for stop in found.stops] == [(1, 1, False)]
    assert found.saved == pytest.approx(5 / 14)


def test_order_decides_who_is_known() -> None:
    trials = recorded([GOOD, BAD, LATE])
    assert [stop.trial for stop in replay(trials, RECKLESS, workers=1, order=[1, 2, 0]).stops] == [2]
    assert [stop.trial for stop in replay(trials, RECKLESS, workers=1, order=[2, 1, 0]).stops] == []


def test_stages_do_not_compete() -> None:
    baseline = replace(GOOD, stage="baseline")
    trials = recorded([baseline, BAD, LATE])
    assert trials[1].lasting.tolist() == [True] * 4
    assert all(stop.trial != 1 for stop in replay(trials, RECKLESS, workers=1).stops)


def test_where_inference_is_an_objective_only_cheaper_models_compete() -> None:
    def priced(one: Series, price: float) -> Series:
        return replace(one, points=tuple(replace(point, inference_flops_per_token=price) for point in one.points))

    models = [priced(GOOD, 2.0), priced(BAD, 1.0), priced(LATE, 3.0)]
    good, bad, _ = recorded(models, inference=True)
    assert good.lasting.tolist() == [True] * 4
    assert bad.lasting.tolist() == [True] * 4
    assert [stop.trial for stop in replay(recorded(models, inference=True), RECKLESS, workers=1).stops] == [2]
    assert [one.label for one in competitors(models, "calm", 2.0)] == ["good", "bad"]
    assert [one.label for one in competitors(models, "calm")] == ["good", "bad", "late"]
    assert competitors(models, "baseline") == []
    assert evaluations([BAD])[1] == Evaluation(2.5, 2.0, 0.0)


def test_pruned_trials_are_left_out_and_one_is_not_enough() -> None:
    assert [trial.label for trial in recorded([GOOD, replace(BAD, state=PRUNED), LATE])] == ["good", "late"]
    with pytest.raises(SweepError, match="1 complete trials"):
        recorded([GOOD, replace(BAD, state=PRUNED)])


def test_evaluations_that_are_not_numbers_are_left_out() -> None:
    points = (*GOOD.points[:2], replace(GOOD.points[2], brier_lm=math.nan), *GOOD.points[3:])
    good, _ = recorded([replace(GOOD, points=points), BAD])
    assert good.curve.cost.tolist() == [1, 3, 4]
    assert good.seconds.tolist() == [10, 30, 40]


def test_rates_in_closed_form() -> None:
    none = rate([0.0] * 10, [10.0] * 10)
    assert (none.low, none.high) == (0.0, pytest.approx(3.8416 / 103.8416))
    # Wilson's interval of 5 out of 100, spread evenly over sweeps.
    few = rate([1.0, 0.0] * 5, [10.0] * 10)
    assert (few.low, few.high) == (pytest.approx(0.02154, abs=1e-4), pytest.approx(0.11175, abs=1e-4))
    crowded = rate([5.0, *[0.0] * 9], [10.0] * 10)
    assert crowded.high > 1.5 * few.high
    assert math.isnan(rate([0.0], [0.0]).value)


def test_rates_cover_the_truth() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        counts = draw.integers(1, 12, 40)
        found = rate(draw.binomial(counts, 0.06).tolist(), counts.tolist())
        covered += found.low <= 0.06 <= found.high
    assert covered / 300 > 0.92


def test_replays_are_repeatable_and_average_over_orders() -> None:
    trials = recorded(*sweep(0, "power"))
    first = gather([trials], PruningConfig(), replays=8)
    assert gather([trials], PruningConfig(), replays=8) == first
    assert first.stopped.count == len(trials)
    assert first.saved > 0


def test_reports_name_who_was_stopped_and_why() -> None:
    found = report({"study": recorded([GOOD, BAD, LATE])}, RECKLESS, workers=1, replays=20)
    good, bad, late = found.outcomes
    assert (good.share, good.at, good.reason) == (0.0, None, "")
    assert bad.share > 0
    assert bad.false == 0
    assert late.false > 0
    assert late.at == 2.0
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["false"]["share"] == pytest.approx(found.evidence.false.value)
    console = Console(width=200, record=True)
    console.print(evidence_table([("study", found.evidence)], "Replayed"), outcome_table(found.outcomes))
    text = console.export_text()
    assert "late" in text
    assert "every evaluation lies under the front" in text


def test_sensitivity_changes_one_setting_at_a_time() -> None:
    trials = [recorded(*sweep(seed, "power")) for seed in range(3)]
    rows = sensitivity(trials, PruningConfig(), {"optimism": (1.0, 2.0), "confidence": (0.8,)})
    assert [(key, value) for key, value, _ in rows] == [("optimism", 1.0), ("optimism", 2.0), ("confidence", 0.8)]
    assert rows[0][2].saved >= rows[1][2].saved


@pytest.mark.parametrize("noise", [0.05, 0.15, 0.3])
def test_false_stops_on_curves_of_known_truth_stay_below_what_is_documented(noise: float) -> None:
    sweeps: list[tuple[Trial, ...]] = [recorded(*sweep(seed, kind, noise=noise)) for kind in KINDS for seed in range(8)]
    found = gather(sweeps, PruningConfig())
    assert found.stopped.events > 100, "nothing to be wrong about"
    assert found.false.value <= 0.01
    assert found.significant.value <= 0.005
    assert found.true.value <= 0.01
    assert found.hypervolume_loss < 0.001
    assert found.saved > 0.04


def test_a_reckless_rule_is_seen_to_be_wrong() -> None:
    """The measure can fail: with every guard off, many stops are false."""
    sweeps = [recorded(*sweep(seed, "late")) for seed in range(5)]
    found = gather(sweeps, replace(RECKLESS, confidence=0.51))
    assert found.false.value > 0.1
    assert found.hypervolume_loss > 0.01

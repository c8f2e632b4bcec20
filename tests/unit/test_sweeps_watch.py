"""What a sweep says while it runs: remaining time in closed form, one line per event, strict JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calm_lightning.errors import SweepError
from sweeps.watch.eta import elapsed, expected_share, remaining_flops, seconds_left, seconds_per_flop
from sweeps.watch.lines import LONGEST, closing, events
from sweeps.watch.snapshot import (
    COMPLETE,
    FAILED,
    GONE,
    IDLE,
    LEFT,
    PRUNED,
    RUNNING,
    WAITING,
    CacheCounts,
    FrontPoint,
    Snapshot,
    TrialView,
    WorkerView,
)
from sweeps.watch.status import select, to_json

NOW = 1_767_600_000.0  # 2026-01-05 08:00:00 UTC
STAMP = "2026-01-05 08:00:00Z  "


def trial(number: int = 0, state: str = WAITING, **changes: Any) -> TrialView:
    """Return a trial of 1e12 FLOPs; one that has begun took 100 seconds for what it has spent."""
    begun = state != WAITING
    values: dict[str, Any] = {
        "number": number,
        "label": "K=4 l=128",
        "seed": 0,
        "state": state,
        "stage": "calm" if begun else "",
        "step": 400 if begun else 0,
        "max_steps": 400 if begun else 0,
        "train_flops": 1e12 if begun else 0.0,
        "budget_flops": 1e12,
        "brier_lm": 4.816 if begun else None,
        "brier_lm_se": 0.21 if begun else None,
        "worker": "local-0" if begun else "",
        "started": NOW - 100 if begun else None,
        "finished": NOW if state in (COMPLETE, PRUNED, FAILED) else None,
        "attempts": int(begun),
        "reason": "",
    }
    return TrialView(**{**values, **changes})


def worker(index: int = 0, **changes: Any) -> WorkerView:
    return WorkerView(**{**asdict(WorkerView(f"local-{index}", f"host:{1000 + index}", None, IDLE, 0.0)), **changes})


def snapshot(*trials: TrialView, workers: int = 2, **changes: Any) -> Snapshot:
    values: dict[str, Any] = {
        "study": "k4-sweet-spot-1a2b3c",
        "title": "K = 4 sweet spot",
        "directory": "runs/sweeps/k4-sweet-spot-1a2b3c",
        "taken": NOW,
        "planned": len(trials),
        "trials": trials,
        "workers": tuple(worker(index) for index in range(workers)),
        "front": (),
        "hypervolume": 0.0,
        "cache": CacheCounts(0, 0, 0.0),
    }
    return Snapshot(**{**values, **changes})


# -- remaining time ----------------------------------------------------------------------------------------------


def test_remaining_time_is_pace_times_load() -> None:
    # 1e-10 seconds per FLOP, 3e12 FLOPs, two workers
    taken = snapshot(trial(0, COMPLETE), trial(1), trial(2), trial(3))
    assert seconds_per_flop(taken) == pytest.approx(1e-10)
    assert remaining_flops(taken) == (3e12, 1e12)
    assert seconds_left(taken) == pytest.approx(150)
    assert seconds_left(replace(taken, planned=7)) == pytest.approx(300), "three more that are not listed yet"


def test_the_longest_trial_bounds_the_end() -> None:
    long = trial(1, RUNNING, train_flops=2e12, budget_flops=9e12, started=NOW - 200)
    assert seconds_left(snapshot(trial(0, COMPLETE), long, workers=8)) == pytest.approx(700)


def test_nothing_is_said_without_evidence() -> None:
    waiting = snapshot(trial(0), trial(1))
    started = snapshot(trial(0, RUNNING, train_flops=0.04e12, started=NOW - 60), trial(1))
    known = snapshot(trial(0, COMPLETE), trial(1))
    assert seconds_left(snapshot()) is None
    assert seconds_left(waiting) is None
    assert seconds_left(started) is None, "4 % of its budget is mostly start-up"
    assert seconds_left(known) is not None
    assert seconds_left(replace(known, workers=())) is None, "nobody is at work"
    assert seconds_left(replace(known, workers=(worker(doing=GONE), worker(1, silent_seconds=600)))) is None
    assert seconds_left(replace(known, stopping=True)) is None
    assert seconds_left(snapshot(trial(0, COMPLETE, budget_flops=0.0), trial(1, budget_flops=math.nan))) is None
    assert seconds_left(snapshot(trial(0, COMPLETE), trial(1, FAILED))) == 0.0


def test_failed_and_disturbed_trials_do_not_count_as_evidence() -> None:
    hung = trial(1, FAILED, train_flops=1e9, started=NOW - 90_000)
    over_night = trial(2, COMPLETE, attempts=2, started=NOW - 40_000)
    assert seconds_per_flop(snapshot(trial(0, COMPLETE), hung, over_night)) == pytest.approx(1e-10)
    assert seconds_per_flop(snapshot(hung)) is None
    assert seconds_per_flop(snapshot(over_night)) == pytest.approx(4e-8), "better than nothing"


def test_pruned_trials_and_found_autoencoders_shorten_those_to_come() -> None:
    pruned = trial(1, PRUNED, train_flops=0.5e12, started=NOW - 50)
    assert expected_share(snapshot(trial(0, COMPLETE), pruned)) == pytest.approx(1.5 / 2)
    found = trial(1, COMPLETE, reused_flops=0.4e12, started=NOW - 60)
    taken = snapshot(trial(0, COMPLETE), found, trial(2), workers=1)
    assert expected_share(taken) == pytest.approx(1.6 / 2)
    assert seconds_per_flop(taken) == pytest.approx(1e-10), "FLOPs that others spent took no time"
    assert seconds_left(taken) == pytest.approx(80)


budgets = st.lists(st.floats(1e9, 1e18), min_size=1, max_size=30)


@given(budgets, budgets, st.integers(1, 9), st.floats(1e-15, 1e-6))
def test_one_pace_gives_the_bound_of_list_scheduling(
    done: list[float], to_come: list[float], workers: int, pace: float
) -> None:
    ended = [
        trial(i, COMPLETE, train_flops=f, budget_flops=f, started=0.0, finished=pace * f) for i, f in enumerate(done)
    ]
    waiting = [trial(len(done) + i, budget_flops=flops) for i, flops in enumerate(to_come)]
    left = seconds_left(snapshot(*ended, *waiting, workers=workers))
    assert left == pytest.approx(pace * max(sum(to_come) / workers, max(to_come)), rel=1e-6)


def test_elapsed_counts_from_when_work_was_taken_up() -> None:
    assert elapsed(snapshot(trial(0))) is None
    assert elapsed(snapshot(trial(0, RUNNING), trial(1, RUNNING, started=NOW - 30))) == 100
    assert elapsed(snapshot(trial(0, COMPLETE), since=NOW - 7)) == 7


# -- lines -------------------------------------------------------------------------------------------------------

RUN = trial(7, RUNNING, brier_lm=None, brier_lm_se=None, step=100)
SEEN = replace(RUN, brier_lm=4.816, brier_lm_se=0.21, step=150, evaluated_step=140)
TRANSITIONS = {
    "begun": (trial(7), RUN, ["begun by local-0, 1.00e12 FLOPs to spend"]),
    "listed and begun at once": (None, RUN, ["begun by local-0, 1.00e12 FLOPs to spend"]),
    "evaluated": (RUN, SEEN, ["evaluated at step 140: BrierLM 4.82 ± 0.21, 1.00e12 FLOPs spent"]),
    "the same score again": (
        SEEN,
        replace(SEEN, step=290, evaluated_step=280),
        ["evaluated at step 280: BrierLM 4.82 ± 0.21, 1.00e12 FLOPs spent"],
    ),
    "step only": (SEEN, replace(SEEN, step=151), []),
    "a score that is no number": (replace(SEEN, brier_lm=math.nan), replace(SEEN, brier_lm=math.nan), []),
    "complete": (SEEN, trial(7, COMPLETE), ["complete after 1 min 40 s: BrierLM 4.82 ± 0.21 at 1.00e12 FLOPs"]),
    "pruned": (
        SEEN,
        trial(7, PRUNED, reason="below the front"),
        ["pruned after 1 min 40 s, BrierLM 4.82 ± 0.21 at 1.00e12 FLOPs: below the front"],
    ),
    "failed": (
        RUN,
        trial(7, FAILED, brier_lm=None, reason="the loss\nis NaN"),
        ["failed after 1 min 40 s: the loss is NaN"],
    ),
    "begun and complete between two looks": (
        trial(7),
        trial(7, COMPLETE),
        [
            "begun by local-0, 1.00e12 FLOPs to spend",
            "complete after 1 min 40 s: BrierLM 4.82 ± 0.21 at 1.00e12 FLOPs",
        ],
    ),
    "given back": (
        RUN,
        replace(RUN, state=WAITING),
        ["given back, waits for a worker: calm step 100/400, 100 % of its FLOPs"],
    ),
    "continued": (
        replace(RUN, state=WAITING),
        replace(RUN, attempts=2, worker="local-1"),
        ["continued by local-1, attempt 2: calm step 100/400, 100 % of its FLOPs"],
    ),
    "taken over between two looks": (
        RUN,
        replace(RUN, attempts=2, worker="local-1"),
        ["continued by local-1, attempt 2: calm step 100/400, 100 % of its FLOPs"],
    ),
    "tried again": (trial(7, FAILED), trial(7, attempts=1), ["to be tried again after: reason unknown"]),
}


@pytest.mark.parametrize("case", TRANSITIONS)
def test_every_transition_of_a_trial_is_told(case: str) -> None:
    old, new, told = TRANSITIONS[case]
    lines = events(snapshot(*([] if old is None else [old]), planned=9), snapshot(new, planned=9))
    assert lines == [f"{STAMP}trial 7 (K=4 l=128): {sentence}" for sentence in told]


WORKERS = {
    "started": (None, worker(), ["started at host:1000"]),
    "died": (worker(), worker(doing=GONE, reason="signal 9"), ["died: signal 9"]),
    "left": (worker(), worker(doing=LEFT), ["left, nothing more to do"]),
    "replaced": (worker(doing=GONE), worker(place="host:9"), ["replaced, now at host:9"]),
    "died and replaced between two looks": (worker(), worker(place="host:9"), ["replaced, now at host:9"]),
    "its place becomes known": (worker(place=""), worker(), []),
    "silent": (worker(), worker(silent_seconds=65, trial=3), ["silent for 1 min 5 s, has trial 3"]),
    "still silent": (worker(silent_seconds=65), worker(silent_seconds=70), []),
    "heard again": (worker(silent_seconds=65), worker(), ["heard from again"]),
    "no longer listed": (worker(), None, ["no longer listed"]),
}


@pytest.mark.parametrize("case", WORKERS)
def test_every_change_of_a_worker_is_told(case: str) -> None:
    old, new, told = WORKERS[case]
    before, after = (replace(snapshot(), workers=() if one is None else (one,)) for one in (old, new))
    assert events(before, after) == [f"{STAMP}worker local-0: {sentence}" for sentence in told]


def test_new_points_of_the_front_and_a_stop_are_told_once() -> None:
    point, better = FrontPoint("K=2", 3, 1e12, 2.0, 0.2), FrontPoint("K=4", 5, 2e12, 4.0, 0.3)
    before = snapshot(front=(point,))
    after = snapshot(front=(point, better, better), stopping=True)
    assert events(before, after) == [
        f"{STAMP}front: trial 5 (K=4) reaches it with BrierLM 4.00 ± 0.30 at 2.00e12 FLOPs",
        f"{STAMP}stop asked for: running trials save their place",
    ]
    assert events(after, after) == []


def test_trials_come_by_number_then_workers_then_the_front_then_progress() -> None:
    before = snapshot(trial(1), trial(2), taken=NOW - 1, planned=3)
    after = snapshot(
        *(trial(2, COMPLETE), trial(1, FAILED, brier_lm=None)),
        workers=3,
        front=(FrontPoint("K=4", 2, 1e12, 4.0, 0.3),),
        hypervolume=1.25,
        planned=3,
    )
    told = [line.removeprefix(STAMP).split(":")[0].split(" (0")[0] for line in events(before, after)]
    one, two = "trial 1 (K=4 l=128)", "trial 2 (K=4 l=128)"
    assert told == [one, one, two, two, "worker local-2", "front", "2/3 ended"]
    (*_, last) = events(before, after)
    assert last == (
        f"{STAMP}2/3 ended (0 pruned, 1 failed), 0 running, 1 waiting; 1 min 40 s elapsed, about 2 min left; "
        "front of 1, hypervolume 1.25"
    )


def test_progress_comes_when_the_clock_passes_its_interval() -> None:
    looks = [snapshot(trial(0), taken=NOW + second) for second in range(0, 100, 7)]
    told = [bool(events(a, b, every=30.0)) for a, b in pairwise(looks)]
    assert sum(told) == 3
    assert told.index(True) == 4, "between 28 and 35 seconds"


def test_the_log_opens_with_where_the_sweep_is_and_ends_with_how_it_was_left() -> None:
    taken = snapshot(trial(0, COMPLETE), RUN, trial(8), trial(9, FAILED))
    opening = events(None, taken)
    assert opening[0] == f"{STAMP}sweep k4-sweet-spot-1a2b3c (K = 4 sweet spot): 4 trials planned, 2 workers"
    assert opening[2].startswith(f"{STAMP}2/4 ended (0 pruned, 1 failed), 1 running, 1 waiting; ")
    assert opening[3:] == [f"{STAMP}trial 7 (K=4 l=128): running on local-0, calm step 100/400, 100 % of its FLOPs"]
    (last,) = closing(taken)
    assert "2 of 4 trials have not ended (1 complete, 0 pruned, 1 failed) after 1 min 40 s" in last
    assert "all 1 trials have ended" in closing(snapshot(trial(0, COMPLETE)))[0]


def test_seeds_are_named_where_they_tell_trials_apart() -> None:
    before = snapshot(trial(0), trial(1, seed=17))
    after = snapshot(trial(0), trial(1, RUNNING, seed=17, brier_lm=None))
    assert events(before, after) == [f"{STAMP}trial 1 (K=4 l=128 s17): begun by local-0, 1.00e12 FLOPs to spend"]


def test_long_labels_and_reasons_keep_to_the_line() -> None:
    before = snapshot(replace(RUN, label="x" * 500))
    after = snapshot(trial(7, FAILED, label="x" * 500, reason="because " * 100, brier_lm=None))
    (line,) = events(before, after)
    assert len(line) <= LONGEST
    assert "failed after 1 min 40 s: because" in line


# -- status ------------------------------------------------------------------------------------------------------


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@given(st.floats() | st.none(), st.text(), st.floats(), st.integers(0, 9))
def test_json_is_strict_and_loses_nothing(brier_lm: float | None, reason: str, flops: float, seed: int) -> None:
    taken = snapshot(
        trial(0, FAILED, brier_lm=brier_lm, reason=reason, train_flops=flops, seed=seed),
        front=(FrontPoint("K=4", 0, flops, 1.0, 0.5),),
        hypervolume=flops,
    )
    back = json.loads(to_json(taken), parse_constant=refuse)
    counts, seconds, left = (back.pop(key) for key in ("counts", "elapsed_seconds", "remaining_seconds"))
    assert (counts[FAILED], seconds, left) == (1, 100.0, 0.0)

    def told(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: told(below) for key, below in value.items()}
        if isinstance(value, (list, tuple)):
            return [told(below) for below in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    assert back == told(asdict(taken))


def test_trials_are_selected_by_state_and_number() -> None:
    taken = snapshot(trial(2, FAILED), trial(0, COMPLETE), trial(1, RUNNING), trial(3), trial(4))
    numbers = [one.number for one in select(taken)]
    assert numbers == [0, 1, 2, 3, 4]
    assert [one.number for one in select(taken, (COMPLETE, FAILED))] == [0, 2]
    assert [one.number for one in select(taken, last=2)] == [1, 2], "none that waits is recent"
    assert [one.number for one in select(taken, (WAITING,), 1)] == [4]
    assert select(taken, last=0) == []
    with pytest.raises(SweepError, match="no state 'lost' of a trial; there are waiting, running"):
        select(taken, ("lost",))
    with pytest.raises(SweepError, match="at least 0"):
        select(taken, last=-1)

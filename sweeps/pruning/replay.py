"""Complete sweeps replayed as if their trials had run side by side under a rule: what it stops, saves and loses.

A replay takes the recorded evaluations, has W workers go through the trials in some order, and asks the rule after each
of them, with what was known at that moment. What a stopped trial would still have brought is known, because it was
recorded: a stop is false if an evaluation after it lies on the front of the complete sweep. Fronts are those of one
stage: the token baseline is a reference and no rival of the continuous models.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calm_lightning.errors import SweepError
from sweeps.front.pareto import front, hypervolume
from sweeps.front.series import COMPLETE, Series
from sweeps.pruning.config import PruningConfig
from sweeps.pruning.rule import Curve, Decision, Rivals, judge

Flags = NDArray[np.bool_]
FLOPS, SECONDS = "flops", "seconds"
SIGNIFICANT = 1.96
"""Standard errors of the difference from which an evaluation lies significantly above the front of the others."""


@dataclass(frozen=True)
class Trial:
    """One complete trial, ready for replays.

    Attributes:
        label: How tables call its model.
        number: Number of the trial.
        stage: The trials that compete with each other have the same.
        curve: Its evaluations.
        seconds: Seconds of training at each evaluation, (E,).
        lasting: Whether each lies on the front of the complete sweep, (E,).
        significant: Whether it also lies above the front of all others by more than the 95 % interval.
        true: Whether it lies on the noise-free front, (E,); the same as `lasting` where that is not known.
    """

    label: str
    number: int
    stage: str
    curve: Curve
    seconds: NDArray[np.float64]
    lasting: Flags
    significant: Flags
    true: Flags


@dataclass(frozen=True)
class Stop:
    """One trial that a replay stopped.

    Attributes:
        trial: Its place in the sweep.
        evaluation: The evaluation after which it was stopped, from 0.
        decision: What the rule said.
        false: Whether a later evaluation lies on the front of the complete sweep.
        significantly_false: Whether one does so significantly.
        truly_false: Whether one lies on the noise-free front.
    """

    trial: int
    evaluation: int
    decision: Decision
    false: bool
    significantly_false: bool
    truly_false: bool


@dataclass(frozen=True)
class Replay:
    """What one replay did.

    Attributes:
        stops: Stopped trials, in the order in which they were stopped.
        saved: Fraction of the language models' training FLOPs that was not spent.
        hypervolume_loss: Fraction of the front's hypervolume that was lost.
    """

    stops: tuple[Stop, ...]
    saved: float
    hypervolume_loss: float


def recorded(series: Sequence[Series], truth: Sequence[Series] | None = None) -> tuple[Trial, ...]:
    """Return the complete trials of a sweep, ready for replays; pruned ones are left out, their ends are unknown.

    Args:
        series: The sweep.
        truth: The same trials with noise-free scores, where these are known.

    Raises:
        SweepError: Fewer than two trials are complete.
    """
    offered = {index: Curve.of(one.points) for index, one in enumerate(series) if one.state == COMPLETE}
    kept = [index for index, curve in offered.items() if len(curve.cost)]
    if len(kept) < 2:
        raise SweepError(f"{len(kept)} complete trials with evaluations: a replay needs at least two")
    curves = [offered[index] for index in kept]
    stages = [series[index].stage for index in kept]
    lasting, significant = _contributions(curves, stages)
    true = lasting if truth is None else _contributions([Curve.of(truth[i].points) for i in kept], stages)[0]
    ready = []
    for n, index in enumerate(kept):
        one, taken = series[index], {point.train_flops: point.seconds for point in series[index].trained}
        seconds = np.array([taken[cost] for cost in curves[n].cost.tolist()])
        ready.append(Trial(one.label, one.trial, one.stage, curves[n], seconds, lasting[n], significant[n], true[n]))
    return tuple(ready)


def _contributions(curves: Sequence[Curve], stages: Sequence[str]) -> tuple[list[Flags], list[Flags]]:
    """Return which evaluations lie on the front of their stage, and which do so significantly."""
    lasting = [np.zeros(len(curve.cost), dtype=bool) for curve in curves]
    significant = [flags.copy() for flags in lasting]
    for stage in sorted(set(stages)):
        group = [index for index, own in enumerate(stages) if own == stage]
        places = [(i, e) for i in group for e in range(len(curves[i].cost)) if curves[i].score[e] > 0]
        plane = [(float(curves[i].cost[e]), float(curves[i].score[e])) for i, e in places]
        for index in front(plane):
            i, e = places[index]
            lasting[i][e] = True
            significant[i][e] = _stands_out(curves, [other for other in group if other != i], i, e)
    return lasting, significant


def _stands_out(curves: Sequence[Curve], others: Sequence[int], i: int, e: int) -> bool:
    """Return whether an evaluation lies above the others' front, or above 0, by more than the interval."""
    cost, score, error = (float(values[e]) for values in (curves[i].cost, curves[i].score, curves[i].error))
    front_score, front_error = 0.0, 0.0
    for other in others:
        for k in np.flatnonzero((curves[other].cost <= cost) & (curves[other].score > front_score)):
            if curves[other].score[k] > front_score:
                front_score, front_error = float(curves[other].score[k]), float(curves[other].error[k])
    return score - front_score > SIGNIFICANT * float(np.hypot(error, front_error))


class _Board:
    """All evaluations so far of one stage, kept sorted by cost."""

    def __init__(self) -> None:
        self.rows_R4 = np.empty((0, 4))
        self.finished = 0

    def add(self, cost: float, score: float, error: float, trial: int) -> None:
        """Record an evaluation."""
        place = int(np.searchsorted(self.rows_R4[:, 0], cost, side="right"))
        self.rows_R4 = np.insert(self.rows_R4, place, (cost, score, error, trial), axis=0)

    def without(self, trial: int) -> Rivals:
        """Return the evaluations of all other trials."""
        rows_R4 = self.rows_R4[(self.rows_R4[:, 3] != trial) & np.isfinite(self.rows_R4[:, 2])]
        return Rivals(rows_R4[:, 0], rows_R4[:, 1], rows_R4[:, 2])


def replay(
    trials: Sequence[Trial],
    settings: PruningConfig,
    *,
    workers: int = 2,
    order: Sequence[int] | None = None,
    clock: str = FLOPS,
) -> Replay:
    """Replay one sweep under the Pareto rule.

    Args:
        trials: The sweep.
        settings: Settings of the rule.
        workers: Workers, each with one trial at a time.
        order: Places of the trials in the order in which they are begun; None begins them as they are recorded.
        clock: What time is measured in: "flops" (all workers are equally fast) or "seconds" (as recorded).
    """
    waiting = list(order if order is not None else range(len(trials)))[::-1]
    boards = {trial.stage: _Board() for trial in trials}
    events: list[tuple[float, int, int]] = []

    def begin(now: float) -> None:
        if waiting:
            index = waiting.pop()
            offsets[index] = now
            heapq.heappush(events, (now + _duration(trials[index], 0, clock), index, 0))

    offsets: dict[int, float] = {}
    stops: list[Stop] = []
    for _ in range(workers):
        begin(0.0)
    while events:
        now, index, e = heapq.heappop(events)
        trial, board = trials[index], boards[trials[index].stage]
        board.add(trial.curve.cost[e], trial.curve.score[e], trial.curve.error[e], index)
        if e + 1 == len(trial.curve.cost):
            board.finished += 1
            begin(now)
            continue
        known = trial.curve.until(e + 1)
        decision = judge(settings, known, float(trial.curve.cost[-1]), board.without(index), board.finished)
        if decision.stop:
            later = slice(e + 1, None)
            lost = (trial.lasting[later], trial.significant[later], trial.true[later])
            stops.append(Stop(index, e, decision, *(bool(flags.any()) for flags in lost)))
            begin(now)
        else:
            heapq.heappush(events, (offsets[index] + _duration(trial, e + 1, clock), index, e + 1))
    return Replay(tuple(stops), _saved(trials, stops), _hypervolume_loss(trials, stops))


def _duration(trial: Trial, evaluation: int, clock: str) -> float:
    """Return how long after its beginning a trial is evaluated."""
    return float((trial.curve.cost if clock == FLOPS else trial.seconds)[evaluation])


def _saved(trials: Sequence[Trial], stops: Sequence[Stop]) -> float:
    """Return the fraction of the language models' training FLOPs that was not spent."""
    spared = sum(float(trials[s.trial].curve.stage[-1] - trials[s.trial].curve.stage[s.evaluation]) for s in stops)
    return spared / sum(float(trial.curve.stage[-1]) for trial in trials)


def _hypervolume_loss(trials: Sequence[Trial], stops: Sequence[Stop]) -> float:
    """Return the fraction of hypervolume lost, summed over stages, seen from BrierLM 0 at the largest cost."""
    if not any(stop.false for stop in stops):
        return 0.0
    ends = {stop.trial: stop.evaluation + 1 for stop in stops}
    whole, left = 0.0, 0.0
    for stage in sorted({trial.stage for trial in trials}):
        group = [(index, trial) for index, trial in enumerate(trials) if trial.stage == stage]
        reference = (max(float(trial.curve.cost[-1]) for _, trial in group), 0.0)
        for cut in (False, True):
            plane = [
                (float(cost), float(score))
                for index, trial in group
                for cost, score in zip(trial.curve.cost, trial.curve.score, strict=True)
                if not cut or cost <= trial.curve.cost[ends.get(index, 0) - 1]
            ]
            area = hypervolume(plane, reference)
            whole, left = (whole, left + area) if cut else (whole + area, left)
    return 1 - left / whole if whole > 0 else 0.0

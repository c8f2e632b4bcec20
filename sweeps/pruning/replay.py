"""Complete sweeps replayed as if their trials had run side by side under a rule: what it stops, saves and loses.

A replay takes the recorded evaluations, has W workers go through the trials in some order, and asks the rule after each
of them, with what workers know at that moment: the evaluations of the trials that have ended. What a stopped trial
would still have brought is known, because it was recorded: a stop is false if an evaluation after it lies on the front
of the complete sweep. Trials compete as in `sweeps.pruning.rivals`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calm_lightning.errors import SweepError
from sweeps.front.pareto import hypervolume
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
        price: Inference FLOPs per token where these are an objective, else 0: rivals cost no more.
        curve: Its evaluations.
        seconds: Seconds of training at each evaluation, (E,).
        lasting: Whether each lies on the front of the complete sweep, (E,).
        significant: Whether it also lies above the front of all others by more than the 95 % interval.
        true: Whether it lies on the noise-free front, (E,); the same as `lasting` where that is not known.
    """

    label: str
    number: int
    stage: str
    price: float
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


def recorded(
    series: Sequence[Series], truth: Sequence[Series] | None = None, *, inference: bool = False
) -> tuple[Trial, ...]:
    """Return the complete trials of a sweep, ready for replays; pruned ones are left out, their ends are unknown.

    Args:
        series: The sweep.
        truth: The same trials with noise-free scores, where these are known.
        inference: Whether inference FLOPs per token are an objective beside training FLOPs.

    Raises:
        SweepError: Fewer than two trials are complete.
    """
    offered = {index: Curve.of(one.points) for index, one in enumerate(series) if one.state == COMPLETE}
    curves = {index: curve for index, curve in offered.items() if len(curve.cost)}
    if len(curves) < 2:
        raise SweepError(f"{len(curves)} complete trials with evaluations: a replay needs at least two")
    trials = []
    for index, curve in curves.items():
        one, taken = series[index], {point.train_flops: point.seconds for point in series[index].trained}
        seconds = np.array([taken[cost] for cost in curve.cost.tolist()])
        price = one.final.inference_flops_per_token if inference else 0.0
        none = np.zeros(len(curve.cost), dtype=bool)
        trials.append(Trial(one.label, one.trial, one.stage, price, curve, seconds, none, none, none))
    true = (
        trials
        if truth is None
        else [replace(trial, curve=Curve.of(truth[index].points)) for index, trial in zip(curves, trials, strict=True)]
    )
    flags = zip(trials, _on_front(trials), _on_front(true), strict=True)
    return tuple(
        replace(trial, lasting=lasting, significant=_stands_out(trials, trial, lasting), true=really)
        for trial, lasting, really in flags
    )


def _on_front(trials: Sequence[Trial]) -> list[Flags]:
    """Return which evaluations above 0 no other evaluation of their stage dominates."""
    found = []
    for own in trials:
        beaten_E = own.curve.score <= 0
        for other in trials:
            if other.stage == own.stage and other.price <= own.price:
                cheaper_EF = other.curve.cost <= own.curve.cost[:, None]
                better_EF = other.curve.score >= own.curve.score[:, None]
                equal_EF = (other.curve.cost == own.curve.cost[:, None]) & (
                    other.curve.score == own.curve.score[:, None]
                )
                differs_EF = ~equal_EF if other.price == own.price else np.ones_like(equal_EF)
                beaten_E = beaten_E | (cheaper_EF & better_EF & differs_EF).any(1)
        found.append(~beaten_E)
    return found


def _stands_out(trials: Sequence[Trial], own: Trial, lasting_E: Flags) -> Flags:
    """Return which evaluations of the front lie above that of all others, or above 0, by more than the interval."""
    found_E = lasting_E.copy()
    for e in np.flatnonzero(lasting_E):
        front_score, front_error = 0.0, 0.0
        for other in trials:
            if other is own or other.stage != own.stage or other.price > own.price:
                continue
            affordable = int(np.searchsorted(other.curve.cost, own.curve.cost[e], side="right"))
            if affordable and other.curve.score[:affordable].max() > front_score:
                k = int(other.curve.score[:affordable].argmax())
                front_score, front_error = float(other.curve.score[k]), float(other.curve.error[k])
        found_E[e] = own.curve.score[e] - front_score > SIGNIFICANT * np.hypot(own.curve.error[e], front_error)
    return found_E


class _Board:
    """The evaluations of ended trials of one stage, sorted by cost."""

    def __init__(self) -> None:
        self.rows_R4 = np.empty((0, 4))
        self.finished = 0

    def add(self, trial: Trial, evaluations: int) -> None:
        """Record the first evaluations of a trial that has ended."""
        known = trial.curve.until(evaluations)
        rows_E4 = np.stack((known.cost, known.score, known.error, np.full(evaluations, trial.price)), axis=1)
        rows_R4 = np.concatenate((self.rows_R4, rows_E4[np.isfinite(known.error)]))
        self.rows_R4 = rows_R4[np.argsort(rows_R4[:, 0], kind="stable")]
        self.finished += 1

    def rivals(self, trial: Trial) -> Rivals:
        """Return the evaluations that compete with a trial."""
        rows_R4 = self.rows_R4[self.rows_R4[:, 3] <= trial.price]
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
        if e + 1 == len(trial.curve.cost):
            board.add(trial, e + 1)
            begin(now)
            continue
        final = float(trial.curve.cost[-1])
        decision = judge(settings, trial.curve.until(e + 1), final, board.rivals(trial), board.finished)
        if decision.stop:
            later = slice(e + 1, None)
            lost = (trial.lasting[later], trial.significant[later], trial.true[later])
            stops.append(Stop(index, e, decision, *(bool(flags.any()) for flags in lost)))
            board.add(trial, e + 1)
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

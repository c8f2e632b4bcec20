"""A sweep at one moment, as plain values: what status, dashboard and log lines are made from."""

from __future__ import annotations

from dataclasses import dataclass

WAITING, RUNNING, COMPLETE, PRUNED, FAILED = "waiting", "running", "complete", "pruned", "failed"
STATES = (WAITING, RUNNING, COMPLETE, PRUNED, FAILED)
"""States of a trial, in the order in which it can pass through them."""
ENDED = (COMPLETE, PRUNED, FAILED)
"""States in which a trial has nothing more to do."""
STARTING, IDLE, LEFT, GONE = "starting", "waiting", "left", "gone"
"""What a worker without a trial does; "left" because there was nothing more to do, "gone" because it died."""
SILENT_AFTER = 60.0
"""Seconds without a sign of life from which a worker is shown as silent."""


@dataclass(frozen=True)
class TrialView:
    """One trial at one moment.

    Attributes:
        number: Number of the trial.
        label: How tables call its model.
        seed: The seed of its runs.
        state: One of `STATES`.
        stage: What it trains or trained last: "autoencoder", "calm", "baseline"; "" before it began.
        step: Optimiser steps of that stage so far.
        max_steps: Optimiser steps of that stage; 0 where they are not known.
        train_flops: Training FLOPs so far, the autoencoder's included.
        budget_flops: Training FLOPs when it will be complete, the autoencoder's included.
        brier_lm: BrierLM of its last evaluation, percent; None before the first.
        brier_lm_se: Its standard error, percent.
        worker: Name of the worker that has it; "" where none has.
        started: When it was first begun, unix seconds; None before.
        finished: When it ended, unix seconds; None before.
        attempts: How many workers have had it; more than one where a worker died.
        reason: Why it failed or was stopped early; "" otherwise.
        reused_flops: Those of `train_flops` that it did not spend itself: an autoencoder that another trial trained.
        evaluated_step: Step of its last evaluation; None before the first, or where it is not known.
    """

    number: int
    label: str
    seed: int
    state: str
    stage: str
    step: int
    max_steps: int
    train_flops: float
    budget_flops: float
    brier_lm: float | None
    brier_lm_se: float | None
    worker: str
    started: float | None
    finished: float | None
    attempts: int
    reason: str
    reused_flops: float = 0.0
    evaluated_step: int | None = None


@dataclass(frozen=True)
class WorkerView:
    """One worker at one moment.

    Attributes:
        name: Its name, for example "local-0".
        place: Machine and process, for example "host:1234".
        trial: Number of the trial it has, None where it has none.
        doing: What it does where it has no trial: `STARTING`, `IDLE`, `LEFT`, `GONE`.
        silent_seconds: Seconds since its last sign of life, as far as they could be observed.
        reason: What is known of its death; "" otherwise.
    """

    name: str
    place: str
    trial: int | None
    doing: str
    silent_seconds: float
    reason: str = ""

    @property
    def alive(self) -> bool:
        """Whether it can still work: it has neither left nor died."""
        return self.doing not in (LEFT, GONE)

    @property
    def silent(self) -> bool:
        """Whether it should have given a sign of life and has not."""
        return self.alive and self.silent_seconds >= SILENT_AFTER


@dataclass(frozen=True)
class FrontPoint:
    """One evaluation on the Pareto front.

    Attributes:
        label: The model.
        trial: Number of its trial.
        train_flops: Training FLOPs, the autoencoder's included.
        brier_lm: BrierLM, percent.
        brier_lm_se: Its standard error, percent.
    """

    label: str
    trial: int
    train_flops: float
    brier_lm: float
    brier_lm_se: float


@dataclass(frozen=True)
class CacheCounts:
    """What the stage cache did for this sweep.

    Attributes:
        trained: Autoencoders that trials of this sweep trained.
        reused: Trials that found theirs trained.
        saved_flops: Training FLOPs that reuse saved.
    """

    trained: int
    reused: int
    saved_flops: float


@dataclass(frozen=True)
class Snapshot:
    """A sweep at one moment.

    Attributes:
        study: Name of the study.
        title: Heading for readers.
        directory: The sweep's directory.
        taken: When it was read, unix seconds.
        planned: Trials the sweep will have; at least those there are.
        trials: All trials so far, by number.
        workers: Workers that are or were at work.
        front: The Pareto front of all evaluations so far, by rising training FLOPs.
        hypervolume: Hypervolume of the front, decades of FLOPs times percent.
        cache: What the stage cache did.
        stopping: Whether the sweep was asked to stop.
        since: When work on it was begun or last taken up, unix seconds; None counts from the first trial's start.
        unsent: Runs that wait to be sent to MLflow because it did not take them.
    """

    study: str
    title: str
    directory: str
    taken: float
    planned: int
    trials: tuple[TrialView, ...]
    workers: tuple[WorkerView, ...]
    front: tuple[FrontPoint, ...]
    hypervolume: float
    cache: CacheCounts
    stopping: bool = False
    since: float | None = None
    unsent: int = 0

    def count(self, state: str) -> int:
        """Return how many trials are in a state."""
        return sum(trial.state == state for trial in self.trials)

    @property
    def total(self) -> int:
        """Trials planned, and never fewer than there are."""
        return max(self.planned, len(self.trials))

    @property
    def ended(self) -> int:
        """Trials that are complete, pruned or failed."""
        return sum(trial.state in ENDED for trial in self.trials)

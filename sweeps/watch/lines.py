"""A sweep told line by line, for logs and pipes: what happened between two snapshots, one event per line.

Events are read off the difference of two snapshots, so nothing needs to be kept but the last one, and telling the
same snapshot twice tells nothing. What began and ended between two snapshots is told as both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sweeps.watch.eta import elapsed, seconds, seconds_left
from sweeps.watch.snapshot import (
    COMPLETE,
    ENDED,
    FAILED,
    GONE,
    PRUNED,
    RUNNING,
    WAITING,
    FrontPoint,
    Snapshot,
    TrialView,
    WorkerView,
)
from sweeps.watch.values import finite, fraction
from sweeps.watch.wording import (
    UNICODE,
    counts,
    cut,
    duration,
    flops,
    name,
    one_line,
    percent,
    roughly,
    score,
    several_seeds,
    stamp,
)

LONGEST = 160
"""Characters of a line, its time included; longer reasons and labels are cut."""
PROGRESS_EVERY = 300.0
"""Seconds between two lines that say how far the sweep is."""
_LABEL = 40


def events(before: Snapshot | None, after: Snapshot, every: float = PROGRESS_EVERY) -> list[str]:
    """Return what happened between two snapshots: trials by number, then workers, the front, and progress.

    Args:
        before: The earlier snapshot; None opens the log with the sweep's name and how far it is.
        after: The later one.
        every: Seconds between two progress lines, which come when the clock passes a multiple of it.

    Returns:
        Lines of at most `LONGEST` characters, each beginning with the later snapshot's time; none twice.
    """
    if before is None:
        return _stamped(after, _opening(after))
    told = [*_trials(before, after), *_workers(before, after), *_front(before, after)]
    if after.stopping and not before.stopping:
        told.append("stop asked for: running trials save their place")
    if _due(before, after, every):
        told.append(progress(after))
    return _stamped(after, told)


def closing(final: Snapshot) -> list[str]:
    """Return the last line of a log: how the sweep was left."""
    counted, rest = counts(final), final.total - final.ended
    left = f"{rest} of {final.total} trials have not ended" if rest else f"all {final.total} trials have ended"
    said = ", ".join(f"{counted[state]} {state}" for state in ENDED)
    after = f"after {duration(elapsed(final))}"
    return _stamped(final, [f"sweep {final.study}: {left} ({said}) {after}; {_front_so_far(final)}"])


def progress(snapshot: Snapshot) -> str:
    """Return how far a sweep is, on one line without its time."""
    counted, left = counts(snapshot), seconds_left(snapshot)
    ended = f"{snapshot.ended}/{snapshot.total} ended ({counted[PRUNED]} pruned, {counted[FAILED]} failed)"
    rest = f"{counted[RUNNING]} running, {counted[WAITING]} waiting"
    time = "stopping" if snapshot.stopping else "time left unknown" if left is None else f"about {roughly(left)} left"
    return f"{ended}, {rest}; {duration(elapsed(snapshot))} elapsed, {time}; {_front_so_far(snapshot)}"


def _stamped(snapshot: Snapshot, told: Iterable[str]) -> list[str]:
    now = stamp(snapshot.taken)
    lines = [cut(f"{now}  {one_line(sentence)}", LONGEST, UNICODE) for sentence in told]
    return list(dict.fromkeys(lines))


def _due(before: Snapshot, after: Snapshot, every: float) -> bool:
    then, now = finite(before.taken), finite(after.taken)
    return then is not None and now is not None and every > 0 and now // every > then // every


def _front_so_far(snapshot: Snapshot) -> str:
    volume = finite(snapshot.hypervolume)
    return f"front of {len(snapshot.front)}, hypervolume {'-' if volume is None else f'{volume:.4g}'}"


def _called(trial: TrialView, seeds: bool) -> str:
    return f"trial {trial.number} ({name(trial, seeds, UNICODE, _LABEL)})"


def _scored(brier_lm: float | None, error: float | None) -> str:
    return "BrierLM " + " ".join(score(brier_lm, error).split())


def _place(trial: TrialView) -> str:
    """Return where a trial is in its work: stage, step and how much of its FLOPs."""
    of_steps = f"/{trial.max_steps}" if trial.max_steps else ""
    share = percent(fraction(trial.train_flops, trial.budget_flops))
    return f"{trial.stage or 'start'} step {trial.step}{of_steps}, {share} of its FLOPs"


def _opening(snapshot: Snapshot) -> Iterator[str]:
    title = f" ({snapshot.title})" if snapshot.title else ""
    yield f"sweep {snapshot.study}{title}: {snapshot.total} trials planned, {len(snapshot.workers)} workers"
    yield f"directory {snapshot.directory}"
    if snapshot.ended:
        yield progress(snapshot)
    seeds = several_seeds(snapshot)
    for trial in snapshot.trials:
        if trial.state == RUNNING:
            yield f"{_called(trial, seeds)}: running on {trial.worker}, {_place(trial)}"


def _trials(before: Snapshot, after: Snapshot) -> Iterator[str]:
    known, seeds = {trial.number: trial for trial in before.trials}, several_seeds(after)
    for trial in sorted(after.trials, key=lambda trial: trial.number):
        called = _called(trial, seeds)
        for sentence in _trial(known.get(trial.number), trial, after.taken):
            yield f"{called}: {sentence}"


def _trial(old: TrialView | None, new: TrialView, now: float) -> Iterator[str]:
    """Yield what happened to one trial: begun or continued, evaluated, then ended or given back."""
    state, attempts = (WAITING, 0) if old is None else (old.state, old.attempts)
    taken = new.state != WAITING and (state == WAITING or new.attempts > attempts)
    if taken and attempts == 0:
        yield f"begun by {new.worker or 'a worker'}, {flops(new.budget_flops)} FLOPs to spend"
    if taken and (attempts > 0 or new.attempts > 1):
        yield f"continued by {new.worker or 'a worker'}, attempt {new.attempts}: {_place(new)}"
    ended = new.state in ENDED and new.state != state
    evaluation = (new.evaluated_step, repr(new.brier_lm))
    fresh = old is None or evaluation != (old.evaluated_step, repr(old.brier_lm))
    if fresh and new.brier_lm is not None and not (ended and new.state != FAILED):
        at = f"by step {new.step}" if new.evaluated_step is None else f"at step {new.evaluated_step}"
        spent = f"{flops(new.train_flops)} FLOPs spent"
        yield f"evaluated {at}: {_scored(new.brier_lm, new.brier_lm_se)}, {spent}"
    if ended:
        yield _ending(new, now)
    elif new.state == WAITING and state == FAILED:
        yield f"to be tried again after: {new.reason or 'reason unknown'}"
    elif new.state == WAITING and state != WAITING:
        yield f"given back, waits for a worker: {_place(new)}"


def _ending(trial: TrialView, now: float) -> str:
    after = f"after {duration(seconds(trial, now))}"
    at = f"{_scored(trial.brier_lm, trial.brier_lm_se)} at {flops(trial.train_flops)} FLOPs"
    if trial.state == COMPLETE:
        return f"complete {after}: {at}"
    if trial.state == PRUNED:
        return f"pruned {after}, {at}: {trial.reason or 'reason unknown'}"
    return f"failed {after}: {trial.reason or 'reason unknown'}"


def _workers(before: Snapshot, after: Snapshot) -> Iterator[str]:
    known = {worker.name: worker for worker in before.workers}
    present = {worker.name for worker in after.workers}
    for worker in after.workers:
        for sentence in _worker(known.get(worker.name), worker):
            yield f"worker {worker.name}: {sentence}"
    for gone in before.workers:
        if gone.name not in present and gone.alive:
            yield f"worker {gone.name}: no longer listed"


def _worker(old: WorkerView | None, new: WorkerView) -> Iterator[str]:
    """Yield what happened to one worker."""
    at = f" at {new.place}" if new.place else ""
    why = f": {new.reason}" if new.reason else ""
    if old is None:
        if new.alive:
            yield f"started{at}"
    elif old.alive and not new.alive:
        yield f"died{why}" if new.doing == GONE else f"left{why or ', nothing more to do'}"
    elif new.alive and (not old.alive or (old.place and new.place and old.place != new.place)):
        yield f"replaced, now{at or ' elsewhere'}{why}"
    elif new.silent and not old.silent:
        trial = "" if new.trial is None else f", has trial {new.trial}"
        yield f"silent for {duration(new.silent_seconds)}{trial}"
    elif old.silent and new.alive and not new.silent:
        yield "heard from again"
    if old is None and new.doing == GONE:
        yield f"died{why}"


def _front(before: Snapshot, after: Snapshot) -> Iterator[str]:
    known = {_key(point) for point in before.front}
    for point in after.front:
        if _key(point) not in known:
            where = f"{_scored(point.brier_lm, point.brier_lm_se)} at {flops(point.train_flops)} FLOPs"
            yield f"front: trial {point.trial} ({cut(one_line(point.label), _LABEL)}) reaches it with {where}"


def _key(point: FrontPoint) -> tuple[int, str, str]:
    return point.trial, repr(point.train_flops), repr(point.brier_lm)

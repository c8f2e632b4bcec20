"""How long a sweep has taken and still will, from what its trials have cost so far. Pure functions of a snapshot.

Three things are measured and nothing is assumed: seconds per training FLOP, how much of their budget trials spend
(pruned ones end early), and how much of it they find in the stage cache. Before there is evidence the answer is None.
"""

from __future__ import annotations

from collections.abc import Iterable

from sweeps.watch.snapshot import COMPLETE, ENDED, PRUNED, RUNNING, WAITING, Snapshot, TrialView
from sweeps.watch.values import finite, fraction, positive

EVIDENCE = 0.05
"""Fraction of its budget that a running trial must have spent to count: before, it has mostly been starting up."""


def elapsed(snapshot: Snapshot) -> float | None:
    """Return the seconds since work on the sweep was begun or last taken up, None before that."""
    taken, since = _end(snapshot), snapshot.since
    over = since is not None and taken is not None and since > taken  # taken up when nothing was left to do
    starts = [trial.started for trial in snapshot.trials] if since is None or over else [since]
    known = [start for start in map(finite, starts) if start is not None]
    return max(0.0, taken - min(known)) if known and taken is not None else None


def _end(snapshot: Snapshot) -> float | None:
    """Return when the last trial ended where all have, else when the snapshot was taken."""
    ends = [finite(trial.finished) for trial in snapshot.trials if trial.state in ENDED]
    over = bool(ends) and len(ends) == len(snapshot.trials) >= snapshot.planned
    known = [end for end in ends if end is not None]
    return max(known) if over and known else finite(snapshot.taken)


def seconds(trial: TrialView, now: float) -> float | None:
    """Return how long a trial has taken so far, None before it was begun."""
    start = finite(trial.started)
    end = finite(now if trial.finished is None else trial.finished)
    return max(0.0, end - start) if start is not None and end is not None else None


def live_workers(snapshot: Snapshot) -> int:
    """Return how many workers are there and give signs of life."""
    return sum(worker.alive and not worker.silent for worker in snapshot.workers)


def seconds_per_flop(snapshot: Snapshot) -> float | None:
    """Return the seconds that one worker takes per training FLOP, None before there is evidence.

    It is the ratio of the sums over complete, pruned and running trials. Failed trials are left out: what they took
    before they failed says little. Trials that more than one worker had are left out where there are others: between
    two workers they waited, perhaps for a night.

    Args:
        snapshot: The sweep.
    """
    measured = []
    for trial in snapshot.trials:
        spent, took = _spent(trial), seconds(trial, snapshot.taken)
        if spent is not None and took is not None and took > 0:
            measured.append((trial, took, spent))
    undisturbed = [entry for entry in measured if entry[0].attempts <= 1]
    used = undisturbed or measured
    flops = sum(spent for _, _, spent in used)
    return positive(sum(took for _, took, _ in used) / flops) if flops > 0 else None


def _spent(trial: TrialView) -> float | None:
    """Return the FLOPs that a trial itself has spent, None where they are no evidence of speed."""
    flops, found = finite(trial.train_flops), finite(trial.reused_flops) or 0.0
    if flops is None or trial.state not in (RUNNING, COMPLETE, PRUNED):
        return None
    if trial.state == RUNNING:
        share = fraction(flops - found, (finite(trial.budget_flops) or 0.0) - found)
        if share is None or share < EVIDENCE:
            return None
    return positive(flops - found)


def _ratio(pairs: Iterable[tuple[float | None, float | None]]) -> float | None:
    """Return the ratio of two sums over the pairs that are known, None where there are none."""
    known = [(part, whole) for part, whole in pairs if part is not None and whole is not None]
    whole = sum(whole for _, whole in known)
    return fraction(sum(part for part, _ in known), whole)


def expected_share(snapshot: Snapshot) -> float:
    """Return the fraction of its budget that a trial still to come is expected to spend itself, at most 1.

    It is the product of what complete and pruned trials went through of their budgets and what begun trials did not
    find in the cache of what they went through; 1 before there is evidence.

    Args:
        snapshot: The sweep.
    """
    ended = [trial for trial in snapshot.trials if trial.state in (COMPLETE, PRUNED)]
    begun = [trial for trial in snapshot.trials if positive(trial.train_flops) is not None]
    gone_through = _ratio((positive(trial.train_flops), positive(trial.budget_flops)) for trial in ended)
    found = _ratio((finite(trial.reused_flops), positive(trial.train_flops)) for trial in begun)
    return (1.0 if gone_through is None else gone_through) * (1.0 - (0.0 if found is None else found))


def remaining_flops(snapshot: Snapshot) -> tuple[float, float] | None:
    """Return the training FLOPs still to be spent: those of all trials together, and those of the longest one.

    Trials that are not listed yet are included. A trial whose budget is not known counts as the mean of those that are.

    Args:
        snapshot: The sweep.

    Returns:
        Sum and maximum over the trials that have not ended; None where no budget is known and one is needed.
    """
    budgets = [budget for budget in (positive(trial.budget_flops) for trial in snapshot.trials) if budget is not None]
    mean = sum(budgets) / len(budgets) if budgets else None
    share = expected_share(snapshot)
    total, longest = 0.0, 0.0
    for trial in snapshot.trials:
        if trial.state in (WAITING, RUNNING):
            budget, done = positive(trial.budget_flops) or mean, positive(trial.train_flops)
            if budget is None:
                return None
            fresh = budget if trial.state == RUNNING else budget * share
            flops = fresh if done is None else max(0.0, budget - done)
            total, longest = total + flops, max(longest, flops)
    unlisted = snapshot.total - len(snapshot.trials)
    if unlisted and mean is None:
        return None
    flops = (mean or 0.0) * share
    return total + unlisted * flops, max(longest, flops if unlisted else 0.0)


def seconds_left(snapshot: Snapshot) -> float | None:
    """Return the expected seconds until the last trial ends, None where nothing is known of them.

    Trials are shared out evenly among the live workers, and the end does not come before that of the longest one:
    the larger of (sum of remaining FLOPs) / workers and the largest remaining FLOPs, times the seconds per FLOP.

    Args:
        snapshot: The sweep.

    Returns:
        Seconds; 0 where every trial has ended; None before there is evidence, without a live worker, or while the
        sweep stops.
    """
    if snapshot.trials and snapshot.ended == snapshot.total:
        return 0.0
    left, pace, workers = remaining_flops(snapshot), seconds_per_flop(snapshot), live_workers(snapshot)
    if left is None or pace is None or workers == 0 or snapshot.stopping:
        return None
    total, longest = left
    return finite(pace * max(total / workers, longest))

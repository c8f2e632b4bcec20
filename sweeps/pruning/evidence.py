"""How often a rule is wrong and what it saves: replays of many sweeps in many orders, in numbers with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sweeps.pruning.config import PruningConfig
from sweeps.pruning.replay import FLOPS, Replay, Trial, replay

Z = 1.96
VARIATIONS: dict[str, tuple[Any, ...]] = {
    "min_finished": (1, 8),
    "min_evaluations": (1, 5),
    "warmup": (0.0, 0.1, 0.5),
    "confidence": (0.8, 0.99),
    "training_noise": (0.0, 0.1),
    "noise_floor": (0.0, 0.05, 0.5),
    "optimism": (1.0, 1.5, 2.0),
    "least_growth": (0.0, 1.0),
    "steepest_growth": (2.0, 4.0, 6.0),
}
"""Other values of each setting, for tables of sensitivity."""


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval.

    Attributes:
        events: Events, averaged over the replays of each sweep and summed over sweeps.
        count: Out of how many, counted likewise.
        low: Lower end of the interval.
        high: Upper end of it.
    """

    events: float
    count: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share; NaN where nothing was counted."""
        return self.events / self.count if self.count else math.nan


@dataclass(frozen=True)
class Evidence:
    """What replays found.

    Attributes:
        sweeps: Sweeps replayed.
        trials: Their trials.
        replays: Replays of each sweep, every one in another order.
        workers: Workers.
        stopped: Stopped trials, of all trials.
        false: False stops (a later evaluation lies on the front of the complete sweep), of all stops.
        significant: False stops where it does so by more than the 95 % interval of the difference, of all stops.
        true: False stops by the noise-free front, of all stops.
        saved: Mean fraction of the language models' training FLOPs saved.
        saved_spread: Standard deviation of that over replays and sweeps.
        hypervolume_loss: Mean fraction of hypervolume lost.
        largest_loss: The largest one.
    """

    sweeps: int
    trials: int
    replays: int
    workers: int
    stopped: Rate
    false: Rate
    significant: Rate
    true: Rate
    saved: float
    saved_spread: float
    hypervolume_loss: float
    largest_loss: float


def rate(events: Sequence[float], counts: Sequence[float]) -> Rate:
    """Return a share of events, one entry of both arguments for each sweep, with its 95 % interval.

    The interval is Wilson's. Its sample size is divided by the design effect, because what happens within one sweep is
    not independent; a single sweep shows no such effect, and its interval is that of its trials.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927; Kish, "Survey
    Sampling", 1965 (design effect of a ratio over clusters).
    """
    events_U, counts_U = np.asarray(events, dtype=float), np.asarray(counts, dtype=float)
    total, count, units = float(events_U.sum()), float(counts_U.sum()), len(counts_U)
    if not count:
        return Rate(0.0, 0.0, 0.0, 1.0)
    share = total / count
    effect = 1.0
    if units > 1 and 0 < share < 1:
        variance = units / (units - 1) * float(((events_U - share * counts_U) ** 2).sum()) / count**2
        effect = max(1.0, variance / (share * (1 - share) / count))
    size = count / effect
    middle, scale = (share + Z**2 / (2 * size)) / (1 + Z**2 / size), Z / (1 + Z**2 / size)
    half = scale * math.sqrt(share * (1 - share) / size + Z**2 / (4 * size**2))
    return Rate(total, count, max(0.0, middle - half) if total else 0.0, min(1.0, middle + half))


def repeat(
    trials: Sequence[Trial], settings: PruningConfig, *, workers: int, replays: int, seed: int = 0, clock: str = FLOPS
) -> list[Replay]:
    """Return replays of one sweep, the first in the recorded order, the others in random ones."""
    draw = np.random.default_rng(seed)
    orders = [list(range(len(trials))), *(draw.permutation(len(trials)).tolist() for _ in range(replays - 1))]
    return [replay(trials, settings, workers=workers, order=order, clock=clock) for order in orders]


def gather(
    sweeps: Sequence[Sequence[Trial]],
    settings: PruningConfig,
    *,
    workers: int = 4,
    replays: int = 1,
    seed: int = 0,
    clock: str = FLOPS,
) -> Evidence:
    """Replay sweeps and count.

    Args:
        sweeps: The sweeps.
        settings: Settings of the rule.
        workers: Workers.
        replays: Replays of each sweep.
        seed: Of the orders.
        clock: As in `replay`.
    """
    found = [
        repeat(trials, settings, workers=workers, replays=replays, seed=seed + number, clock=clock)
        for number, trials in enumerate(sweeps)
    ]
    return summarise(sweeps, found, workers)


def summarise(sweeps: Sequence[Sequence[Trial]], found: Sequence[Sequence[Replay]], workers: int) -> Evidence:
    """Count what replays of sweeps did, one entry of `found` for each sweep."""

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    stops = [mean([len(one.stops) for one in own]) for own in found]

    def wrong(kind: str) -> Rate:
        return rate([mean([sum(getattr(stop, kind) for stop in one.stops) for one in own]) for own in found], stops)

    saved = [one.saved for own in found for one in own]
    losses = [one.hypervolume_loss for own in found for one in own]
    return Evidence(
        sweeps=len(sweeps),
        trials=sum(len(trials) for trials in sweeps),
        replays=len(found[0]),
        workers=workers,
        stopped=rate(stops, [len(trials) for trials in sweeps]),
        false=wrong("false"),
        significant=wrong("significantly_false"),
        true=wrong("truly_false"),
        saved=mean(saved),
        saved_spread=float(np.std(saved)),
        hypervolume_loss=mean(losses),
        largest_loss=max(losses),
    )


def sensitivity(
    sweeps: Sequence[Sequence[Trial]],
    settings: PruningConfig,
    variations: Mapping[str, Sequence[Any]],
    *,
    workers: int = 4,
    replays: int = 1,
) -> list[tuple[str, Any, Evidence]]:
    """Return what replays find where one setting at a time is changed: its name, its value, the evidence."""
    return [
        (key, value, gather(sweeps, replace(settings, **{key: value}), workers=workers, replays=replays))
        for key, values in variations.items()
        for value in values
    ]

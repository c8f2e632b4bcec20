"""Which trials come next: the baseline, what was enqueued, then the sampler's points, each with every seed.

Planning needs no coordinator: whichever worker runs out of trials takes the planning lock and adds the next ones. What
has been planned is read from the record, so a planner may die between any two trials that it adds.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from calm_lightning.config import identity
from calm_lightning.errors import ConfigError
from sweeps.config import SweepConfig
from sweeps.space.points import Point, PointMaker, flatten, grid
from sweeps.trials.record import DRAW, POINT, SEED, SLUG, VALUES, Planned, TrialRecord
from sweeps.trials.samplers import ADAPTIVE, GRID, draw, mirror

_LOCK = "plan.lock"
_LOCK_PAUSE = 0.02


def seeds_of(sweep: SweepConfig) -> list[int | None]:
    """Return the seeds of every point; None stands for the configuration's own."""
    return list(sweep.seeds) or [None]


def planned_trials(maker: PointMaker) -> int | None:
    """Return how many trials a sweep will have, points that break a constraint left out; None where there is no end.

    A sampler may find fewer points than it is asked for: a small space is exhausted.

    Args:
        maker: Makes the points of the sweep.

    Raises:
        ConfigError: A configuration contradicts itself, or nothing in the space may be trained.
    """
    sampler, fixed = maker.sweep.sampler, [point for point in fixed_points(maker) if not point.refused]
    if sampler.name == GRID:
        drawn = len(grid_points(maker))
    elif not maker.parameters:
        drawn = 0
    elif sampler.points is None:
        return None
    else:
        drawn = sampler.points
        draw_point(maker, mirror(maker.sweep.objectives, []), 0, ())  # a mistake in the space shows at the first draw
    return (len(fixed) + drawn) * len(seeds_of(maker.sweep))


def grid_points(maker: PointMaker) -> list[Point]:
    """Return the points of a grid that may be trained and are not among the fixed ones."""
    known = {point.slug for point in fixed_points(maker)}
    made = (maker.make(values) for values in islice(grid(maker), maker.sweep.sampler.points))
    return [point for point in made if not point.refused and point.slug not in known]


@contextmanager
def planning(directory: Path, stopping: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Hold a sweep's planning lock, waiting for it; it ends with its process, however that ends.

    Args:
        directory: The sweep's directory.
        stopping: Ends the waiting.

    Yields:
        Whether the lock is held: not if the waiting was ended.
    """
    with (directory / _LOCK).open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if stopping():
                    yield False
                    return
                time.sleep(_LOCK_PAUSE)
            else:
                yield True
                return


class Planner:
    """Adds trials to a record. Only the holder of `planning` may call `plan`.

    Args:
        maker: Makes the points of the sweep.
        record: The sweep's trials.
    """

    def __init__(self, maker: PointMaker, record: TrialRecord) -> None:
        self.maker, self.record, self.sweep = maker, record, maker.sweep

    @cached_property
    def fixed(self) -> list[Point]:
        """The points that need no sampler: the plain baseline and what was enqueued.

        Raises:
            ConfigError: An enqueued point does not lie in the space.
        """
        return fixed_points(self.maker)

    @cached_property
    def _grid(self) -> list[dict[str, Any]]:
        return list(islice(grid(self.maker), self.sweep.sampler.points))

    def plan(self, room: int) -> int:
        """Add trials until some wait, or no further ones can be planned now.

        Args:
            room: Trials that may wait. An adaptive sampler draws only when none does, to know as much as it can.

        Returns:
            How many were added. 0 means that all are planned, or that a batch waits for results.
        """
        added = 0
        limit = 1 if self.sweep.sampler.name in ADAPTIVE and self.sweep.sampler.batch is None else room
        while True:
            trials = self.record.trials()
            if sum(trial.state == TrialState.WAITING for trial in trials) >= limit:
                return added
            found = self._next(trials)
            if not found:
                return added
            for planned in found:
                self.record.add(planned)
            added += len(found)

    def _next(self, trials: Sequence[FrozenTrial]) -> list[Planned]:
        """Return the trials of the next point: one that lacks a seed, or the first that is not there yet."""
        by_point = self._by_point(trials)
        for number, mine in by_point.items():
            lacking = self._lacking(mine)
            if lacking:
                first = next(trial for trial in trials if trial.user_attrs[POINT] == number)
                point = self.maker.make(values) if (values := first.user_attrs[VALUES]) else self.maker.baseline()
                return self._trials(point, number, lacking, first.user_attrs[DRAW])
        for number, point in enumerate(self.fixed):
            if number not in by_point and not point.refused:
                return self._trials(point, number, seeds_of(self.sweep), {})
        following = max(len(self.fixed), *(number + 1 for number in by_point)) if by_point else len(self.fixed)
        if self.sweep.sampler.name == GRID:
            return self._next_of_grid(following)
        return self._next_draw(following, trials)

    def _lacking(self, trials: Sequence[FrozenTrial]) -> list[int | None]:
        """Return the seeds that a point has no trial of."""
        if not self.sweep.seeds:
            return [] if trials else [None]
        there = {trial.user_attrs[SEED] for trial in trials}
        return [seed for seed in self.sweep.seeds if seed not in there]

    def _by_point(self, trials: Sequence[FrozenTrial]) -> dict[int, list[FrozenTrial]]:
        """Return the trials that count by number of their point: what is tried again does not."""
        found: dict[int, list[FrozenTrial]] = {int(trial.user_attrs[POINT]): [] for trial in trials}
        for trial in trials:
            if not self.record.superseded(trial):
                found[int(trial.user_attrs[POINT])].append(trial)
        return dict(sorted(found.items()))

    def _next_of_grid(self, number: int) -> list[Planned]:
        enqueued = {point.slug for point in self.fixed}
        for index in range(number - len(self.fixed), len(self._grid)):
            point = self.maker.make(self._grid[index])
            if not point.refused and point.slug not in enqueued:
                return self._trials(point, index + len(self.fixed), seeds_of(self.sweep), {})
        return []

    def _next_draw(self, number: int, trials: Sequence[FrozenTrial]) -> list[Planned]:
        sampler, index = self.sweep.sampler, number - len(self.fixed)
        if not self.maker.parameters or (sampler.points is not None and index >= sampler.points):
            return []
        if self.record.exhausted == number:
            return []
        slugs = {trial.user_attrs[SLUG] for trial in trials}
        if sampler.name in ADAPTIVE and sampler.batch is not None:
            first = len(self.fixed) + index // sampler.batch * sampler.batch
            trials = [trial for trial in trials if int(trial.user_attrs[POINT]) < first]
            if not all(trial.state.is_finished() for trial in trials):
                return []
        # The others look at no result, and need not know what is there.
        past = mirror(self.sweep.objectives, self._past(trials) if sampler.name in ADAPTIVE else [])
        found = draw_point(self.maker, past, index, slugs)
        if found is None:
            self.record.exhaust(number)
            return []
        point, notes = found
        return self._trials(point, number, seeds_of(self.sweep), notes)

    def _trials(self, point: Point, number: int, seeds: Sequence[int | None], notes: dict[str, Any]) -> list[Planned]:
        """Return the trials of a point, one for every seed."""
        swept = {parameter.key: parameter for parameter in self.maker.parameters}
        made = []
        for asked in seeds:
            seed = point.model.seed if asked is None else asked
            seeded = point.seeded(seed, self.sweep.autoencoder_seed) if self.maker.varies_seeds else point
            made.append(
                Planned(
                    key=f"{point.slug}-s{seed}",
                    point=number,
                    slug=point.slug,
                    label=point.label,
                    seed=seed,
                    stage=point.stage,
                    values=point.values,
                    params={key: swept[key].encode(value) for key, value in point.values.items()},
                    distributions={key: swept[key].distribution() for key in point.values},
                    autoencoder=identity(seeded.autoencoder)[:16] if seeded.autoencoder else "",
                    train_flops=point.forecast.train_flops if point.forecast else 0.0,
                    draw=notes,
                )
            )
        return made

    def _past(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the points so far as the sampler sees them: one trial each, values averaged over seeds."""
        past = []
        for mine in self._by_point(trials).values():
            asked = [trial for trial in mine if not self.sweep.seeds or trial.user_attrs[SEED] in self.sweep.seeds]
            if asked and asked[0].params:
                past.append(_seen(asked, len(seeds_of(self.sweep)), asked[0].user_attrs.get(DRAW) or {}))
        return past


def draw_point(
    maker: PointMaker, past: optuna.Study, index: int, known: Container[str]
) -> tuple[Point, dict[str, Any]] | None:
    """Draw a point that may be trained and is not known.

    Args:
        maker: Makes the points of the sweep.
        past: A `mirror` of the points so far.
        index: Number of the draw.
        known: Slugs of points that are there.

    Returns:
        The point and what the sampler noted with it; None where nothing is left.

    Raises:
        ConfigError: Nothing in the space may be trained.
    """
    made: dict[str, Point] = {}

    def accept(values: dict[str, Any]) -> bool:
        point = maker.make(values, refuse=True)
        made[json.dumps(values, sort_keys=True)] = point
        return not point.refused and point.slug not in known

    found = draw(maker.sweep.sampler, past, maker.parameters, index, maker.active, accept)
    if found is not None:
        return made[json.dumps(found.values, sort_keys=True)], found.notes
    refused = [point.refused for point in made.values() if point.refused]
    if index == 0 and len(refused) == len(made):
        raise ConfigError(
            f"none of {len(made)} points drawn from space may be trained, the last one because: {refused[-1]}"
        )
    return None


def _seen(trials: Sequence[FrozenTrial], seeds: int, notes: dict[str, Any]) -> FrozenTrial:
    """Return the trials of one point as one trial: running until all seeds have ended, then their mean.

    A point of which a seed failed has failed. Where some seeds were stopped early, only the complete ones count: a mean
    over different costs would be a point that nobody had.
    """
    common: dict[str, Any] = {
        "params": trials[0].params,
        "distributions": trials[0].distributions,
        "system_attrs": notes,
    }
    if len(trials) < seeds or not all(trial.state.is_finished() for trial in trials):
        return create_trial(state=TrialState.RUNNING, **common)
    if any(trial.state == TrialState.FAIL for trial in trials):
        return create_trial(state=TrialState.FAIL, **common)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    scored = [trial.values for trial in complete or trials]
    means = [fmean(column) for column in zip(*scored, strict=True)]
    if not complete and len(means) == 1:
        return create_trial(
            state=TrialState.PRUNED, values=means, intermediate_values=trials[0].intermediate_values, **common
        )
    return create_trial(state=TrialState.COMPLETE, values=means, **common)


def _enqueued(maker: PointMaker, values: dict[str, Any], place: str) -> dict[str, Any]:
    """Return an enqueued point's values, checked to be one point of the space."""
    known = {parameter.key: parameter for parameter in maker.parameters}
    kept: dict[str, Any] = {}
    for key, parameter in known.items():
        if not maker.active(parameter, kept):
            continue
        if key not in values:
            raise ConfigError(f"{place} lacks a value of {key}")
        if not parameter.holds(values[key]):
            raise ConfigError(f"{place}: {key}={values[key]} does not lie in space.{key}")
        kept[key] = values[key]
    outside = [key for key in values if key not in kept]
    if outside:
        raise ConfigError(f"{place}: {', '.join(outside)} is not swept here; swept: {', '.join(known)}")
    return kept


def fixed_points(maker: PointMaker) -> list[Point]:
    """Return the points that need no sampler: the plain baseline and what was enqueued.

    Raises:
        ConfigError: An enqueued point does not lie in the space.
    """
    made = [maker.baseline()] if maker.sweep.include_baseline else []
    for number, entry in enumerate(maker.sweep.enqueue):
        made.append(maker.make(_enqueued(maker, dict(flatten(entry)), f"enqueue[{number}]")))
    return list({point.slug: point for point in made}.values())  # one that is named twice is trained once

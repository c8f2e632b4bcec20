"""Series -> the points of a fit: logarithms of cost and score with their errors, and what was left out and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calm_lightning.errors import SweepError
from calm_lightning.metrics.names import ScorePoint
from sweeps.front.pareto import front
from sweeps.front.series import COMPLETE, Series
from sweeps.scaling.settings import ENVELOPE, LAST, FitSettings

Floats = NDArray[np.float64]
LEAST_K = 3
"""Values of K below which an optimum between them cannot be seen."""


@dataclass(frozen=True, eq=False)
class Observations:
    """Evaluations as a regression sees them, n of them, sorted by trial.

    Attributes:
        series: The trials, by index.
        trial: Index of each evaluation's trial, (n,).
        x: log10 of training FLOPs, (n,).
        k: log2 of K, (n,); zero for a baseline.
        p: log10 of parameters, (n,).
        y: log10 of the score in percent, (n,).
        error: Standard error of `y`, (n,).
        left_out: What was left out and why, one phrase each.
    """

    series: tuple[Series, ...]
    trial: NDArray[np.intp]
    x: Floats
    k: Floats
    p: Floats
    y: Floats
    error: Floats
    left_out: tuple[str, ...]

    @property
    def Ks(self) -> tuple[int, ...]:
        """The values of K, ascending."""
        return tuple(sorted({one.K for one in self.series if one.K is not None}))

    def of_K(self, K: int | None) -> NDArray[np.bool_]:
        """Return which evaluations belong to a K, (n,)."""
        return np.array([one.K == K for one in self.series], dtype=bool)[self.trial]


def score(point: ScorePoint, target: str) -> tuple[float, float]:
    """Return the score of an evaluation and its standard error, percent."""
    if target == "brier_lm":
        return point.brier_lm, point.brier_lm_se
    n = int(target.removeprefix("brier_"))
    return point.brier[n - 1], point.brier_se[n - 1]


def observe(series: Sequence[Series], settings: FitSettings, stage: str = "calm") -> Observations:
    """Return the evaluations of one stage that a law can be fitted to.

    Untrained models, scores that are zero or below the detection limit, and evaluations that `settings.points` does
    not choose are left out and counted. Low scores are censored rather than missing; leaving them out is enough
    where they are the first evaluations of curves that rise out of them, and shows in the counts where they are not.

    Args:
        series: The trials; a run that appears twice counts once.
        settings: What is fitted.
        stage: "calm" or "baseline".
    """
    left_out: Counter[str] = Counter()
    found: list[tuple[Series, list[ScorePoint]]] = []
    for one in _distinct([one for one in series if one.stage == stage]):
        points = _usable(one, settings, left_out)
        if stage == "calm" and one.K is None:
            left_out["evaluations of models whose K is not recorded"] += len(points)
        elif points:
            found.append((one, points))
    if settings.points == ENVELOPE:
        found = _envelope(found, settings.target, left_out)
    phrases = [f"{count} {reason}" for reason, count in sorted(left_out.items()) if count]
    return _arrays(found, settings.target, tuple(phrases))


def _distinct(series: Sequence[Series]) -> list[Series]:
    """Return the trials without repetitions: two sweeps may have shared a run."""
    kept: dict[tuple[object, ...], Series] = {}
    for one in series:
        kept.setdefault((one.run_dir,) if one.run_dir else (one.label, one.seed, one.points), one)
    return list(kept.values())


def _usable(one: Series, settings: FitSettings, left_out: Counter[str]) -> list[ScorePoint]:
    """Return the evaluations of one trial whose logarithm means something."""
    left_out["evaluations of untrained models"] += len(one.points) - len(one.trained)
    points = list(one.trained)
    if settings.points == LAST:
        last = points[-1:] if one.state == COMPLETE else []
        reason = "the last of a complete trial" if one.state == COMPLETE else "of a complete trial"
        left_out[f"evaluations that are not {reason}"] += len(points) - len(last)
        points = last
    kept = []
    for point in points:
        value, error = score(point, settings.target)
        if not (math.isfinite(value) and math.isfinite(error) and error >= 0 and point.train_flops > 0):
            left_out["evaluations without a finite score, error or cost"] += 1
        elif value <= 0 or value < settings.detection * error:
            left_out[f"scores below the detection limit ({settings.detection:g} standard errors)"] += 1
        else:
            kept.append(point)
    return kept


def _envelope(
    found: Sequence[tuple[Series, list[ScorePoint]]], target: str, left_out: Counter[str]
) -> list[tuple[Series, list[ScorePoint]]]:
    """Return the evaluations that no other of the same K beats in both cost and score."""
    kept: dict[int, list[ScorePoint]] = {}
    for K in {one.K for one, _ in found}:
        pool = [(index, point) for index, (one, points) in enumerate(found) if one.K == K for point in points]
        for place in front([(point.train_flops, score(point, target)[0]) for _, point in pool]):
            index, point = pool[place]
            kept.setdefault(index, []).append(point)
    total = sum(len(points) for _, points in found)
    left_out["evaluations off the front of their K"] += total - sum(map(len, kept.values()))
    return [(found[index][0], kept[index]) for index in sorted(kept)]


def _arrays(found: Sequence[tuple[Series, list[ScorePoint]]], target: str, left_out: tuple[str, ...]) -> Observations:
    rows = [(index, one, point) for index, (one, points) in enumerate(found) for point in points]
    scores = [score(point, target) for _, _, point in rows]
    return Observations(
        series=tuple(one for one, _ in found),
        trial=np.array([index for index, _, _ in rows], dtype=np.intp),
        x=np.array([math.log10(point.train_flops) for _, _, point in rows]),
        k=np.array([math.log2(one.K or 1) for _, one, _ in rows]),
        p=np.array([math.log10(max(one.parameters, 1)) for _, one, _ in rows]),
        y=np.array([math.log10(value) for value, _ in scores]),
        error=np.array([error / value / math.log(10) for value, error in scores]),
        left_out=left_out,
    )


def _lacks(observed: Observations, K: int | None, settings: FitSettings) -> list[str]:
    """Return what the trials of one K (None: the baseline) lack."""
    mine = observed.of_K(K)
    trials = len(set(observed.trial[mine].tolist()))
    span = float(np.ptp(observed.x[mine])) if mine.any() else 0.0
    lacking = []
    if trials < settings.least_trials:
        lacking.append(f"{trials} of {settings.least_trials} trials")
    if span < settings.decades:
        lacking.append(f"{span:.2g} of {settings.decades:g} decades of FLOPs")
    return lacking


def sufficient(series: Sequence[Series], settings: FitSettings) -> Observations:
    """Return the evaluations of the CALM models, those of K values that cannot carry a fit left out.

    Raises:
        SweepError: Fewer than three values of K remain; the sentence lists what each of the others lacks.
    """
    observed = observe(series, settings)
    offered = sorted({one.K for one in series if one.stage == "calm" and one.K is not None})
    lacking = {K: _lacks(observed, K, settings) for K in offered}
    good = [K for K in offered if not lacking[K]]
    missing = [f"K = {K} has {' and '.join(lacks)}" for K, lacks in lacking.items() if lacks]
    if len(good) < LEAST_K:
        have = f"{len(good)} value{'' if len(good) == 1 else 's'} of K"
        reasons = "; ".join([*missing, *observed.left_out])
        raise SweepError(
            f"these points cannot support a scaling law in K: {have} can be used and {LEAST_K} are needed"
            f"{': ' + reasons if reasons else ''}; train more values of K, more seeds or longer"
        )
    kept = [one for one in series if one.stage == "calm" and one.K in good]
    again = observe(kept, settings)
    return Observations(**{**vars(again), "left_out": (*observed.left_out, *(f"{one} (left out)" for one in missing))})


def sufficient_baseline(series: Sequence[Series], settings: FitSettings) -> Observations:
    """Return the evaluations of the token baseline.

    Raises:
        SweepError: They cannot carry a curve; the sentence says what is missing.
    """
    observed = observe(series, settings, "baseline")
    lacking = _lacks(observed, None, settings)
    if lacking:
        reasons = "; ".join([" and ".join(lacking), *observed.left_out])
        raise SweepError(f"the baseline cannot be compared: it has {reasons}")
    return observed

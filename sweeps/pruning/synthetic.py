"""Sweeps of made-up learning curves whose truth is known, for measuring how often a rule is wrong.

Costs are FLOPs, scores percent. A family is a shape of BrierLM over training FLOPs; a sweep mixes trials of different
quality, cost and family. Observed scores carry the noise that their standard errors report, and on top of it a
fluctuation from one evaluation to the next that no standard error sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calm_lightning.metrics.names import ScorePoint
from sweeps.front.series import Series

Floats = NDArray[np.float64]
Shape = Callable[[Floats, np.random.Generator], Floats]
PARTS = (4.0, 1.5, 0.6, 1 / 3.6)
"""Ratios of Brier-1..4 to BrierLM, their geometric mean 1."""
MIXED = "mixed"


def _saturating(fraction_E: Floats, draw: np.random.Generator) -> Floats:
    """Return 1 - (1 + t / tau)^-p: early growth, then a plateau."""
    return 1 - (1 + fraction_E / draw.uniform(0.05, 0.5)) ** -draw.uniform(0.3, 1.5)


def _power(fraction_E: Floats, draw: np.random.Generator) -> Floats:
    """Return t^p."""
    return fraction_E ** draw.uniform(0.2, 1.2)


def _logarithmic(fraction_E: Floats, draw: np.random.Generator) -> Floats:
    """Return a straight line in log FLOPs that starts early."""
    return np.clip(1 + draw.uniform(0.2, 0.35) * np.log(fraction_E), 0, None)


def _late(fraction_E: Floats, draw: np.random.Generator) -> Floats:
    """Return a late starter: zero at first, then a straight line in log FLOPs, steeper than the others'."""
    start = draw.uniform(0.1, 0.6)
    return np.clip(np.log(fraction_E / start), 0, None) / np.log(1 / start)


def _sigmoid(fraction_E: Floats, draw: np.random.Generator) -> Floats:
    """Return a sigmoid in log FLOPs."""
    return 1 / (1 + np.exp(-draw.uniform(1.5, 4.0) * (np.log(fraction_E) - np.log(draw.uniform(0.15, 0.8)))))


def _cooldown(fraction_E: Floats, draw: np.random.Generator) -> Floats:
    """Return a power law that is lifted in the last fifth, as where the learning rate is lowered at the end."""
    lift = 1 + draw.uniform(0.05, 0.3) * np.clip((fraction_E - 0.8) / 0.2, 0, 1)
    return fraction_E ** draw.uniform(0.2, 0.8) * lift


def _collapsing(fraction_E: Floats, draw: np.random.Generator) -> Floats:
    """Return a model that diverges: nothing at all, or growth and then a fall to zero."""
    fall = draw.choice([0.0, draw.uniform(0.2, 0.9)])
    return np.where(fraction_E < fall, np.sqrt(fraction_E), 0.0)


FAMILIES: dict[str, Shape] = {
    "saturating": _saturating,
    "power": _power,
    "logarithmic": _logarithmic,
    "late": _late,
    "sigmoid": _sigmoid,
    "cooldown": _cooldown,
    "collapsing": _collapsing,
}
KINDS = (*(name for name in FAMILIES if name != "collapsing"), MIXED)
"""Kinds of sweeps: all trials of one family, or of families drawn for each."""


def sweep(
    seed: int, kind: str = MIXED, trials: int = 20, noise: float = 0.15, fluctuation: float = 0.03
) -> tuple[list[Series], list[Series]]:
    """Return one sweep as it is observed, and its truth.

    Args:
        seed: Of all draws.
        kind: One of `KINDS`.
        trials: Trials.
        noise: Standard error of a BrierLM of 1; it grows with the root of the score, as measured.
        fluctuation: Standard deviation of the fluctuation that standard errors do not see, relative to BrierLM.
    """
    draw = np.random.default_rng([seed, *kind.encode()])
    spread, budget = draw.uniform(0.1, 0.6), 10 ** draw.uniform(12, 20)
    observed, truth = [], []
    for number in range(trials):
        family = str(draw.choice(list(FAMILIES))) if kind == MIXED else kind
        size = np.exp(draw.uniform(-1, 1))
        evaluations = int(draw.integers(8, 13))
        fraction_E = np.arange(1, evaluations + 1) / evaluations
        # Larger models end higher, as they should; the spread around that is what a sweep is for.
        height = 6 * size**0.3 * np.exp(spread * draw.standard_normal())
        true_E = height * FAMILIES[family](fraction_E, draw)
        stage_E, autoencoder = budget * size * fraction_E, budget * draw.choice([0.05, 0.2])
        name = f"{family} {number}"
        observed.append(_series(name, number, stage_E, autoencoder, *_observe(true_E, noise, fluctuation, draw)))
        truth.append(_series(name, number, stage_E, autoencoder, true_E, np.zeros_like(true_E)))
    return observed, truth


def _observe(true_E: Floats, noise: float, fluctuation: float, draw: np.random.Generator) -> tuple[Floats, Floats]:
    """Return observed scores, 0 where noise has made them negative, and their standard errors."""
    error_E = noise * np.sqrt(np.maximum(true_E, 0.05))
    wander_E = fluctuation * true_E * draw.standard_normal(len(true_E))
    return np.clip(true_E + wander_E + error_E * draw.standard_normal(len(true_E)), 0, None), error_E


def _series(label: str, number: int, stage_E: Floats, autoencoder: float, score_E: Floats, error_E: Floats) -> Series:
    """Return a complete trial with these evaluations."""
    points = []
    for step, (stage, score, error) in enumerate(zip(stage_E, score_E, error_E, strict=True), start=1):
        common: dict[str, Any] = {"step": step, "train_flops": stage + autoencoder, "stage_train_flops": float(stage)}
        common |= {"inference_flops_per_token": 1.0, "text_tokens": float(step), "seconds": float(step)}
        brier = tuple(float(score) * part for part in PARTS)
        brier_se = tuple(float(error) * part for part in PARTS)
        points.append(
            ScorePoint(
                **common,
                brier_lm=float(score),
                brier_lm_se=float(error),
                brier_lm_low=max(float(score - 1.96 * error), 0.0),
                brier_lm_high=float(score + 1.96 * error),
                brier=(brier[0], brier[1], brier[2], brier[3]),
                brier_se=(brier_se[0], brier_se[1], brier_se[2], brier_se[3]),
            )
        )
    return Series(label, "calm", {}, 1, tuple(points), "", "", None, "", slug=label, trial=number)

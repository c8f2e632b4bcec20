"""What is fitted and what the points must be able to carry."""

from __future__ import annotations

from dataclasses import dataclass

from calm_lightning.errors import SweepError

ALL, LAST, ENVELOPE = "all", "last", "envelope"
POINTS = (ALL, LAST, ENVELOPE)
"""Which evaluations are fitted: every one, the last of every complete trial, those on the front of their K."""
TARGETS = ("brier_lm", "brier_1", "brier_2", "brier_3", "brier_4")
"""What can be fitted. A loss is not among them: latents of different K have different widths, and so have units of
their own."""
AUTO = "auto"


@dataclass(frozen=True)
class FitSettings:
    """How a scaling law is fitted.

    Attributes:
        target: One of `TARGETS`, percent.
        points: One of `POINTS`. "all" is the default because it selects nothing: the front of several noisy curves
            lies above their mean, and further above it the more trials a K has, which would flatter the K that a
            sampler tried most. "envelope" is for sweeps that vary more than K and seeds, "last" for sweeps with
            several budgets for each K.
        law: Name of a law (`sweeps.scaling.laws`), or "auto": the one that predicts left-out trials best.
        least_trials: Trials with usable evaluations that each K needs; one trial cannot show the scatter of seeds.
        decades: Span of training FLOPs that each K needs, in factors of ten.
        detection: Scores of less than this many standard errors are left out: their logarithm says nothing.
        draws: Draws of the fitted coefficients from which probabilities and intervals of K are counted.
        seed: Seed of these draws.

    Raises:
        SweepError: A setting has no meaning.
    """

    target: str = "brier_lm"
    points: str = ALL
    law: str = AUTO
    least_trials: int = 2
    decades: float = 0.5
    detection: float = 2.0
    draws: int = 4000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (("target", self.target, TARGETS), ("points", self.points, POINTS)):
            if value not in known:
                raise SweepError(f"{name} {value!r} is not known: choose one of {', '.join(known)}")
        for name, number, least in (("least_trials", self.least_trials, 1), ("draws", self.draws, 100)):
            if number < least:
                raise SweepError(f"{name}={number} is too few: give at least {least}")
        for name, limit in (("decades", self.decades), ("detection", self.detection)):
            if not limit > 0:
                raise SweepError(f"{name}={limit} must be positive")

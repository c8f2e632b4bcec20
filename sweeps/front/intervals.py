"""Intervals of an estimate from its redraws.

A front is a maximum of noisy scores: it lies above the true front, and redraws, which add noise once more, lie above
the estimate by about as much again. `benchmarks/bench_pareto_coverage.py` measures how often each kind of interval
holds the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Kind = Literal["percentile", "basic", "bias-corrected", "centred"]
KINDS: tuple[Kind, ...] = ("percentile", "basic", "bias-corrected", "centred")
_TAIL = 0.025


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: The number.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def interval(value: float, redraws: NDArray[np.float64], kind: Kind) -> tuple[float, float]:
    """Return the 95 % interval of an estimate.

    With q the quantiles of the redraws and theta the estimate:

    - percentile: q(0.025) to q(0.975);
    - basic (pivotal): 2 theta - q(0.975) to 2 theta - q(0.025);
    - bias-corrected: q(Phi(2 z_0 + z(0.025))) to q(Phi(2 z_0 + z(0.975))), z_0 = Phi^-1(share of redraws below theta);
    - centred: the percentile interval moved so that the redraws' median comes to lie on theta.

    Args:
        value: The estimate.
        redraws: The same number in the redraws.
        kind: Which.

    Source: Efron, "Nonparametric standard errors and confidence intervals", Canadian Journal of Statistics 9, 1981;
    Davison, Hinkley, "Bootstrap Methods and their Application", 1997, section 5.2.
    """
    if kind == "bias-corrected":
        below = np.mean(redraws < value) + np.mean(redraws == value) / 2
        z_0 = float(ndtri(np.clip(below, 0.5 / len(redraws), 1 - 0.5 / len(redraws))))
        low, high = np.quantile(redraws, [ndtr(2 * z_0 + ndtri(_TAIL)), ndtr(2 * z_0 + ndtri(1 - _TAIL))])
        return float(low), float(high)
    low, middle, high = (float(q) for q in np.quantile(redraws, [_TAIL, 0.5, 1 - _TAIL]))
    if kind == "basic":
        return 2 * value - high, 2 * value - low
    if kind == "centred":
        return low + value - middle, high + value - middle
    return low, high

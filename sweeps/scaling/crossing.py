"""Where CALM overtakes the token baseline: from which training FLOPs on one law lies above the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calm_lightning.errors import SweepError
from sweeps.scaling.fitting import Fit, Range
from sweeps.scaling.predicting import FARTHEST_FLOPS, log_scores

Floats = NDArray[np.float64]
CROSSES, AHEAD, BEHIND = "crosses", "ahead", "behind"
_TAILS = (0.025, 0.975)
_GRID = 241
"""Budgets at which the laws are compared; between two of them they are taken to be straight."""


@dataclass(frozen=True)
class Crossing:
    """The training FLOPs from which on a K beats the baseline.

    Attributes:
        state: "crosses", or "ahead" or "behind" where the fitted laws do not cross within the window.
        flops: Where they cross; None where they do not.
        low: Lower end of its 95 % interval; None where that lies below the window.
        high: Upper end; None where it lies beyond the window, or there is no such point.
        window: The FLOPs that were looked at.
        probability: Share of draws that have overtaken the baseline by the end of the window.
        extrapolated: Whether they cross where K or the baseline was not observed.
    """

    state: str
    flops: float | None
    low: float | None
    high: float | None
    window: Range
    probability: float
    extrapolated: bool


def crossing(fit: Fit, K: int, parameters: float | None = None) -> Crossing:
    """Return the budget from which on a K beats the baseline, looked for as far as predictions are made.

    Raises:
        SweepError: The baseline has no law, or none at these budgets.
    """
    ranges = (fit.flops[K], fit.baseline_flops)
    window = max(low for low, _ in ranges) / FARTHEST_FLOPS, min(high for _, high in ranges) * FARTHEST_FLOPS
    if window[0] >= window[1]:
        raise SweepError(f"K = {K} and the baseline were observed at budgets too far apart to be compared")
    flops = np.geomspace(*window, _GRID)
    from_draws = _overtaken(log_scores(fit, flops, K, parameters) - log_scores(fit, flops, None), flops)
    estimate = float(_overtaken(_estimated_lead(fit, flops, K, parameters)[None], flops)[0])
    state = BEHIND if estimate == math.inf else CROSSES if estimate > window[0] else AHEAD
    low, high = np.quantile(from_draws, _TAILS, method="nearest")
    return Crossing(
        state=state,
        flops=estimate if state == CROSSES else None,
        low=float(low) if window[0] < low < math.inf else None,
        high=float(high) if window[0] < high < math.inf else None,
        window=window,
        probability=float(np.isfinite(from_draws).mean()),
        extrapolated=state == CROSSES and not all(low <= estimate <= high for low, high in ranges),
    )


def _estimated_lead(fit: Fit, flops: Floats, K: int, parameters: float | None) -> Floats:
    """Return how far a K lies above the baseline in log10 of the score, (budgets,)."""
    assert fit.baseline is not None
    size = np.full_like(flops, parameters or fit.parameters[K])
    calm, _ = fit.curve.expected(fit.curve.design(flops, np.full_like(flops, K), size))
    token, _ = fit.baseline.expected(fit.baseline.design(flops, np.ones_like(flops), size))
    return calm - token


def _overtaken(lead: Floats, flops: Floats) -> Floats:
    """Return from which FLOPs on a lead stays positive, (draws,): the first one if always, infinity if not at the end.

    Args:
        lead: (draws, budgets).
        flops: (budgets,), evenly spaced in logarithms.
    """
    behind = lead <= 0
    last = np.where(behind.any(axis=1), lead.shape[1] - 1 - np.argmax(behind[:, ::-1], axis=1), -1)
    found = np.full(len(lead), flops[0])
    found[last == lead.shape[1] - 1] = math.inf
    rows = np.flatnonzero((last >= 0) & (last < lead.shape[1] - 1))
    before, after = lead[rows, last[rows]], lead[rows, last[rows] + 1]
    step = np.log(flops[1] / flops[0])
    found[rows] = flops[last[rows]] * np.exp(step * -before / (after - before))
    return found

"""Whole curves: a linear model whose trials stand a little above or below it and rise a little faster or slower.

Evaluations of one run share its seed, its autoencoder and its data order, so that ten of them are far from ten
independent numbers. The model of an evaluation at x = log10 FLOPs of trial i is

    y = design . beta + u_i + v_i (x - x0) + e,   u ~ N(0, trial^2), v ~ N(0, slope^2), e ~ N(0, error^2 + point^2),

with the evaluation's known error. The three standard deviations are estimated by restricted maximum likelihood and
beta by generalised least squares. Being a likelihood, it is not misled by trials that were stopped because of what
their evaluations showed.

Source: Laird, Ware, "Random-effects models for longitudinal data", 1982; Rubin, "Inference and missing data", 1976.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

Floats = NDArray[np.float64]
_LOG_LIMITS = (math.log(1e-9), math.log(1e2))
"""Variances of log10 scores between which estimates are sought."""


@dataclass(frozen=True)
class Scatter:
    """Standard deviations of log10 scores around a law.

    Attributes:
        point: Of single evaluations, beyond their own errors.
        trial: Between trials.
        slope: Between trials, of the rise per decade of FLOPs.
    """

    point: float
    trial: float
    slope: float


class Curves:
    """The evaluations of G trials, stacked as (G, n, ...) with zeros where a trial has fewer than n.

    Args:
        trial: Index of each evaluation's trial, (n_total,).
        x: log10 FLOPs less x0, (n_total,).
        error: Standard errors of the responses, (n_total,).
    """

    def __init__(self, trial: NDArray[np.intp], x: Floats, error: Floats) -> None:
        _, which = np.unique(trial, return_inverse=True)
        order = np.argsort(which, kind="stable")
        counts = np.bincount(which)
        place = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._row, self._column = which[order], place
        self._order = order
        self.G, self.n = len(counts), int(counts.max())
        self.counts = counts
        self.mask = self.stack(np.ones(len(which)))
        self._intercept = self.mask
        self._x = self.stack(x)
        self._known = self.stack(error**2)

    def stack(self, values: Floats) -> Floats:
        """Return (n_total, ...) values as (G, n, ...)."""
        stacked = np.zeros((self.G, self.n, *values.shape[1:]))
        stacked[self._row, self._column] = values[self._order]
        return stacked

    def covariance(self, scatter: Scatter) -> Floats:
        """Return the covariance of every trial's responses, (G, n, n), the unit matrix where there are none."""
        own = np.where(self.mask > 0, self._known + scatter.point**2, 1.0)
        shared = scatter.trial**2 * self._intercept[:, :, None] * self._intercept[:, None, :]
        shared += scatter.slope**2 * self._x[:, :, None] * self._x[:, None, :]
        return shared + own[:, :, None] * np.eye(self.n)

    def components(self) -> tuple[str, ...]:
        """Return the standard deviations that these curves can tell apart."""
        if self.n == 1:
            return ("trial",)
        return ("point", "trial") if self.n == 2 else ("point", "trial", "slope")


def whitener(covariance: Floats) -> tuple[Floats, float]:
    """Return W with W V W' = 1 for every trial, (G, n, n), and the logarithm of V's determinant over all trials."""
    lower = np.linalg.cholesky(covariance)
    determinant = 2 * float(np.log(np.diagonal(lower, axis1=1, axis2=2)).sum())
    return np.linalg.inv(lower), determinant


def estimate_scatter(curves: Curves, design: Floats, response: Floats, start: Scatter | None = None) -> Scatter:
    """Return the standard deviations of highest restricted likelihood.

    Args:
        curves: The trials.
        design: (n_total, p).
        response: (n_total,).
        start: Where to begin; None begins with equal shares of the residual variance.
    """
    stacked = curves.stack(np.column_stack([design, response]))
    names = curves.components()

    def scatter(log_variances: Floats) -> Scatter:
        values = dict.fromkeys(("point", "trial", "slope"), 0.0)
        return Scatter(**{**values, **dict(zip(names, np.exp(log_variances / 2).tolist(), strict=True))})

    def loss(log_variances: Floats) -> float:
        weights, determinant = whitener(curves.covariance(scatter(log_variances)))
        white = (weights @ stacked).reshape(-1, stacked.shape[2])
        triangle = np.asarray(np.linalg.qr(white, mode="r"))
        information = 2 * float(np.log(np.abs(np.diagonal(triangle)[:-1]) + 1e-300).sum())
        return (determinant + information + float(triangle[-1, -1]) ** 2) / 2

    if start is None:
        residual = response - design @ np.linalg.lstsq(design, response, rcond=None)[0]
        first = np.full(len(names), float(np.mean(residual**2)) / len(names))
    else:
        first = np.array([getattr(start, name) ** 2 for name in names])
    begin = np.clip(np.log(np.maximum(first, 1e-8)), *_LOG_LIMITS)
    found = optimize.minimize(loss, begin, method="L-BFGS-B", bounds=[_LOG_LIMITS] * len(names))
    return scatter(found.x)


def condition(design: Floats) -> float:
    """Return the condition number of a design whose columns have been scaled to the same length.

    Source: Belsley, Kuh, Welsch, "Regression diagnostics", 1980; above 30, coefficients cannot be told apart.
    """
    length = np.linalg.norm(design, axis=0)
    return math.inf if (length == 0).any() else float(np.linalg.cond(design / length))


def degrees_of_freedom(curves: Curves, design: Floats) -> int:
    """Return the trials that are left once what differs between trials only has been fitted, at least 0.

    A coefficient that changes along a curve is estimated within trials, by many evaluations; the others (level, K)
    are estimated from one level per trial. The smaller number holds for both, to be safe.
    """
    stacked = curves.stack(design)
    means = stacked.sum(axis=1, keepdims=True) / curves.counts[:, None, None]
    within = ((stacked - means) * curves.mask[:, :, None]).reshape(-1, design.shape[1])
    return max(0, curves.G - (design.shape[1] - int(np.linalg.matrix_rank(within, tol=1e-8))))

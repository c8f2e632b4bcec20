"""One law fitted to the curves of one kind of model: coefficients, covariance, how well it predicts left-out trials."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize, stats

from sweeps.scaling.laws import Centre, Law
from sweeps.scaling.mixed import Curves, Scatter, degrees_of_freedom, estimate_scatter, whitener
from sweeps.scaling.observations import Observations

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
"""Level of every interval and band."""
_ROUNDS = 3
"""Turns of coefficients and scatter for a law with a ceiling; a power law needs one."""


@dataclass(frozen=True)
class Curve:
    """A fitted law.

    Attributes:
        law: The law.
        centre: Where its variables are zero.
        theta: Coefficients, in the order of `law.coefficients`.
        covariance: Their covariance, row by row.
        scatter: Standard deviations around the law, in log10 of the score.
        df: Degrees of freedom of Student's t behind every interval.
        r2: Share of the variance of log10 scores that the law explains, all trials at its level.
        held_out: Logarithm of the density that the law, fitted to the others, gives each left-out trial, nats.
        held_out_factor: Typical factor between the scores of a left-out trial and their prediction.
    """

    law: Law
    centre: Centre
    theta: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    scatter: Scatter
    df: int
    r2: float
    held_out: tuple[float, ...]
    held_out_factor: float

    def design(self, flops: Floats, K: Floats, parameters: Floats) -> Floats:
        """Return the law's terms, (n, terms), at FLOPs, K and parameters, (n,) each."""
        centre = self.centre
        return self.law.design(np.log10(flops) - centre.x, np.log2(K) - centre.k, np.log10(parameters) - centre.p)

    def quantile(self) -> float:
        """Return Student's t quantile of the confidence level."""
        return float(stats.t.ppf((1 + CONFIDENCE) / 2, self.df))

    def expected(self, design: Floats) -> tuple[Floats, Floats]:
        """Return log10 scores and the standard errors of the law there, (n,) each."""
        theta, covariance = np.array(self.theta), np.array(self.covariance)
        jacobian = self.law.jacobian(theta, design)
        variance = np.einsum("ij,jk,ik->i", jacobian, covariance, jacobian)
        return self.law.value(theta, design), np.sqrt(np.maximum(variance, 0))

    def draws(self, count: int, seed: int) -> Floats:
        """Return draws of the coefficients, (count, coefficients).

        To draw the trials' deviations and errors anew and to fit again gives coefficients with this very distribution
        where the law is a power law, and nearly so where it has a ceiling; Student's t for the normal distribution
        pays for the scatter being an estimate.
        """
        drawn = stats.multivariate_t.rvs(
            self.theta, self.covariance, df=self.df, size=count, random_state=np.random.default_rng(seed)
        )
        made: Floats = np.reshape(drawn, (count, len(self.theta)))
        if self.law.ceiling:
            made[:, -1] = np.maximum(made[:, -1], 0)
        return made


class _Fitting:
    """A law and the observations it is fitted to."""

    def __init__(self, law: Law, observed: Observations, centre: Centre) -> None:
        self.law, self.y = law, observed.y
        x = observed.x - centre.x
        self.curves = Curves(observed.trial, x, observed.error)
        self.design = law.design(x, observed.k - centre.k, observed.p - centre.p)
        self.trial = observed.trial

    def start(self) -> Floats:
        """Return coefficients to begin with: those of equal weights, and a ceiling at twice the best score."""
        if not self.law.ceiling:
            return linalg.lstsq(self.design, self.y)[0]
        w = 0.5 / 10 ** self.y.max()
        power = -np.log10(10**-self.y - w)
        return np.append(linalg.lstsq(self.design, power)[0], w)

    def solve(self, theta: Floats, weights: Floats, kept: NDArray[np.bool_]) -> Floats:
        """Return the coefficients of least weighted squares over the kept trials.

        Args:
            theta: Where to begin.
            weights: Whitening matrix of every trial, (G, n, n).
            kept: (G,).
        """

        def white(values: Floats) -> Floats:
            stacked = self.curves.stack(values if values.ndim == 2 else values[:, None])
            return (weights @ stacked)[kept].reshape(-1, stacked.shape[2])

        if not self.law.ceiling:
            return linalg.lstsq(white(self.design), white(self.y)[:, 0])[0]
        lowest = np.append(np.full(len(theta) - 1, -np.inf), 0.0)
        found = optimize.least_squares(
            lambda theta: white(self.law.value(theta, self.design) - self.y)[:, 0],
            np.append(theta[:-1], max(theta[-1], 1e-6)),
            jac=lambda theta: white(self.law.jacobian(theta, self.design)),
            bounds=(lowest, np.inf),
            x_scale="jac",
            xtol=1e-7,
            ftol=1e-7,
        )
        return found.x

    def scatter(self, theta: Floats, start: Scatter | None = None) -> Scatter:
        """Return the scatter around a law, linearised at its coefficients."""
        jacobian = self.law.jacobian(theta, self.design)
        working = self.y - self.law.value(theta, self.design) + jacobian @ theta
        return estimate_scatter(self.curves, jacobian, working, start)

    def covariance(self, theta: Floats, weights: Floats, kept: NDArray[np.bool_]) -> Floats:
        """Return the covariance of the coefficients that the kept trials determine."""
        stacked = weights @ self.curves.stack(self.law.jacobian(theta, self.design))
        white = stacked[kept].reshape(-1, len(theta))
        return linalg.pinvh(white.T @ white)

    def held_out(self, theta: Floats, scatter: Scatter) -> tuple[Floats, Floats]:
        """Return every trial's log density and mean squared error when it is left out, (G,) each.

        The scatter stays that of all trials: with few trials, to estimate it without one of them says more about the
        estimate than about the law.
        """
        covariance = self.curves.covariance(scatter)
        weights, _ = whitener(covariance)
        densities, squares = [], []
        by_trial = np.split(np.argsort(self.trial, kind="stable"), np.cumsum(self.curves.counts)[:-1])
        for trial, rows in enumerate(by_trial):
            kept = np.arange(self.curves.G) != trial
            without = self.solve(theta, weights, kept)
            residual = self.y[rows] - self.law.value(without, self.design[rows])
            jacobian = self.law.jacobian(without, self.design[rows])
            count = len(rows)
            spread = covariance[trial, :count, :count]
            spread = spread + jacobian @ self.covariance(without, weights, kept) @ jacobian.T
            density = stats.multivariate_normal.logpdf(residual, np.zeros(count), spread, allow_singular=True)
            densities.append(float(density))
            squares.append(float(np.mean(residual**2)))
        return np.array(densities), np.array(squares)


def fit_curve(
    law: Law, observed: Observations, centre: Centre, scatter: Scatter | None = None, df: int | None = None
) -> Curve:
    """Fit one law.

    Args:
        law: The law.
        observed: What it is fitted to.
        centre: Where its variables are zero.
        scatter: Scatter that is known from elsewhere; estimated if None.
        df: Degrees of freedom of that scatter; counted if None.
    """
    work = _Fitting(law, observed, centre)
    theta, everything = work.start(), np.ones(work.curves.G, dtype=bool)
    found = scatter or work.scatter(theta)
    for _ in range(_ROUNDS if law.ceiling else 1):
        weights, _ = whitener(work.curves.covariance(found))
        theta = work.solve(theta, weights, everything)
        if scatter is None and law.ceiling:
            found = work.scatter(theta, found)
    weights, _ = whitener(work.curves.covariance(found))
    covariance = work.covariance(theta, weights, everything)
    densities, squares = work.held_out(theta, found)
    residual = work.y - law.value(theta, work.design)
    total = float(np.sum((work.y - work.y.mean()) ** 2))
    return Curve(
        law=law,
        centre=centre,
        theta=tuple(theta.tolist()),
        covariance=tuple(tuple(row) for row in covariance.tolist()),
        scatter=found,
        df=degrees_of_freedom(work.curves, work.design) if df is None else df,
        r2=1 - float(residual @ residual) / total if total > 0 else math.nan,
        held_out=tuple(densities.tolist()),
        held_out_factor=10 ** math.sqrt(float(squares.mean())),
    )

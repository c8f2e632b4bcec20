"""The laws that are offered: how a score follows from training FLOPs, K and parameters.

With x = log10 FLOPs, k = log2 K and p = log10 parameters, all less a centre, the richest law is

    log10 power = a + b x + c k + d k^2 + e x k + f p,
    1 / score = 1 / power + 1 / ceiling.

Without a ceiling the score is the power law itself. A ceiling bends it as two resistances in series do: at small
budgets the power law limits, at large ones the ceiling. The score rises with the power law at any ceiling, so the
best K of a budget does not depend on it: where d < 0, k* = -(c + e x) / (2 d).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_TERMS = {
    "flops": ("1", "x"),
    "line": ("1", "x", "k"),
    "optimum": ("1", "x", "k", "kk"),
    "moving-optimum": ("1", "x", "k", "kk", "xk"),
}
_PARAMETERS, _CEILING = "+parameters", "+ceiling"
MEANINGS = {
    "1": "log10 score at the centre",
    "x": "per decade of training FLOPs",
    "k": "per doubling of K",
    "kk": "per squared doubling; < 0: K has an optimum",
    "xk": "per decade and doubling; > 0: larger budgets want larger K",
    "p": "per decade of parameters",
    "w": "1 / ceiling, per percent",
}
"""What each coefficient says, by its term; "w" is the ceiling's."""
LETTERS = {"1": "a", "x": "b", "k": "c", "kk": "d", "xk": "e", "p": "f", "w": "w"}
"""Letters of the coefficients, by term."""


@dataclass(frozen=True)
class Centre:
    """Where x, k and p are zero: log10 FLOPs, log2 K and log10 parameters."""

    x: float
    k: float
    p: float


@dataclass(frozen=True)
class Law:
    """One law.

    Attributes:
        name: Its name.
        terms: The terms of its power law.
        ceiling: Whether it has a ceiling, then its last coefficient, as w = 1 / ceiling >= 0.
    """

    name: str
    terms: tuple[str, ...]
    ceiling: bool

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Terms of the coefficients, in order."""
        return (*self.terms, "w") if self.ceiling else self.terms

    def design(self, x: Floats, k: Floats, p: Floats) -> Floats:
        """Return the terms of the power law, (n, terms), from centred values, (n,) each."""
        columns = {"1": np.ones_like(x), "x": x, "k": k, "kk": k * k, "xk": x * k, "p": p}
        return np.stack([columns[term] for term in self.terms], axis=-1)

    def value(self, theta: Floats, design: Floats) -> Floats:
        """Return log10 scores.

        Args:
            theta: Coefficients, (..., coefficients).
            design: (n, terms).

        Returns:
            (..., n).
        """
        power = theta[..., : len(self.terms)] @ design.T
        if not self.ceiling:
            return power
        return -np.logaddexp(-power * math.log(10), _log(theta[..., -1:])) / math.log(10)

    def jacobian(self, theta: Floats, design: Floats) -> Floats:
        """Return the derivatives of `value` by the coefficients, (n, coefficients), of theta (coefficients,)."""
        if not self.ceiling:
            return design
        score = 10 ** self.value(theta, design)
        by_power = 1 - theta[-1] * score
        return np.column_stack([design * by_power[:, None], -score / math.log(10)])

    def best_k(self, theta: Floats, x: float, low: float, high: float) -> Floats:
        """Return the centred log2 K of highest score between two limits.

        Args:
            theta: Coefficients, (draws, coefficients).
            x: Centred log10 FLOPs.
            low: Smallest k.
            high: Largest k.

        Returns:
            (draws,); an end of the range where the law has no maximum between them, NaN where K plays no part.
        """
        by_term = dict(zip(self.terms, theta.T, strict=False))
        if "k" not in by_term:
            return np.full(len(theta), math.nan)
        rise = by_term["k"] + by_term.get("xk", np.zeros(len(theta))) * x
        bend = by_term.get("kk", np.zeros(len(theta)))
        ends = np.where(rise * (high - low) + bend * (high**2 - low**2) > 0, high, low)
        inside = bend < 0
        vertex = -rise / (2 * np.where(inside, bend, -1.0))
        return np.where(inside, np.clip(vertex, low, high), ends)


def _log(values: Floats) -> Floats:
    """Return logarithms, -inf of what is not positive: a ceiling of infinity is none."""
    return np.log(np.maximum(values, 1e-300))


def offered(parameters: bool) -> tuple[Law, ...]:
    """Return the laws of CALM models, simple ones first.

    Args:
        parameters: Offer the laws with parameters, too.
    """
    kinds = itertools.product((False, True), (False, True) if parameters else (False,), _TERMS)
    return tuple(_law(name, sized, ceiling) for ceiling, sized, name in kinds)


def _law(name: str, sized: bool, ceiling: bool) -> Law:
    label = f"{name}{_PARAMETERS if sized else ''}{_CEILING if ceiling else ''}"
    return Law(label, (*_TERMS[name], "p") if sized else _TERMS[name], ceiling)


def without_K() -> tuple[Law, ...]:
    """Return the laws of a token baseline: of training FLOPs alone."""
    return _law("flops", False, False), _law("flops", False, True)


def names(laws: Sequence[Law]) -> str:
    """Return the names of laws as a list in prose."""
    return ", ".join(law.name for law in laws)

"""Which of the numbers in a snapshot can be reckoned with: a diverged or half-read trial may hold anything."""

from __future__ import annotations

import math


def finite(value: object) -> float | None:
    """Return a number as a float, None where it is missing, NaN, infinite, or no number at all."""
    if not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def positive(value: object) -> float | None:
    """Return a finite number greater than 0 as a float, None for everything else."""
    number = finite(value)
    return number if number is not None and number > 0 else None


def fraction(done: object, whole: object) -> float | None:
    """Return how much of a whole is done, within 0 and 1; None where that cannot be said."""
    part, total = finite(done), positive(whole)
    if part is None or total is None:
        return None
    return min(max(part / total, 0.0), 1.0)

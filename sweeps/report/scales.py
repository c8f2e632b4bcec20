"""Axes of parallel coordinates: values placed evenly where they are few, as numbers where they are many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

from sweeps.report.comparisons import calm_models, rank, short, shown
from sweeps.report.seeds import Model

FEW = 8
"""Values up to which they are placed evenly."""
SCORE, COST = "BrierLM", "training FLOPs"


@dataclass(frozen=True)
class Scale:
    """One axis.

    Attributes:
        name: What it shows.
        positions: Position of each model, from 0 to 1; None where it has no value.
        ticks: (position, text) of its ticks.
    """

    name: str
    positions: tuple[float | None, ...]
    ticks: tuple[tuple[float, str], ...]


def scales(models: Sequence[Model], free: Sequence[str]) -> tuple[list[Model], list[Scale]]:
    """Return the models that parallel coordinates show and their axes: chosen keys, training FLOPs, BrierLM.

    Args:
        models: The models; baselines have no values of the keys and are left out.
        free: The chosen keys.
    """
    calm = sorted(calm_models(models), key=lambda model: model.final.score)
    found = [_scale(short(key), [model.setting(key) for model in calm]) for key in free]
    found.append(_numbers(COST, [model.final.train_flops for model in calm]))
    found.append(_numbers(SCORE, [model.final.score for model in calm], from_zero=True))
    return calm, found


def _scale(name: str, values: Sequence[Any]) -> Scale:
    distinct = sorted({repr(value): value for value in values if value is not None}.values(), key=rank)
    if len(distinct) > FEW and all(isinstance(value, (int, float)) for value in distinct):
        return _numbers(name, values)
    places = {repr(value): (place + 0.5) / len(distinct) for place, value in enumerate(distinct)}
    ticks = [(places[repr(value)], shown(value)) for value in distinct[:: math.ceil(len(distinct) / 16)]]
    return Scale(name, tuple(None if value is None else places[repr(value)] for value in values), tuple(ticks))


def _numbers(name: str, values: Sequence[float | None], from_zero: bool = False) -> Scale:
    known = [value for value in values if value is not None]
    low, high = min([*known, *([0.0] if from_zero else [])], default=0.0), max(known, default=1.0)
    logarithmic = low > 0 and high / low >= 3
    low, high = (math.log10(low), math.log10(high)) if logarithmic else (low, high)
    width = high - low or 1.0

    def place(value: float) -> float:
        return ((math.log10(value) if logarithmic else value) - low) / width

    ticks = [(place(value), _tick(value)) for value in _round_values(low, high, logarithmic)]
    return Scale(name, tuple(None if value is None else place(value) for value in values), tuple(ticks))


def _round_values(low: float, high: float, logarithmic: bool) -> list[float]:
    """Return round numbers within a range: with logarithms (then the ends are exponents) 1, 2 and 5 times powers."""
    if not logarithmic:
        found = MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(low, high) if high > low else [low]
        return [float(value) for value in found if low - 1e-12 <= value <= high + 1e-12]
    for digits in ((1, 2, 5), (1, 3), (1,)):
        powers = range(math.floor(low), math.ceil(high) + 1)
        values = [digit * 10.0**power for power in powers for digit in digits]
        inside = [value for value in values if low - 1e-12 <= math.log10(value) <= high + 1e-12]
        if len(inside) <= FEW:
            break
    return inside


def _tick(value: float) -> str:
    text = f"{value:.3g}"
    return text.replace("e+", "e").replace("e-0", "e-")

"""Which colour and marker a model has where there are too many for one each: those of the value of one key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.report import style
from sweeps.report.comparisons import calm_models, short, shown, values_of
from sweeps.report.seeds import Model

_FIRST = ("model.K", "model.head", "model.input", "model.N", "model.l", "model.alpha", "model.M")


@dataclass(frozen=True)
class Palette:
    """Looks by the values of one key.

    Attributes:
        key: The key; "" where all CALM models look alike.
        values: Its values, sorted.
    """

    key: str
    values: tuple[Any, ...]

    def look(self, model: Model) -> style.Look:
        """Return the look of a model."""
        if model.stage == "baseline":
            return style.BASELINE_LOOK
        value = model.setting(self.key) if self.key else None
        return style.MODEL_LOOKS[self.values.index(value) if value in self.values else 2]

    def name(self, model: Model) -> str:
        """Return what all models of this look are called: "K = 4", "baseline"."""
        if model.stage == "baseline":
            return "baseline"
        value = model.setting(self.key) if self.key else None
        return f"{short(self.key)} = {shown(value)}" if self.key and value is not None else "CALM"


def palette(models: Sequence[Model], free: Sequence[str]) -> Palette:
    """Return the looks of some models: by K if it differs, else by the first key that has few values.

    Args:
        models: The models.
        free: Keys that were chosen and differ.
    """
    calm = calm_models(models)
    for key in (*_FIRST, *free):
        values = values_of(calm, key)
        if 1 < len(values) <= len(style.MODEL_LOOKS):
            return Palette(key, tuple(values))
    return Palette("", ())

"""Colours, markers and names that both figures share, so that a model looks the same in print and on screen.

The colours are Okabe and Ito's, told apart with every common form of colour blindness; each model also has a
marker of its own, for greyscale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.front.series import Series

INK, MUTED, GRID, PAPER = "#1f2430", "#667085", "#e4e7ec", "#ffffff"
FRONT = "#98a2b3"
_BASELINE = ("#3d4451", "s", "square")
_MODELS = (
    ("#e69f00", "^", "triangle-up"),
    ("#009e73", "v", "triangle-down"),
    ("#d55e00", "o", "circle"),
    ("#0072b2", "D", "diamond"),
    ("#cc79a7", "P", "cross"),
    ("#56b4e9", "X", "x"),
    ("#b8a900", "h", "hexagon"),
)

LOW_TO_HIGH = ("#c9d3df", "#8fb3d0", "#4f8fbf", "#0072b2", "#123f63")
"""From low to high scores, one hue, so that it survives greyscale."""

TRAIN_AXIS = "training FLOPs, autoencoder included"
INFERENCE_AXIS = "inference FLOPs per generated token"
PAPER_AXIS = "training FLOPs (1e20)"
SCORE_AXIS = "BrierLM (percent)"
VOLUME_AXIS = "hypervolume (decades of FLOPs x percent)"


@dataclass(frozen=True)
class Look:
    """How one model is drawn.

    Attributes:
        colour: Hexadecimal colour.
        marker: Matplotlib's marker.
        symbol: Plotly's symbol.
    """

    colour: str
    marker: str
    symbol: str


BASELINE_LOOK = Look(*_BASELINE)
MODEL_LOOKS = tuple(Look(*look) for look in _MODELS)
PUBLISHED = {"transformer": Look(*_BASELINE), "calm": Look(*_MODELS[2])}
"""Looks of the paper's models: as the baseline and as K = 4 in a sweep over 1, 2, 4, 8."""


def looks(series: Sequence[Series]) -> dict[str, Look]:
    """Return the look of every model by label: the baseline dark, the others in the palette's order."""
    found: dict[str, Look] = {}
    for one in series:
        if one.label in found:  # another seed
            continue
        taken = sum(look.colour != _BASELINE[0] for look in found.values())
        found[one.label] = Look(*(_BASELINE if one.stage == "baseline" else _MODELS[taken % len(_MODELS)]))
    return found

"""Names beside points, put where they cover neither each other nor a point; those that find no place are left out.

Every name tries a fixed list of places around its point, near ones first, so equal figures get equal labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

_PLACES = (
    *((8, 5, "left", "bottom"), (-8, 5, "right", "bottom"), (8, -5, "left", "top"), (-8, -5, "right", "top")),
    *((0, 9, "center", "bottom"), (0, -9, "center", "top"), (11, 0, "left", "center"), (-11, 0, "right", "center")),
    *((14, 14, "left", "bottom"), (-14, 14, "right", "bottom"), (14, -14, "left", "top"), (-14, -14, "right", "top")),
    *((0, 22, "center", "bottom"), (0, -22, "center", "top"), (24, 24, "left", "bottom"), (-24, 24, "right", "bottom")),
)
"""Offsets in points with the alignment of the text."""
_NEAR = 8
"""How many of them are near."""
_POINT_PIXELS = 7.0


@dataclass(frozen=True)
class Label:
    """A name beside a point.

    Attributes:
        text: The name.
        x: The point, in data units.
        y: The point, in data units.
        colour: Colour of the name.
        size: Size of the letters, points.
        bold: Whether it is set in bold.
        near: Whether it is left out rather than put at some distance.
    """

    text: str
    x: float
    y: float
    colour: str
    size: float = 8.5
    bold: bool = False
    near: bool = False


def put_labels(axes: Axes, labels: Sequence[Label], points: Sequence[tuple[float, float]]) -> list[Label]:
    """Put names beside points.

    Args:
        axes: The panel, with its limits set.
        labels: The names, the most wanted first.
        points: What must not be covered, in data units.

    Returns:
        The names that found no place.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    assert isinstance(figure.canvas, FigureCanvasAgg)
    renderer = figure.canvas.get_renderer()  # type: ignore[no-untyped-call]
    inside = axes.get_window_extent(renderer)
    taken: list[Bbox] = []
    pixels = axes.transData.transform(np.array(points, dtype=float).reshape(-1, 2))
    missing = []
    for label in labels:
        best: tuple[int, Annotation, Bbox] | None = None
        for dx, dy, horizontal, vertical in _PLACES[: _NEAR if label.near else None]:
            note = axes.annotate(
                label.text,
                (label.x, label.y),
                xytext=(dx, dy),
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=label.size,
                fontweight="bold" if label.bold else "normal",
                color=label.colour,
                zorder=6,
            )
            box = note.get_window_extent(renderer)
            hits = _covered(box, pixels)
            if not _within(box, inside) or any(box.overlaps(other) for other in taken) or (best and hits >= best[0]):
                note.remove()
                continue
            if best:
                best[1].remove()
            best = hits, note, box
            if hits == 0:
                break
        if best is None:
            missing.append(label)
        else:
            taken.append(best[2].padded(2.0))
    return missing


def _covered(box: Bbox, pixels: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> int:
    """Return how many points a box covers."""
    wide = box.padded(_POINT_PIXELS)
    across = (pixels[:, 0] > wide.x0) & (pixels[:, 0] < wide.x1)
    return int(np.count_nonzero(across & (pixels[:, 1] > wide.y0) & (pixels[:, 1] < wide.y1)))


def _within(box: Bbox, room: Bbox) -> bool:
    return bool(box.x0 >= room.x0 and box.x1 <= room.x1 + 14 and box.y0 >= room.y0 and box.y1 <= room.y1 + 14)

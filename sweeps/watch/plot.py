"""Small pictures made of characters: bars, a sparkline, and the front in the plane of log FLOPs and BrierLM.

The axes of the plane are rounded outwards to 1, 2 or 5 times a power of ten (costs) and to a short series of round
numbers (scores), so that the picture stands still while points arrive and moves only when one leaves it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter

from rich.text import Text

from sweeps.watch.snapshot import STATES
from sweeps.watch.values import finite, positive
from sweeps.watch.wording import ENDINGS, QUIET, STYLES, Cell, Glyphs, fit, flops

ROUND = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
_LABELS = 6
"""Width of the score axis' numbers and of the blank after them."""

Point = tuple[float, float]
"""Training FLOPs and BrierLM in percent."""


def bar(share: float | None, width: int, style: str, glyphs: Glyphs) -> list[Cell]:
    """Return a progress bar of `width` cells, in half cells; all of it left where the share is not known."""
    done, half, left = glyphs.bar
    halves = int((share or 0.0) * 2 * width)
    filled = done * (halves // 2) + half * (halves % 2)
    return [(filled, style), (left * (width - len(filled)), QUIET)]


def state_bar(counted: dict[str, int], width: int, glyphs: Glyphs) -> list[Cell]:
    """Return a bar of `width` cells with a piece for every state, as long as its share of all trials."""
    total, before, cells = sum(counted.values()), 0, list[Cell]()
    for state in ENDINGS if total else ():
        after = before + counted[state]
        length = round(width * after / total) - round(width * before / total)
        cells.append((glyphs.states[state] * length, STYLES[state]))
        before = after
    return cells or [(glyphs.states[STATES[0]] * width, QUIET)]


def sparkline(values: Sequence[float], width: int, glyphs: Glyphs) -> str:
    """Return the course of a number in `width` characters, oldest left, its smallest value lowest.

    Args:
        values: The number at equal intervals; what is not finite is left out.
        width: Characters; shorter courses are padded on the left.
        glyphs: The terminal's repertoire.
    """
    known = [value for value in map(finite, values) if value is not None]
    if not known or width < 1:
        return " " * max(width, 0)
    count = min(width, len(known))
    # the last value of each of `count` equal stretches, so that the newest is always among them
    shown = [known[(index + 1) * len(known) // count - 1] for index in range(count)]
    low, high = min(shown), max(shown)
    span = high / 2 - low / 2  # halves, because the difference of two huge numbers can be infinite
    heights = [(value / 2 - low / 2) / span if span > 0 else 0.0 for value in shown]
    last = len(glyphs.ramp) - 1
    return "".join(glyphs.ramp[round(height * last)] for height in heights).rjust(width)


@dataclass(frozen=True)
class Plane:
    """The piece of the plane that is drawn.

    Attributes:
        left: Training FLOPs at the left edge, > 0.
        right: Training FLOPs at the right edge, > left.
        bottom: BrierLM at the bottom, percent.
        top: BrierLM at the top, percent, > bottom.
    """

    left: float
    right: float
    bottom: float
    top: float

    def cell(self, point: Point, width: int, height: int) -> tuple[int, int]:
        """Return row (0 is the top) and column of a point on a canvas."""
        across = math.log(point[0] / self.left) / math.log(self.right / self.left)
        up = (point[1] - self.bottom) / (self.top - self.bottom)
        column, row = round(across * (width - 1)), round((1 - up) * (height - 1))
        return min(max(row, 0), height - 1), min(max(column, 0), width - 1)


def usable(points: Iterable[tuple[object, object]]) -> list[Point]:
    """Return the points that can be drawn: costs above 0, both coordinates finite and of a sane size."""
    found = []
    for cost, value in points:
        x, y = positive(cost), finite(value)
        if x is not None and y is not None and 1e-99 < x < 1e99 and abs(y) < 1e9:
            found.append((x, y))
    return found


def plane(points: Sequence[Point]) -> Plane:
    """Return the smallest plane with round edges that holds the points; scores start at 0 unless some are below."""
    costs = [cost for cost, _ in points] or [1.0]
    left, right = _round_cost(min(costs), -1), _round_cost(max(costs), 1)
    if right <= left * 1.01:
        left, right = left / 2, right * 2
    scores = [0.0, *(value for _, value in points)]
    low, top = min(scores), _round_score(max(scores))
    return Plane(left, right, 0.0 - _round_score(-low), top if top > 0 or low < 0 else 1.0)


def _round_cost(cost: float, direction: int) -> float:
    """Return the next of 1, 2, 5 times a power of ten, below (-1) or above (1) a cost."""
    decade = 10.0 ** math.floor(math.log10(cost))
    steps = [factor * decade for factor in (0.5, 1, 2, 5, 10)]
    if direction < 0:
        return max(step for step in steps if step <= cost * (1 + 1e-9))
    return min(step for step in steps if step >= cost * (1 - 1e-9))


def _round_score(score: float) -> float:
    """Return the next round number that is not below a score, 0 for 0."""
    if score <= 0:
        return 0.0
    decade = 10.0 ** math.floor(math.log10(score))
    return min((step * decade for step in ROUND if step * decade >= score * (1 - 1e-9)), default=10 * decade)


def _steps(cells: Sequence[tuple[int, int]], glyphs: Glyphs) -> dict[tuple[int, int], Cell]:
    """Return the step line through the front's cells: right at the old score, then up to the new one."""
    drawn: dict[tuple[int, int], Cell] = {}
    for (row, column), (next_row, next_column) in pairwise(cells):
        for across in range(column + 1, next_column):
            drawn[row, across] = (glyphs.horizontal, QUIET)
        for up in range(next_row + 1, row):
            drawn[up, next_column] = (glyphs.vertical, QUIET)
        if row > next_row and next_column > column:
            drawn[row, next_column] = (glyphs.corner, QUIET)
    return drawn


def front_plot(
    front: Sequence[Point], others: Sequence[Point], width: int, height: int, glyphs: Glyphs, style: str
) -> list[Text]:
    """Return the front as a step line with its points, other evaluations as faint dots, and both axes.

    Args:
        front: (training FLOPs, BrierLM) on the front, by rising FLOPs; `usable` points only.
        others: The same of other evaluations.
        width: Terminal cells, numbers of the axis included; at least 24.
        height: Lines, the axis' two included; at least 4.
        glyphs: The terminal's repertoire.
        style: Style of the points on the front.

    Returns:
        `height` lines of exactly `width` cells.
    """
    across, up = width - _LABELS - 1, height - 2
    edges = plane([*front, *others])
    canvas: dict[tuple[int, int], Cell] = {}
    for point in others:
        canvas[edges.cell(point, across, up)] = (glyphs.behind, QUIET)
    cells = [edges.cell(point, across, up) for point in front]
    canvas |= _steps(cells, glyphs)
    canvas |= dict.fromkeys(cells, (glyphs.on_front, style))
    vertical, origin, horizontal = glyphs.axis
    labels = {0: edges.top, up - 1: edges.bottom} if front or others else {}
    lines = []
    for row in range(up):
        number = f"{labels[row]:.4g}" if row in labels else ""
        text = Text(no_wrap=True, end="")
        text.append(fit(number, _LABELS - 1, glyphs, right=True) + " " + vertical, style=QUIET)
        # neighbours of one style are one piece: a terminal gets a tenth of the control codes
        for mark_style, marks in groupby((canvas.get((row, x), (" ", "")) for x in range(across)), key=itemgetter(1)):
            text.append("".join(mark for mark, _ in marks), style=mark_style)
        lines.append(text)
    lines.append(Text(" " * _LABELS + origin + horizontal * across, style=QUIET, no_wrap=True, end=""))
    return [*lines, _cost_axis(edges if front or others else None, across, glyphs)]


def _cost_axis(edges: Plane | None, across: int, glyphs: Glyphs) -> Text:
    """Return the line below the plot: both ends of the axis, and what it measures where there is room."""
    left, right = ("", "") if edges is None else (flops(edges.left), flops(edges.right))
    between = across + 1 - len(left) - len(right)
    title = "training FLOPs"
    middle = title.center(between) if len(title) + 2 <= between else " " * between
    return Text(fit(" " * _LABELS + left + middle + right, _LABELS + 1 + across, glyphs), style=QUIET, end="")

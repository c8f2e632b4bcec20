"""What all panels share: titles, quiet grids, logarithmic costs with few ticks, the front as a step line."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogFormatterSciNotation,
    LogLocator,
    NullFormatter,
    NullLocator,
)

from sweeps.report import style

_FEWEST_TICKS, _MOST_TICKS = 2, 7
_TENTHS = tuple(1 + tenth / 10 for tenth in range(90))


def sheet(title: str, line: str, width: float, height: float, room: float = 0.0) -> tuple[Figure, float]:
    """Return an empty figure with a heading.

    Args:
        title: Heading.
        line: Below it, in small letters.
        width: Width in inches.
        height: Height in inches.
        room: Inches left free at the bottom beside those of the axis.

    Returns:
        The figure, and the top of its panels in figure units.
    """
    figure = Figure(figsize=(width, height), facecolor=style.PAPER)
    FigureCanvasAgg(figure)
    left = 0.75 / width
    figure.text(left, 1 - 0.34 / height, title, fontsize=15, fontweight="bold", color=style.INK, va="center")
    figure.text(left, 1 - 0.64 / height, line, fontsize=9, color=style.MUTED, va="center")
    figure.subplots_adjust(left=left, right=1 - 0.25 / width, top=1 - 1.2 / height, bottom=(0.62 + room) / height)
    return figure, 1 - 1.2 / height


def footnote(figure: Figure, text: str) -> None:
    """Write what the marks mean below the panels."""
    width, height = figure.get_size_inches()
    lines = textwrap.fill(text, round(15.5 * width))
    figure.text(0.75 / width, 0.14 / height, lines, fontsize=8, color=style.MUTED, va="bottom", linespacing=1.4)


def save(figure: Figure, path: Path) -> None:
    """Save a figure; the file holds nothing that differs between two equal ones."""
    figure.savefig(path, dpi=160, metadata={"Software": None})


def quiet(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Give a panel its title, labels and quiet grid."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=style.INK, pad=9)
    axes.set_xlabel(x_label, fontsize=9, color=style.INK)
    axes.set_ylabel(y_label, fontsize=9, color=style.INK)
    axes.grid(True, which="major", color=style.GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=style.MUTED, labelsize=8.5, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(style.FRONT)


def dress(axes: Axes, title: str, x_label: str) -> None:
    """Give a panel of scores against costs its title, labels, logarithmic cost axis and quiet grid."""
    axes.set_xscale("log")
    quiet(axes, title, x_label, style.SCORE_AXIS)
    axes.xaxis.set_minor_formatter(NullFormatter())


def few_ticks(axes: Axes, low: float, high: float) -> None:
    """Label a logarithmic axis at 1, 2 and 5 times the powers of ten, or more or fewer where that suits its length."""
    axes.set_xlim(low, high)
    for digits in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,), tuple(map(float, range(1, 10))), _TENTHS):
        ticks = [digit * 10.0**power for power in range(-3, 40) for digit in digits]
        shown = [tick for tick in ticks if low <= tick <= high]
        if _FEWEST_TICKS <= len(shown) <= _MOST_TICKS:
            break
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator() if digits is _TENTHS else LogLocator(subs="auto"))
    if high < 1000:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.xaxis.set_major_formatter(LogFormatterSciNotation(base=10, labelOnlyBase=False, minor_thresholds=(9, 9)))


def front_line(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Draw the front as a step line: this score is to be had from this cost on."""
    if points:
        x, y = zip(*points, strict=True)
        axes.step(x, y, where="post", color=style.FRONT, linewidth=5, alpha=0.45, zorder=1, solid_capstyle="round")

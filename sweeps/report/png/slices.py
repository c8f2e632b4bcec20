"""Scores along each chosen key: at the last evaluation, and at equal training FLOPs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from sweeps.report import style
from sweeps.report.comparisons import short, shown, titled
from sweeps.report.findings import Findings
from sweeps.report.png.axes import footnote, quiet, save, sheet
from sweeps.report.seeds import MeanPoint
from sweeps.report.slices import Slice, at_flops
from sweeps.report.tables import scientific

COLOURED = 5
"""Groups of models that have a colour: those with the highest scores."""
_ROW_INCHES = 3.3
_MOST_TICKS = 9
_LABEL_WIDTH = 18
"""Characters of a line's name that fit beside its panel."""
_LABEL_SIZE = 8.5
_GREY = style.Look(style.FRONT, "o", "circle")
_NOTE = "Lines join models that are equal in the other chosen keys. Filled: mean over seeds; hollow: single run."


@dataclass(frozen=True)
class _End:
    """The right end of a line, and its name."""

    x: float
    y: float
    text: str
    colour: str


def draw_slices(path: Path, findings: Findings, line: str) -> None:
    """Draw the slices and save them; arguments as for `draw_front`."""
    rows = max(1, len(findings.slices))
    height = 1.9 + _ROW_INCHES * rows
    figure, _ = sheet("Along one key, the other chosen keys equal", line, 12.5, height, room=0.3)
    figure.subplots_adjust(hspace=0.52, wspace=0.36, right=0.87)
    panels = figure.subplots(rows, 2, squeeze=False)
    if not findings.slices:
        for axes in panels[0]:
            axes.set_axis_off()
        panels[0][0].text(0.0, 0.5, "No two models differ in one chosen key only.", color=style.INK, fontsize=11)
    for (left, right), one in zip(panels, findings.slices, strict=False):
        _panel(left, findings, one, None, f"{titled(one.key)}: last evaluations")
        if one.budget is None:
            right.set_axis_off()
            right.text(0.0, 0.5, "The curves share no training FLOPs.", transform=right.transAxes, color=style.MUTED)
        else:
            title = f"{titled(one.key)}: at {scientific(one.budget)} training FLOPs"
            _panel(right, findings, one, one.budget, title)
    footnote(figure, f"{_NOTE} Bars: 95 % intervals. At equal FLOPs, scores are interpolated between evaluations.")
    save(figure, path)


def _panel(axes: Axes, findings: Findings, one: Slice, budget: float | None, title: str) -> None:
    """Draw one slice: every contrast is a line."""
    missing = f" (models that do not reach these FLOPs: {one.left_out})" if budget is not None and one.left_out else ""
    y_label = style.SCORE_AXIS if budget is None else ""
    quiet(axes, title[0].upper() + title[1:], f"{short(one.key)}{missing}", y_label)
    numbers = len(one.values) > _MOST_TICKS and all(isinstance(value, (int, float)) for value in one.values)
    order = sorted(one.contrasts, key=lambda contrast: -max(model.final.score for _, model in contrast.models))
    ends: list[_End] = []
    top = 0.0
    for rank, contrast in enumerate(order):
        drawn: list[tuple[float, MeanPoint]] = []
        for (value,), model in contrast.models:
            point = model.final if budget is None else at_flops(model.curve, budget)
            if point is not None:
                drawn.append((float(value) if numbers else float(one.values.index(value)), point))
        if drawn:
            look = style.MODEL_LOOKS[rank] if rank < COLOURED else _GREY
            shift = 0.025 * (rank - min(COLOURED, len(order)) // 2) if rank < COLOURED and not numbers else 0.0
            name = ", ".join(
                f"{short(key)} = {shown(contrast.equal[key])}" for key in findings.free if key in contrast.equal
            )
            name = textwrap.fill(name, _LABEL_WIDTH, break_long_words=False)
            top = max(top, *(point.high for _, point in drawn))
            _line(axes, drawn, look, shift)
            ends += [_End(drawn[-1][0], drawn[-1][1].score, name, look.colour)] if rank < COLOURED and name else []
    axes.set_ylim(0.0, 1.12 * top or 1.0)
    _ticks(axes, one, numbers)
    _name_ends(axes, ends, max(0, len(order) - COLOURED))


def _line(axes: Axes, drawn: Sequence[tuple[float, MeanPoint]], look: style.Look, shift: float) -> None:
    """Draw one contrast."""
    strong = look is not _GREY
    for single in (True, False):
        part = [(x, point) for x, point in drawn if (point.seeds == 1) is single]
        if part:
            below = [max(0.0, point.score - point.low) for _, point in part]
            above = [max(0.0, point.high - point.score) for _, point in part]
            axes.errorbar(
                [x + shift for x, _ in part],
                [point.score for _, point in part],
                yerr=[below, above],
                linestyle="none",
                color=look.colour,
                elinewidth=1.2 if strong else 0.8,
                capsize=2.5 if strong else 0,
                marker=look.marker,
                markersize=7 if strong else 4,
                markerfacecolor=style.PAPER if single else look.colour,
                markeredgecolor=look.colour if single else style.PAPER,
                zorder=4 if strong else 3,
            )
    x_line, y_line = [x + shift for x, _ in drawn], [point.score for _, point in drawn]
    axes.plot(x_line, y_line, color=look.colour, linewidth=1.3, alpha=0.85 if strong else 0.4, zorder=2)


def _ticks(axes: Axes, one: Slice, numbers: bool) -> None:
    """Place the values: evenly where they are few, as numbers where they are many."""
    if numbers:
        low, high = float(one.values[0]), float(one.values[-1])
        if low > 0 and high / low >= 10:
            axes.set_xscale("log")
        return
    axes.set_xticks(range(len(one.values)), [shown(value) for value in one.values])
    axes.set_xlim(-0.35, len(one.values) - 0.65)


def _name_ends(axes: Axes, ends: Sequence[_End], others: int) -> None:
    """Write the names of lines right of the panel, spread so that none covers another."""
    height = axes.get_window_extent().height / axes.get_figure(root=True).dpi * 72  # type: ignore[union-attr]
    low, high = axes.get_ylim()
    gap = (high - low) * 1.35 * _LABEL_SIZE / height
    places: list[float] = []
    above = 0
    for end in sorted(ends, key=lambda end: -end.y):
        lines = 1 + end.text.count("\n")
        places.append(min(end.y, places[-1] - gap * (above + lines) / 2) if places else end.y)
        above = lines
    lift = max(0.0, low + 0.02 * (high - low) - places[-1]) if places else 0.0
    for end, place in zip(sorted(ends, key=lambda end: -end.y), places, strict=True):
        axes.annotate(
            end.text,
            (end.x, end.y),
            xytext=(1.02, place + lift),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=_LABEL_SIZE,
            color=end.colour,
            arrowprops={"arrowstyle": "-", "color": end.colour, "linewidth": 0.6, "alpha": 0.5, "shrinkB": 5},
            annotation_clip=False,
        )
    if others:
        text = f"grey: {others} more" if others > 1 else "grey: one more"
        axes.text(1.02, 1.0, text, transform=axes.transAxes, fontsize=8, color=style.MUTED, va="top")

"""The PNG: training FLOPs, inference FLOPs and the paper's models, each against BrierLM.

Drawn with Matplotlib's object interface and its Agg canvas: no display, no global state, same bytes for the same
numbers. The interactive page (`sweeps.report.interactive`) shows the same panels.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from calm_lightning.flops.paper import PUBLISHED
from calm_lightning.metrics.names import ScorePoint
from sweeps.front.series import Series, front_points
from sweeps.report import style
from sweeps.report.png.axes import dress, few_ticks, front_line
from sweeps.report.tables import Budget

_NOTE_LINE_INCHES = 8.6 * 1.45 / 72
"""Height of one line of the note below the panels."""


def draw_png(path: Path, series: Sequence[Series], budget: Budget, paper_overlay: bool = True) -> None:
    """Draw the figure and save it.

    Args:
        path: The PNG file.
        series: The models.
        budget: What the subtitle and the note below say.
        paper_overlay: Draw the paper's models in a panel of their own, in the paper's units.
    """
    notes = [line for caveat in budget.caveats for line in textwrap.wrap(f"• {caveat}", 185, subsequent_indent="  ")]
    note_inches = _NOTE_LINE_INCHES * len(notes) + 0.25
    height = 6.6 + note_inches
    figure = Figure(figsize=(12.5, height), facecolor=style.PAPER)
    FigureCanvasAgg(figure)
    rows = [["train", "inference"], ["train", "paper" if paper_overlay else "inference"]]
    axes = figure.subplot_mosaic(rows, width_ratios=[1.75, 1.0])  # type: ignore[arg-type]
    figure.subplots_adjust(left=0.06, right=0.985, wspace=0.17, hspace=0.42)
    figure.subplots_adjust(top=1 - 1.15 / height, bottom=(note_inches + 0.65) / height)
    _training_panel(axes["train"], series)
    _inference_panel(axes["inference"], series)
    if paper_overlay:
        _paper_panel(axes["paper"])
    figure.text(0.06, 1 - 0.34 / height, budget.title, fontsize=16, fontweight="bold", color=style.INK, va="center")
    figure.text(0.06, 1 - 0.64 / height, budget.line(), fontsize=9.5, color=style.MUTED, va="center")
    place = (note_inches + 0.05) / height
    figure.text(0.06, place, "\n".join(notes), fontsize=8.6, color=style.MUTED, va="top", linespacing=1.45)
    figure.savefig(path, dpi=160, metadata={"Software": None})


def _bars(point: ScorePoint) -> list[list[float]]:
    """Return the 95 % interval as Matplotlib's error bar of one point."""
    return [[max(0.0, point.brier_lm - point.brier_lm_low)], [max(0.0, point.brier_lm_high - point.brier_lm)]]


def _training_panel(axes: Axes, series: Sequence[Series]) -> None:
    """All evaluations against training FLOPs: learning curves, intervals, last evaluations, front."""
    dress(axes, "What a score costs to train", style.TRAIN_AXIS)
    front_line(axes, [(point.train_flops, point.brier_lm) for _, point in front_points(series)])
    for one in series:
        look = style.looks(series)[one.label]
        curve = [point for point in one.trained if point.train_flops > 0]
        x, y = [point.train_flops for point in curve], [point.brier_lm for point in curve]
        axes.plot(x, y, color=look.colour, linewidth=1.1, alpha=0.75, zorder=2)
        for point in curve:
            last = point is one.final
            axes.errorbar(
                point.train_flops,
                point.brier_lm,
                yerr=_bars(point),
                color=look.colour,
                ecolor=look.colour,
                elinewidth=1.6 if last else 0.8,
                capsize=3 if last else 0,
                marker=look.marker,
                markersize=9 if last else 4,
                markeredgecolor=style.PAPER,
                markeredgewidth=1.0 if last else 0.4,
                zorder=4 if last else 3,
            )
    handles = [
        axes.plot([], [], color=look.colour, marker=look.marker, markersize=7, markeredgecolor=style.PAPER)[0]
        for look in style.looks(series).values()
    ]
    handles += axes.plot([], [], color=style.FRONT, linewidth=5, alpha=0.45)
    labels = [*style.looks(series), "Pareto front"]
    axes.legend(handles, labels, loc="upper left", fontsize=9, frameon=False, labelcolor=style.INK)
    axes.set_ylim(bottom=0.0)
    costs = [point.train_flops for one in series for point in one.trained if point.train_flops > 0]
    if costs:
        few_ticks(axes, min(costs) / 1.25, max(costs) * 1.25)
    note = "bars: 95 % intervals · large markers: last evaluation"
    axes.set_title(note, loc="right", fontsize=8, color=style.MUTED, pad=9)


def _inference_panel(axes: Axes, series: Sequence[Series]) -> None:
    """The last evaluation of every model against inference FLOPs, and the front of these."""
    dress(axes, "What it costs to use", style.INFERENCE_AXIS)
    front_line(axes, [(point.inference_flops_per_token, point.brier_lm) for _, point in front_points(series, True)])
    for one in series:
        look, point = style.looks(series)[one.label], one.final
        place = (point.inference_flops_per_token, point.brier_lm)
        axes.errorbar(
            *place,
            yerr=_bars(point),
            color=look.colour,
            elinewidth=1.6,
            capsize=3,
            marker=look.marker,
            markersize=9,
            markeredgecolor=style.PAPER,
            zorder=3,
        )
        name = "baseline" if one.stage == "baseline" else one.label.removeprefix("CALM ")
        axes.annotate(name, place, textcoords="offset points", xytext=(8, 5), fontsize=8.5, color=look.colour)
    axes.set_ylim(bottom=0.0)
    costs = [one.final.inference_flops_per_token for one in series]
    few_ticks(axes, min(costs) / 1.3, max(costs) * 1.6)


def _paper_panel(axes: Axes) -> None:
    """The published models in the paper's units: another corpus, tokenizer and scale, hence a panel of its own."""
    dress(axes, "The paper's models, in the paper's units", style.PAPER_AXIS)
    for family, look in style.PUBLISHED.items():
        rows = [row for preset, row in PUBLISHED.items() if preset.startswith(family)]
        x, y = [row.training_flops / 1e20 for row in rows], [row.brier_lm for row in rows]
        axes.plot(x, y, color=look.colour, marker=look.marker, markersize=6, linewidth=1.2, markeredgecolor=style.PAPER)
        for row, cost, score in zip(rows, x, y, strict=True):
            left_above = family == "calm"
            axes.annotate(
                row.name,
                (cost, score),
                textcoords="offset points",
                xytext=(-7, 4) if left_above else (8, -10),
                ha="right" if left_above else "left",
                fontsize=8,
                color=look.colour,
            )
    axes.set_ylim(4.8, 9.9)
    few_ticks(axes, 2.2, 55.0)

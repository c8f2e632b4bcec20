"""Two fronts in print: what each score costs on both, and the saving between them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from sweeps.front.redraws import log_costs
from sweeps.pareto.comparing import Comparison, Side, front_of
from sweeps.pareto.curves import FrontCurve, arrow, front_curve
from sweeps.pareto.fronts import INFERENCE, Fronts, cost
from sweeps.pareto.words import headline, short
from sweeps.report import style
from sweeps.report.png.axes import dress, few_ticks, footnote, save, sheet
from sweeps.report.seeds import MeanPoint, Model

LOOKS = (style.MODEL_LOOKS[2], style.BASELINE_LOOK)
"""Looks of A and B."""
AXES = {
    "training": ("What a score costs to train", style.TRAIN_AXIS),
    "inference": ("What it costs to use", style.INFERENCE_AXIS),
}
_LONGEST_LINE = 170
_GLYPHS = (
    "Lines: fronts, interpolated in log FLOPs between their evaluations (large marks); small marks: all other "
    "evaluations. Bands: 95 % intervals of the fronts. Shaded: the scores that both fronts have; arrow: what they "
    "cost less."
)


def draw_comparison(path: Path, found: Comparison, legend: Sequence[str]) -> None:
    """Draw two fronts and save the figure.

    Args:
        path: The PNG file.
        found: The comparison.
        legend: What the two names stand for.
    """
    a, b = found.names
    lines = "\n".join(textwrap.shorten(line, _LONGEST_LINE, placeholder=" ...") for line in legend)
    figure, _ = sheet(f"{a} against {b}: {headline(found)}", lines, 12.5, 6.8, room=0.5)
    panels = figure.subplots(1, 2, width_ratios=[1.45, 1.0])
    figure.subplots_adjust(wspace=0.17)
    for axes, side in zip(panels, found.sides, strict=True):
        _panel(axes, found, side)
    footnote(figure, _GLYPHS)
    save(figure, path)


def _panel(axes: Axes, found: Comparison, side: Side) -> None:
    title, label = AXES[side.kind]
    dress(axes, title, label)
    curves = [front_curve(side.a), front_curve(side.b)]
    shown = [point for fronts in found.fronts for model in fronts.models for point in _shown(model, side)]
    costs = [cost(point, side.kind) for point in shown]
    few_ticks(axes, min(costs) / 1.3, max(costs) * 1.45)
    axes.set_ylim(0.0, 1.2 * max(*(point.score for point in shown), *(np.nanmax(curve.high) for curve in curves)))
    _shade(axes, side)
    for curve, look, fronts, name in reversed(list(zip(curves, LOOKS, found.fronts, found.names, strict=True))):
        _set(axes, side, fronts, curve, look, name)
    _arrow(axes, side)
    handles, labels = axes.get_legend_handles_labels()
    order = {"handles": handles[::-1], "labels": labels[::-1]}  # A was drawn last, over B
    axes.legend(**order, loc="upper left", frameon=False, fontsize=10, labelcolor="linecolor", handlelength=1.6)


def _shown(model: Model, side: Side) -> Sequence[MeanPoint]:
    """Return the evaluations that a panel shows: using a model costs the same after each, so there the last one."""
    return (model.final,) if side.kind == INFERENCE else model.curve


def _set(axes: Axes, side: Side, fronts: Fronts, curve: FrontCurve, look: style.Look, name: str) -> None:
    """Draw one set: its band, its front, its evaluations."""
    seen = np.isfinite(curve.low)
    axes.fill_between(
        curve.cost[seen], curve.low[seen], curve.high[seen], color=look.colour, alpha=0.14, linewidth=0, zorder=1
    )
    axes.plot(curve.cost, curve.score, color=look.colour, linewidth=2.4, zorder=3, label=name, solid_capstyle="round")
    front = front_of(fronts, side.kind)
    assert front is not None
    standing = {(model.slug, point.step) for model, point in front.standing}
    for _, point in front.standing if len(front.standing) == 1 else ():  # there is no band
        height = [[point.score - point.low], [point.high - point.score]]
        axes.errorbar(front.cost(point), point.score, yerr=height, color=look.colour, elinewidth=1.6, capsize=3)
    for model in fronts.models:
        for point in _shown(model, side):
            on_front = (model.slug, point.step) in standing
            axes.plot(
                cost(point, side.kind),
                point.score,
                marker=look.marker,
                markersize=7 if on_front else 3.6,
                color=look.colour,
                markeredgecolor=style.PAPER,
                markeredgewidth=0.8 if on_front else 0.3,
                alpha=1.0 if on_front else 0.35,
                linestyle="none",
                zorder=4 if on_front else 2,
                clip_on=False,
            )


def _shade(axes: Axes, side: Side) -> None:
    """Shade between the fronts, over the scores that the mean saving is over."""
    if side.mean is None:
        return
    levels = np.linspace(side.mean.low, side.mean.high, 200)
    of_a, of_b = (10 ** log_costs(cloud, cloud.score[None], levels)[0] for cloud in (side.a, side.b))
    cheaper = of_a <= of_b
    for where, look in ((cheaper, LOOKS[0]), (~cheaper, LOOKS[1])):
        held = where.tolist()
        axes.fill_betweenx(levels, of_a, of_b, where=held, color=look.colour, alpha=0.09, linewidth=0, zorder=0.5)


def _arrow(axes: Axes, side: Side) -> None:
    """Draw the saving as an arrow from what B pays to what A pays."""
    place = arrow(side)
    if place is None:
        return
    of_b, of_a, score, saving = place
    axes.annotate(
        "",
        (of_a, score),
        (of_b, score),
        arrowprops={"arrowstyle": "-|>", "color": style.INK, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0},
        zorder=6,
    )
    share = saving.share
    ends = (share.high, share.low)
    texts = (
        (short(share.value), 5, "bottom", 11.5, "bold"),
        (f"[{', '.join(short(end).removesuffix(' %') for end in ends)}]", -5, "top", 8.5, "normal"),
    )
    for text, offset, vertical, size, weight in texts:
        axes.annotate(
            text.replace("-", "−").replace("x", "×"),
            (math.sqrt(of_a * of_b), score),
            xytext=(0, offset),
            textcoords="offset points",
            ha="center",
            va=vertical,
            fontsize=size,
            fontweight=weight,
            color=style.INK,
            zorder=7,
            path_effects=[withStroke(linewidth=3.5, foreground=style.PAPER)],
        )

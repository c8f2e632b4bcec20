"""How the front grew, over trials and over the FLOPs that the sweep spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sweeps.front.series import PRUNED
from sweeps.report import style
from sweeps.report.findings import Findings
from sweeps.report.history import Moment
from sweeps.report.png.axes import quiet, save, sheet

_CROSSES = 60
"""Trials up to which every one has a mark."""


def draw_history(path: Path, findings: Findings, line: str) -> None:
    """Draw the hypervolume's history and save it; arguments as for `draw_front`."""
    figure, _ = sheet("How the front grew", line, 12.5, 4.4)
    left, right = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(wspace=0.06)
    order = "in the order in which they ended" if findings.in_time else "in the order of their numbers"
    trials = [float(moment.trials) for moment in findings.moments]
    power = math.floor(math.log10(findings.moments[-1].spent))
    spent = [moment.spent / 10**power for moment in findings.moments]
    _steps(left, findings.moments, trials, "Over trials", f"trials, {order}")
    _steps(
        right,
        findings.moments,
        spent,
        "Over what the sweep spent",
        f"training FLOPs spent (1e{power}), failed trials left out",
    )
    left.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    right.set_ylabel("")
    top = max(moment.hypervolume for moment in findings.moments)
    left.set_ylim(0.0, 1.15 * top or 1.0)
    save(figure, path)


def _steps(axes: Axes, moments: Sequence[Moment], x: Sequence[float], title: str, x_label: str) -> None:
    quiet(axes, title, x_label, style.VOLUME_AXIS)
    y = [moment.hypervolume for moment in moments]
    colour = style.MODEL_LOOKS[3].colour
    axes.step([0.0, *x], [0.0, *y], where="post", color=colour, linewidth=2.0, zorder=2)
    if len(moments) <= _CROSSES:
        for place, height, moment in zip(x, y, moments, strict=True):
            stopped = moment.state == PRUNED
            axes.plot(
                place,
                height,
                marker="x" if stopped else "o",
                markersize=6,
                color=style.INK if stopped else colour,
                markeredgecolor=style.INK if stopped else style.PAPER,
                zorder=3,
            )
        axes.set_title("×: stopped early", loc="right", fontsize=7.5, color=style.MUTED, pad=9)
    axes.set_xlim(0.0, 1.08 * max(x) or 1.0)
    axes.annotate(
        f"{y[-1]:.2f}",
        (x[-1], y[-1]),
        xytext=(0, 8),
        textcoords="offset points",
        ha="center",
        fontsize=9.5,
        fontweight="bold",
        color=colour,
    )

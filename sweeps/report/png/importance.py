"""What the results depend on: one panel for each quantity, one bar for each key."""

from __future__ import annotations

import textwrap
from pathlib import Path

from matplotlib.axes import Axes

from sweeps.report import style
from sweeps.report.comparisons import short
from sweeps.report.findings import Findings
from sweeps.report.importance import RESAMPLES, Importance
from sweeps.report.png.axes import footnote, quiet, save, sheet


def draw_importance(path: Path, findings: Findings, line: str) -> None:
    """Draw the importances and save them; arguments as for `draw_front`."""
    most = max(len(found.shares) for found in findings.importances)
    figure, _ = sheet("What the results depend on (fANOVA)", line, 12.5, 2.6 + 0.42 * max(3, most), room=0.3)
    panels = figure.subplots(1, len(findings.importances))
    figure.subplots_adjust(left=0.1, wspace=0.4)
    for axes, found in zip(panels, findings.importances, strict=True):
        _panel(axes, found)
    footnote(
        figure,
        f"Thin bars: range over {RESAMPLES} resamples of the models. Importances sum to 1 whatever the data; what they "
        "are a share of is the variance between models.",
    )
    save(figure, path)


def _panel(axes: Axes, found: Importance) -> None:
    title = f"{found.target[0].upper()}{found.target[1:]}"
    if found.refusal:
        axes.set_axis_off()
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=style.INK, pad=9)
        text = textwrap.fill(f"Nothing is said: {found.refusal}.", 42)
        axes.text(0.0, 0.95, text, transform=axes.transAxes, va="top", fontsize=9.5, color=style.MUTED)
        return
    quiet(axes, title, f"share of the variance between {found.models} models", "")
    axes.grid(visible=False, axis="y")
    colour = style.MODEL_LOOKS[3].colour
    for row, (key, share, low, high) in enumerate(found.shares):
        axes.barh(row, share, height=0.56, color=colour, alpha=0.85, zorder=2)
        axes.plot([low, high], [row, row], color=style.INK, linewidth=1.4, solid_capstyle="butt", zorder=3)
        axes.text(max(share, high) + 0.02, row, f"{share:.2f}", va="center", fontsize=9, color=style.INK)
        axes.text(-0.02, row, short(key), va="center", ha="right", fontsize=9.5, color=style.INK)
    axes.set_yticks([])
    axes.set_ylim(max(3, len(found.shares)) - 0.4, -0.6)
    axes.set_xlim(0.0, 1.16)
    axes.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0], ["0", "0.25", "0.5", "0.75", "1"])
    if found.signal is not None:
        note = f"{100 * found.signal:.0f} % of the variance beyond standard errors"
        axes.text(1.14, max(3, len(found.shares)) - 0.55, note, ha="right", fontsize=8, color=style.MUTED)

"""Parallel coordinates: one line for each model through its values, its cost and its score."""

from __future__ import annotations

from pathlib import Path

from matplotlib.colors import LinearSegmentedColormap

from sweeps.report import style
from sweeps.report.findings import Findings
from sweeps.report.png.axes import footnote, save, sheet
from sweeps.report.scales import scales

_STRONG = 3
"""Models that are drawn thick: those with the highest scores."""
_MANY = 150
"""Models beyond which lines are thin and faint."""


def draw_parallel(path: Path, findings: Findings, line: str) -> None:
    """Draw the parallel coordinates and save them; arguments as for `draw_front`."""
    models, axes_shown = scales(findings.models, findings.free)
    figure, _ = sheet("Every model through its values, dark lines score high", line, 12.5, 5.4)
    figure.subplots_adjust(top=1 - 0.95 / 5.4, left=0.02, right=0.98)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(-0.25, len(axes_shown) - 0.75)
    axes.set_ylim(-0.02, 1.1)
    if len(models) < 2 or not findings.free:
        axes.text(0.0, 0.5, "No key has more than one value.", color=style.INK, fontsize=11)
        save(figure, path)
        return
    colours = LinearSegmentedColormap.from_list("score", style.LOW_TO_HIGH)
    thin, faint = (1.1, 0.7) if len(models) <= _MANY else (0.5, 0.35)
    for number, model in enumerate(models):
        places = [(x, scale.positions[number]) for x, scale in enumerate(axes_shown)]
        known = [(x, y) for x, y in places if y is not None]
        strong = number >= len(models) - _STRONG
        shade = axes_shown[-1].positions[number] or 0.0
        axes.plot(
            *zip(*known, strict=True),
            color=colours(shade),
            linewidth=2.6 if strong else thin,
            alpha=1.0 if strong else faint,
            linestyle=(0, (3, 2)) if model.pruned else "-",
            zorder=2 + number / (len(models) + 1),
        )
    halo = {"facecolor": style.PAPER, "edgecolor": "none", "alpha": 0.82, "pad": 1.2}
    for x, scale in enumerate(axes_shown):
        axes.plot([x, x], [0.0, 1.0], color=style.MUTED, linewidth=1.0, zorder=4)
        axes.text(x, 1.05, scale.name, ha="center", fontsize=10.5, fontweight="bold", color=style.INK)
        for y, text in scale.ticks:
            axes.plot([x - 0.012, x + 0.012], [y, y], color=style.MUTED, linewidth=1.0, zorder=4)
            axes.text(x + 0.025, y, text, va="center", fontsize=8.5, color=style.INK, zorder=5, bbox=halo)
    note = f"{len(models)} CALM models, last evaluations. Thick: the three highest; dashed: stopped early."
    footnote(figure, note)
    save(figure, path)

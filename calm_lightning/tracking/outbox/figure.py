"""The learning curve of one run, as the picture in its description.

Matplotlib's object interface and its Agg canvas: no display, no global state. A run without matplotlib has no picture.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from calm_lightning.metrics import names
from calm_lightning.metrics.names import ScorePoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _MUTED, _GRID, _LINE = "#1f2430", "#667085", "#e4e7ec", "#0072b2"


def draw_curve(path: Path, name: str, steps: Mapping[int, Mapping[str, float]], points: Sequence[ScorePoint]) -> bool:
    """Draw BrierLM over training FLOPs, or an autoencoder's token accuracy over text tokens.

    Args:
        path: The PNG file, written whole or not at all.
        name: Name of the run.
        steps: All metrics of each step.
        points: The evaluations of a language model; empty for an autoencoder.

    Returns:
        Whether there is a picture: without matplotlib, or with nothing to draw, there is none.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    trained = [point for point in points if point.step > 0]
    restored = [
        (values[names.TEXT_TOKENS], values[names.VAL_ACCURACY_SAMPLED])
        for values in steps.values()
        if names.VAL_ACCURACY_SAMPLED in values and names.TEXT_TOKENS in values
    ]
    if not trained and not restored:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if trained:
        _scores(axes, trained)
    else:
        _accuracy(axes, restored)
    axes.set_title(name, loc="left", fontsize=11, color=_INK, fontweight="bold")
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.png")
    try:
        figure.savefig(scratch, dpi=110, metadata={"Software": None})
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return True


def _scores(axes: Axes, points: Sequence[ScorePoint]) -> None:
    """Draw BrierLM with its 95 % interval over training FLOPs."""
    flops = [point.train_flops for point in points]
    low, high = [point.brier_lm_low for point in points], [point.brier_lm_high for point in points]
    axes.fill_between(flops, low, high, color=_LINE, alpha=0.15, linewidth=0)
    axes.plot(flops, [point.brier_lm for point in points], color=_LINE, marker="o", markersize=4, linewidth=1.6)
    if len(points) > 1 and max(flops) > 4 * min(flops):
        axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("training FLOPs, the autoencoder's included", color=_MUTED, fontsize=9)
    axes.set_ylabel("BrierLM, percent (band: 95 %)", color=_MUTED, fontsize=9)


def _accuracy(axes: Axes, restored: Sequence[tuple[float, float]]) -> None:
    """Draw the share of tokens restored from drawn latents over text tokens."""
    tokens, accuracy = zip(*restored, strict=True)
    axes.plot(tokens, [100 * share for share in accuracy], color=_LINE, marker="o", markersize=4, linewidth=1.6)
    axes.set_ylim(0, 103)
    axes.set_xlabel("text tokens trained on", color=_MUTED, fontsize=9)
    axes.set_ylabel("tokens restored, percent", color=_MUTED, fontsize=9)

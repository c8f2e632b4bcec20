"""The PNG: observed curves with the law's bands, the best K against the budget, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullFormatter, NullLocator
from numpy.typing import NDArray

from sweeps.front.series import Series
from sweeps.report import style
from sweeps.report.png.axes import few_ticks, footnote, quiet, save, sheet
from sweeps.scaling.advice import Advice
from sweeps.scaling.curve import Curve
from sweeps.scaling.fitting import Fit, Range
from sweeps.scaling.observations import observe
from sweeps.scaling.predicting import optima, probabilities_best
from sweeps.scaling.tables import NAMES, law_in_words

Floats = NDArray[np.float64]
TITLE = "Which K for which budget"
_WIDTH, _HEIGHT = 12.5, 7.1
_BUDGETS = 121
_NOTE = (
    "Points: evaluations that were fitted, joined along each trial. Lines and bands: the law and its 95 % band, dashed "
    "where that K was not observed; grey: budgets at which not every K was. The law gives the median over seeds, for "
    "these models, this text and this protocol."
)


def draw_png(path: Path, fit: Fit, series: Sequence[Series], advice: Sequence[Advice]) -> None:
    """Draw the figure and save it.

    Args:
        path: The PNG file.
        fit: The law.
        series: The trials it was fitted to.
        advice: Budgets that were asked about, marked by vertical lines.
    """
    figure, _ = sheet(TITLE, law_in_words(fit), _WIDTH, _HEIGHT, room=0.5)
    axes = figure.subplot_mosaic([["law", "best"], ["law", "sure"]], width_ratios=[1.75, 1.0])
    figure.subplots_adjust(wspace=0.17, hspace=0.45)
    budgets = [one.budget for one in advice]
    window = _window(fit, budgets)
    flops = np.geomspace(*window, _BUDGETS)
    looks = _looks(fit)
    _law_panel(axes["law"], fit, series, flops, looks)
    _optimum_panel(axes["best"], fit, flops)
    _certainty_panel(axes["sure"], fit, flops, looks)
    low, high = _everywhere(fit)
    for panel in axes.values():
        few_ticks(panel, *window)
        for left, right in ((window[0], low), (high, window[1])):
            panel.axvspan(left, right, color=style.GRID, alpha=0.45, linewidth=0, zorder=0)
        for budget in budgets:
            panel.axvline(budget, color=style.INK, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    footnote(figure, _NOTE)
    save(figure, path)


def _looks(fit: Fit) -> dict[int | None, style.Look]:
    """Return the look of the baseline (None) and of every K: the smallest K has the first colour, as in the front."""
    found: dict[int | None, style.Look] = {None: style.BASELINE_LOOK}
    for place, K in enumerate(fit.Ks):
        found[K] = style.MODEL_LOOKS[place % len(style.MODEL_LOOKS)]
    return found


def _window(fit: Fit, budgets: Sequence[float]) -> Range:
    ranges = [*fit.flops.values(), *([fit.baseline_flops] if fit.baseline else [])]
    low = min(*(low for low, _ in ranges), *budgets, np.inf)
    high = max(*(high for _, high in ranges), *budgets, 0.0)
    return low / 1.25, high * 1.25


def _everywhere(fit: Fit) -> Range:
    """Return the budgets at which every K was observed."""
    low, high = max(low for low, _ in fit.flops.values()), min(high for _, high in fit.flops.values())
    return (low, high) if low < high else (min(low, high), max(low, high))


def _law_panel(
    axes: Axes, fit: Fit, series: Sequence[Series], flops: Floats, looks: dict[int | None, style.Look]
) -> None:
    """Evaluations of every trial, and the law of every K with its band."""
    name = NAMES[fit.settings.target]
    axes.set_xscale("log")
    axes.set_yscale("log")
    quiet(axes, "The law", style.TRAIN_AXIS, f"{name} (percent)")
    axes.xaxis.set_minor_formatter(NullFormatter())
    shown: list[float] = []
    for stage in ("baseline", "calm") if fit.baseline else ("calm",):
        observed = observe(series, fit.settings, stage)
        for index, one in enumerate(observed.series):
            if one.K not in looks or (stage == "calm" and one.K is None):
                continue
            mine = observed.trial == index
            y = 10 ** observed.y[mine]
            shown += y.tolist()
            _trial(axes, 10 ** observed.x[mine], y, looks[one.K])
    if fit.baseline:
        shown += _band(axes, fit.baseline, flops, None, fit.baseline_parameters, fit.baseline_flops, looks[None])
    for K in fit.Ks:
        shown += _band(axes, fit.curve, flops, K, fit.parameters[K], fit.flops[K], looks[K])
    _score_ticks(axes, min(shown) / 1.1, max(shown) * 1.1)
    _legend(axes, fit, looks)


def _trial(axes: Axes, x: Floats, y: Floats, look: style.Look) -> None:
    axes.plot(
        x,
        y,
        color=look.colour,
        linewidth=0.5,
        alpha=0.5,
        marker=look.marker,
        markersize=4,
        markeredgecolor=style.PAPER,
        markeredgewidth=0.4,
        zorder=2,
    )


def _band(
    axes: Axes, curve: Curve, flops: Floats, K: int | None, parameters: float, observed: Range, look: style.Look
) -> list[float]:
    """Draw the law of one K, solid where it was observed and dashed elsewhere; return its scores."""
    values, errors = curve.expected(curve.design(flops, np.full_like(flops, K or 1.0), np.full_like(flops, parameters)))
    half = curve.quantile() * errors
    inside = (flops >= observed[0] * 0.999) & (flops <= observed[1] * 1.001)
    low, high = 10 ** (values - half), 10 ** (values + half)
    axes.fill_between(flops, low, high, color=look.colour, alpha=0.06, linewidth=0)
    axes.fill_between(flops, low, high, where=inside.tolist(), color=look.colour, alpha=0.13, linewidth=0)
    axes.plot(flops, 10**values, color=look.colour, linewidth=1.3, linestyle=(0, (4, 2)), alpha=0.8, zorder=3)
    axes.plot(flops[inside], 10 ** values[inside], color=look.colour, linewidth=2.2, zorder=4)
    scores: list[float] = (10**values).tolist()
    return scores


def _score_ticks(axes: Axes, low: float, high: float) -> None:
    """Label the score axis at 1, 2, 3, 5 and 7 times the powers of ten."""
    ticks = [digit * 10.0**power for power in range(-4, 3) for digit in (1, 2, 3, 5, 7)]
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _legend(axes: Axes, fit: Fit, looks: dict[int | None, style.Look]) -> None:
    keys: list[int | None] = [*([None] if fit.baseline else []), *fit.Ks]
    handles = [
        axes.plot([], [], color=looks[K].colour, linewidth=2.2, marker=looks[K].marker, markeredgecolor=style.PAPER)[0]
        for K in keys
    ]
    labels = ["baseline" if K is None else f"CALM K={K}" for K in keys]
    axes.legend(handles, labels, loc="upper left", fontsize=9, frameon=False, labelcolor=style.INK)


def _optimum_panel(axes: Axes, fit: Fit, flops: Floats) -> None:
    """The best K of every budget with its 95 % interval."""
    axes.set_xscale("log")
    axes.set_yscale("log", base=2)
    quiet(axes, "The best K of a budget", style.TRAIN_AXIS, "K")
    estimate, draws = optima(fit, flops)
    if np.isfinite(estimate).all():
        low, high = np.quantile(draws, (0.025, 0.975), axis=0)
        axes.fill_between(flops, low, high, color=style.FRONT, alpha=0.35, linewidth=0)
        axes.plot(flops, estimate, color=style.INK, linewidth=2.2)
    else:
        axes.text(0.5, 0.5, "no term for K in this law", transform=axes.transAxes, ha="center", color=style.MUTED)
    axes.set_ylim(fit.Ks[0] / 1.12, fit.Ks[-1] * 1.12)
    axes.yaxis.set_major_locator(FixedLocator(list(fit.Ks)))
    axes.yaxis.set_major_formatter(FixedFormatter([str(K) for K in fit.Ks]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title("band: 95 %", loc="right", fontsize=8, color=style.MUTED, pad=9)


def _certainty_panel(axes: Axes, fit: Fit, flops: Floats, looks: dict[int | None, style.Look]) -> None:
    """The probability of every observed K to be the best, stacked to one."""
    axes.set_xscale("log")
    quiet(axes, "How sure that is", style.TRAIN_AXIS, "probability of being best")
    best, _ = probabilities_best(fit, flops)
    axes.stackplot(flops, best, colors=[looks[K].colour for K in fit.Ks], alpha=0.85, linewidth=0)
    edges = np.cumsum(best, axis=0)[:-1]
    axes.plot(flops, edges.T, color=style.PAPER, linewidth=1)
    axes.set_ylim(0, 1)
    handles = [Patch(color=looks[K].colour, alpha=0.85, label=f"K={K}") for K in fit.Ks]
    axes.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=len(handles),
        fontsize=8,
        frameon=False,
        labelcolor=style.INK,
        handlelength=1,
        columnspacing=1,
        borderpad=0,
    )

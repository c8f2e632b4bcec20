"""One PNG per diagnosis, drawn from its rows alone.

Matplotlib's object interface and its Agg canvas: no display, no global state, same bytes for the same numbers. Only
this module imports matplotlib, so that tables and files need nothing but torch.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from calm_lightning.diagnostics import calibration, drift, foreign, noise, roundtrip
from calm_lightning.diagnostics.report import TRUE_TEXT, Finding, Row

INK, MUTED, GRID, PAPER, AXIS = "#1f2430", "#667085", "#e4e7ec", "#ffffff", "#98a2b3"
_BASELINE, _TRUE = "#3d4451", "#009e73"
_MODELS = ("#d55e00", "#0072b2", "#e69f00", "#cc79a7", "#56b4e9")
_MARKERS = ("o", "D", "^", "P", "X")
_PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.6g} %")
_LINE_INCHES = 8.6 * 1.45 / 72


def draw_png(path: Path, finding: Finding, subtitle: str) -> None:
    """Draw a finding and save it, whole or not at all.

    Args:
        path: The PNG file.
        finding: What to draw.
        subtitle: The model and the text in a few words.
    """
    panels, inches = _PANELS[finding.name](finding), _INCHES[finding.name]
    notes = [line for text in (finding.says, finding.limits) for line in textwrap.wrap(f"• {text}", 178)]
    foot = _LINE_INCHES * len(notes) + 0.25
    rows, columns = (2, 3) if len(panels) > 3 else (1, len(panels))
    height = inches * rows + 1.75 + foot
    figure = Figure(figsize=(12.5, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    left = 0.15 if finding.name == foreign.NAME else 0.06
    figure.subplots_adjust(left=left, right=0.985, wspace=0.24, hspace=0.42)
    figure.subplots_adjust(top=1 - 1.2 / height, bottom=(foot + 0.75) / height)
    for place, panel in enumerate(panels, start=1):
        panel.draw(figure.add_subplot(rows, columns, place))
    _legend(figure, panels, 1 - 0.64 / height)
    figure.text(0.02, 1 - 0.34 / height, finding.title, fontsize=16, fontweight="bold", color=INK, va="center")
    figure.text(0.02, 1 - 0.64 / height, subtitle, fontsize=9.5, color=MUTED, va="center")
    figure.text(0.02, (foot + 0.02) / height, "\n".join(notes), fontsize=8.6, color=MUTED, va="top", linespacing=1.45)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.png")
    try:
        figure.savefig(scratch, dpi=130, metadata={"Software": None})
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _legend(figure: Figure, panels: Sequence[_Panel], y: float) -> None:
    """Name the series of all panels once, beside the subtitle."""
    named: dict[str, Artist] = {}
    for axes, panel in zip(figure.axes, panels, strict=True):
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True)) if panel.shared_legend else {}
    if named:
        figure.legend(
            list(named.values()),
            list(named),
            loc="center right",
            bbox_to_anchor=(0.99, y),
            ncols=len(named),
            fontsize=9,
            frameon=False,
            labelcolor=INK,
        )


class _Panel:
    """Curves of one measure, one per series."""

    def __init__(self, finding: Finding, measure: str, x_name: str = "", *, title: str = "", y: str = "") -> None:
        self.finding, self.measure, self.x_name = finding, measure, x_name
        self.title, self.y, self.share, self.log = title or measure, y, False, False
        self.shared_legend, self.marks, self.level = True, dict[str, float](), math.nan
        self.floor, self.named_marks = False, True

    def curves(self) -> dict[str, list[Row]]:
        """Return the rows with a place on the x axis, by series."""
        rows = {series: self.finding.select(self.measure, series) for series in self.finding.series(self.measure)}
        placed = {s: [row for row in own if row.x is not None and row.x_name == self.x_name] for s, own in rows.items()}
        return {series: own for series, own in placed.items() if own}

    def draw(self, axes: Axes) -> None:
        """Draw the panel."""
        _dress(axes, self.title, self.x_name, self.y)
        for place, (series, rows) in enumerate(self.curves().items()):
            _line(axes, [float(row.x or 0) for row in rows], rows, series, place)
        if self.log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if self.share:
            axes.yaxis.set_major_formatter(_PERCENT)
        for name, x in self.marks.items():
            axes.axvline(x, color=AXIS, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
            if self.named_marks:
                where = ("data", "axes fraction")
                axes.annotate(f"{name} ", (x, 0.03), xycoords=where, fontsize=8, color=MUTED, rotation=90, ha="right")
        if math.isfinite(self.level):
            axes.axhline(self.level, color=AXIS, linewidth=1.0, zorder=1)
        if self.floor:
            axes.set_ylim(bottom=0)


def _dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Give a panel its title, labels and quiet grid."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=9)
    axes.set_xlabel(x_label, fontsize=9, color=INK)
    axes.set_ylabel(y_label, fontsize=9, color=INK)
    axes.grid(True, which="major", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=MUTED, labelsize=8.5, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(AXIS)


def _look(series: str, place: int) -> tuple[str, str, str]:
    """Return colour, marker and line style: the truth green, baselines dark, dashed where something is lowered."""
    style = "--" if series.endswith(noise.TOWARDS) or ("T=" in series and not series.endswith("T=1")) else "-"
    fixed = {TRUE_TEXT: (_TRUE, "v"), roundtrip.TRUE: (_TRUE, "v")}
    starts = {"baseline": (_BASELINE, "s"), "CALM T=": (_MODELS[0], "o")}
    starts |= {noise.TOKENS: (_MODELS[0], "o"), noise.CHUNKS: (_MODELS[1], "D")}
    found = [look for start, look in starts.items() if series.startswith(start)]
    usual = (_MODELS[place % len(_MODELS)], _MARKERS[place % len(_MARKERS)])
    colour, marker = fixed.get(series) or (found[0] if found else usual)
    return colour, marker, style


def _line(axes: Axes, x: Sequence[float], rows: Sequence[Row], label: str, place: int) -> None:
    colour, marker, style = _look(label, place)
    axes.errorbar(
        x,
        [row.value for row in rows],
        yerr=[1.96 * (row.standard_error or 0) for row in rows],
        color=colour,
        marker=marker if len(rows) < 30 else "",
        markersize=4.5,
        markeredgecolor=PAPER,
        markeredgewidth=0.5,
        linestyle=style,
        linewidth=1.4,
        elinewidth=0.9,
        label=label,
        zorder=3,
    )


def _drift(finding: Finding) -> Sequence[_Panel]:
    measures = [measure for measure in drift.MEASURES if finding.select(measure)]
    panels = [_Panel(finding, measure, "tokens generated") for measure in measures]
    for panel in panels:
        panel.marks = dict(finding.marks)
        panel.share = panel.floor = panel.measure in (drift.CHANGED, drift.REPEATED)
        panel.named_marks = panel is panels[0]
    return panels


class _SortedPanel(_Panel):
    """One value per latent dimension, each series in its own rising order."""

    def draw(self, axes: Axes) -> None:
        """Draw the panel."""
        _dress(axes, self.title, "latent dimension, sorted", self.y)
        for place, (series, rows) in enumerate(self.curves().items()):
            ordered = sorted(rows, key=lambda row: row.value)
            _line(axes, list(range(1, len(rows) + 1)), ordered, series, place)
        axes.axhline(1.0, color=AXIS, linewidth=1.0, zorder=1)


def _roundtrip(finding: Finding) -> Sequence[_Panel]:
    away = _Panel(
        finding, roundtrip.DISTANCE, "quantile", title="Distance to the re-encoded posterior", y="posterior sd"
    )
    away.level = 1.0
    each = _SortedPanel(finding, roundtrip.DIMENSION_RMS, "dimension", title="By dimension", y="rms z-score")
    sure = _Panel(finding, roundtrip.CONFIDENCE, "quantile", title="How sure the decoder is", y="largest probability")
    return [away, each, sure]


class _KeptPanel(_Panel):
    """Tokens and chunks kept, against one kind of noise."""

    def curves(self) -> dict[str, list[Row]]:
        """Return the shares of tokens and of chunks, named apart where there is more than one kind of direction."""
        found: dict[str, list[Row]] = {}
        for measure in (noise.TOKENS, noise.CHUNKS):
            for row in (row for row in self.finding.select(measure) if row.x_name == self.x_name):
                way = f", {row.series}" if row.series == noise.TOWARDS else ""
                found.setdefault(f"{measure}{way}", []).append(row)
        return found


def _noise(finding: Finding) -> Sequence[_Panel]:
    titles = {
        noise.RADIUS: "A step off the posterior's mean",
        noise.SIGMAS: "Posterior noise, scaled",
        noise.BITS: "Uniform quantisation",
    }
    panels = [_KeptPanel(finding, noise.TOKENS, x_name, title=title) for x_name, title in titles.items()]
    for panel in panels:
        panel.share = True
    panels[0].log, panels[0].marks, panels[1].marks = True, dict(finding.marks), {"the posterior itself": 1.0}
    return panels


class _CalibrationPanel(_Panel):
    """Accuracy against collision rate; every point is a temperature, every curve begins at T = 1."""

    def __init__(self, finding: Finding, first_n: int) -> None:
        tokens = "first token" if first_n == 1 else f"first {first_n} tokens"
        super().__init__(finding, calibration.accuracy(first_n), title=tokens.capitalize())
        self.first_n, self.shared_legend, self.log = first_n, False, first_n > 1

    def draw(self, axes: Axes) -> None:
        """Draw the panel."""
        _dress(axes, self.title, "two samples agree (collision rate)", "a sample is right (accuracy)")
        plain = self.finding.select(self.measure, calibration.CALM)
        series = [one for one in self.finding.series(self.measure) if one != calibration.CALM]
        largest = next((one for one in reversed(series) if one != "baseline"), "")
        points, top = list[float](), 0.0
        for place, name in enumerate(series):
            rows = self.finding.select(self.measure, name)
            rows = rows if name.startswith("baseline") else [*plain, *rows]
            agree = [self.finding.value(calibration.collision(self.first_n), row.series, row.x) for row in rows]
            _line(axes, agree, rows, name, place)
            points += [*agree, *(row.value for row in rows)]
            top = max(top, *(row.value + 2 * (row.standard_error or 0) for row in rows))
            if name in (largest, "baseline"):
                self._name_temperatures(axes, agree, rows, every=name == "baseline")
        positive = [point for point in points if point > 0]
        ends = [min(positive) / 1.5 if self.log and positive else 0.0, top * 1.1]
        axes.plot(ends, ends, color=AXIS, linewidth=4, alpha=0.45, zorder=1, label="calibrated")
        if self.log and positive:
            axes.set_xscale("log")
            axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(_PERCENT)
        axes.legend(loc="lower right", fontsize=8.5, frameon=False, labelcolor=INK)

    def _name_temperatures(self, axes: Axes, agree: Sequence[float], rows: Sequence[Row], every: bool) -> None:
        """Write T beside the points of a curve: all of them, or where it begins, at 1/2 and where it ends."""
        for row, x in zip(rows, agree, strict=True):
            if row.x is not None and (every or row.x in (1, 0.5, rows[-1].x)):
                text = "T=1" if row.x == 1 else f"1/{1 / row.x:.0f}"
                left = -26 if row.x == 1 and self.log else 5
                up = -11 if every or row.x != rows[-1].x else 5  # the last two points may all but coincide
                axes.annotate(
                    text, (x, row.value), textcoords="offset points", xytext=(left, up), fontsize=7.5, color=MUTED
                )


def _calibration(finding: Finding) -> Sequence[_Panel]:
    return [_CalibrationPanel(finding, n) for n in range(1, 5) if finding.select(calibration.accuracy(n))]


class _BarPanel(_Panel):
    """One bar per text."""

    names = False

    def draw(self, axes: Axes) -> None:
        """Draw the panel."""
        _dress(axes, self.title, self.y, "")
        names = self.finding.series(self.measure)
        rows = [self.finding.select(self.measure, name)[0] for name in names]
        colours = [_TRUE if name == foreign.OWN else _MODELS[0] for name in names]
        errors = [1.96 * (row.standard_error or 0) for row in rows]
        axes.barh(names, [row.value for row in rows], xerr=errors, color=colours, height=0.65, ecolor=INK, alpha=0.85)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", labelleft=self.names, colors=INK)
        if self.share:
            axes.set_xlim(0, 1.02)
            axes.xaxis.set_major_formatter(_PERCENT)


def _foreign(finding: Finding) -> Sequence[_Panel]:
    tokens = _BarPanel(finding, foreign.TOKENS_DRAWN, title="Tokens restored", y="token accuracy, z drawn")
    chunks = _BarPanel(finding, foreign.CHUNKS_DRAWN, title="Chunks restored", y="chunk accuracy, z drawn")
    kl = _BarPanel(finding, foreign.KL, title="What the posterior spends", y=foreign.KL)
    tokens.share, chunks.share, tokens.names = True, True, True
    return [tokens, chunks, kl]


_PANELS = {
    drift.NAME: _drift,
    roundtrip.NAME: _roundtrip,
    noise.NAME: _noise,
    calibration.NAME: _calibration,
    foreign.NAME: _foreign,
}
_INCHES = {drift.NAME: 2.6, roundtrip.NAME: 3.6, noise.NAME: 3.6, calibration.NAME: 4.6, foreign.NAME: 4.6}

"""The pictures of `calm data stats`: lengths, domains, duplicates.

Matplotlib's object interface and its Agg canvas: no display, no global state. Only this module of the package imports
matplotlib, so that tables need nothing but numpy. They look like those of `calm diagnose`, whose drawing code belongs
to a room that this package does not import.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from data_pipelines.inspecting.lengths import log_edges
from data_pipelines.inspecting.stats import SplitStatistics, Statistics

ALL = ("lengths", "domains", "duplicates")
"""Names of all figures."""
INK, MUTED, GRID, PAPER, AXIS = "#1f2430", "#667085", "#e4e7ec", "#ffffff", "#98a2b3"
_SPLITS = {"train": ("#0072b2", "o"), "val": ("#d55e00", "D"), "test": ("#009e73", "v")}
_OTHERS = (("#cc79a7", "P"), ("#e69f00", "^"), ("#56b4e9", "X"))
_PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.6g} %")
_LARGE = FuncFormatter(lambda value, _: large(value))
_MOST_DOMAINS = 40
_WIDTH = 12.5


def large(value: float) -> str:
    """Return a number as an axis names it: 3, 250, 10k, 2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def figures_of(stats: Statistics) -> dict[str, Callable[[Path], None]]:
    """Return the figures there are for a corpus: by name, the function that draws it into a PNG file."""
    found: dict[str, Callable[[Path], None]] = {
        "lengths": lambda path: draw_lengths(path, stats),
        "domains": lambda path: draw_domains(path, stats),
    }
    if stats.repeats.groups or (stats.near and any(stats.near.documents.values())):
        found["duplicates"] = lambda path: draw_duplicates(path, stats)
    return found


def draw_lengths(path: Path, stats: Statistics) -> None:
    """Draw how long documents are, and which of them hold the text."""
    figure = _figure("How long documents are", stats, height=4.9)
    other = next(unit for unit in ("characters", "bytes") if unit in stats.units and unit != stats.unit)
    panels = figure.subplots(1, 3)
    _length_panel(panels[0], stats, stats.unit, f"Length in {stats.unit}")
    _length_panel(panels[1], stats, other, f"Length in {_unit(other)}")
    _length_panel(panels[2], stats, stats.unit, f"Which documents hold the {stats.unit}", weighted=True)
    _finish(figure, path, top=1.2, bottom=0.72, left=0.06, gap=0.26, legend=panels[0])


def _length_panel(axes: Axes, stats: Statistics, unit: str, title: str, weighted: bool = False) -> None:
    """Draw one distribution per split: shares of documents, or of their text, per bin of half a doubling."""
    _dress(axes, title, f"document length ({_unit(unit)})", f"share of {stats.unit if weighted else 'documents'}")
    edges = log_edges(max(split.lengths[unit].largest for split in stats.splits.values()))
    for place, (name, split) in enumerate(stats.splits.items()):
        colour, _ = _look(name, place)
        values = split.lengths[unit].histogram(edges)[weighted]
        shares = [value / max(sum(values), 1) for value in values]
        axes.stairs(shares[1:], edges[1:], color=colour, linewidth=1.6, label=name, zorder=3 - place * 0.1)
        if not place:
            axes.stairs(shares[1:], edges[1:], color=colour, alpha=0.1, fill=True, zorder=2)
        if not weighted:
            middle, top = split.lengths[unit].percentile(50), axes.get_xaxis_transform()
            axes.plot([middle], [0], "^", color=colour, markersize=7, transform=top, clip_on=False, zorder=4, mec=PAPER)
    axes.set_xscale("log")
    smallest = min(split.lengths[unit].smallest for split in stats.splits.values())
    axes.set_xlim(max(smallest, 1) / 1.4, edges[-1] * 1.1)
    axes.xaxis.set_major_locator(LogLocator(numticks=8))
    axes.xaxis.set_major_formatter(_LARGE)
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    blocks = next(iter(stats.splits.values())).blocks
    if unit == "tokens" and blocks and max(smallest, 1) < blocks.tokens < edges[-1]:
        axes.axvline(blocks.tokens, color=AXIS, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        where = ("data", "axes fraction")
        text = f" block of {blocks.tokens:,}"
        axes.annotate(text, (blocks.tokens, 0.985), xycoords=where, fontsize=8, color=MUTED, va="top")
    if not weighted:
        axes.annotate(
            "▲ median", (0.985, 0.985), xycoords="axes fraction", fontsize=8, color=MUTED, va="top", ha="right"
        )


def draw_domains(path: Path, stats: Statistics) -> None:
    """Draw the domains: their shares, the lengths of their documents and how densely they are tokenised."""
    name, main = max(stats.splits.items(), key=lambda item: item[1].counts.documents)
    totals: dict[str, int] = {}
    for split in stats.splits.values():
        for domain, found in split.domains.items():
            totals[domain] = totals.get(domain, 0) + found.lengths.total
    shown = sorted(totals, key=lambda domain: (-totals[domain], domain))[:_MOST_DOMAINS]
    figure = _figure("Domains", stats, height=2.15 + 0.27 * len(shown))
    panels = figure.subplots(1, 3, sharey=True)
    _dress(panels[0], f"Share of the {stats.unit}", f"share of the split's {stats.unit}", "")
    _dress(panels[1], f"Length of documents ({name})", f"{stats.unit}; line 5–95 %, bar 25–75 %, tick median", "")
    per = "token" if stats.unit == "tokens" else "character"
    _dress(panels[2], f"Bytes per {per}", f"bytes of UTF-8 per {per}", "")
    for place, (split_name, split) in enumerate(stats.splits.items()):
        rows = [row for row, domain in enumerate(shown) if domain in split.domains]
        own = [split.domains[shown[row]] for row in rows]
        whole = split.lengths[stats.unit].total
        _dots(panels[0], [one.lengths.total / max(whole, 1) for one in own], rows, split_name, place)
        density = [one.counts.text_bytes / max(one.lengths.total, 1) for one in own]
        _dots(panels[2], density, rows, split_name, place)
    _ranges(panels[1], main, shown)
    panels[0].xaxis.set_major_formatter(_PERCENT)
    panels[0].set_xlim(left=0)
    left_out = len(totals) - len(shown)
    panels[0].set_yticks(range(len(shown)), [_short(domain) for domain in shown])
    panels[0].set_ylim(len(shown) - 0.4, -0.6)
    panels[0].tick_params(axis="y", colors=INK)
    for panel in panels:
        panel.tick_params(axis="y", length=0)
    if left_out:
        figure.text(0.02, 0.14 / figure.get_figheight(), f"{left_out} smaller domains are not shown", **_SMALL)
    _finish(figure, path, top=1.2, bottom=0.72, left=0.19, gap=0.08, legend=panels[0])


def _ranges(axes: Axes, split: SplitStatistics, domains: Sequence[str]) -> None:
    """Draw the middle 90 % and 50 % of every domain's lengths, and the median."""
    colour, _ = _SPLITS["train"]
    for row, domain in enumerate(domains):
        if domain in split.domains:
            low, quarter, middle, most, high = (
                max(split.domains[domain].lengths.percentile(p), 1) for p in (5, 25, 50, 75, 95)
            )
            axes.plot([low, high], [row, row], color=colour, linewidth=1.2, alpha=0.55, zorder=2)
            axes.plot([quarter, most], [row, row], color=colour, linewidth=4.5, alpha=0.45, zorder=3)
            axes.plot([middle], [row], "|", color=INK, markersize=8, markeredgewidth=1.8, zorder=4)
    _log_scale(axes)


def _log_scale(axes: Axes) -> None:
    """Make the x axis logarithmic; less than a decade and a half of it gets labels at 2 and 5 as well."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    steps = (1.0,) if high / max(low, 1) > 30 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=8))
    axes.xaxis.set_major_formatter(_LARGE)
    axes.xaxis.set_minor_formatter(NullFormatter())


def _dots(axes: Axes, values: Sequence[float], rows: Sequence[int], name: str, place: int) -> None:
    colour, marker = _look(name, place)
    axes.plot(values, rows, marker, color=colour, markersize=6, mec=PAPER, mew=0.6, label=name, zorder=4 - place * 0.1)


def draw_duplicates(path: Path, stats: Statistics) -> None:
    """Draw how much of every split is repeated, and how often texts are."""
    rows = _repeated(stats)
    figure = _figure("Documents that are there more than once", stats, height=max(4.2, 2.2 + 0.3 * len(rows)))
    bars, times = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _dress(bars, "Repeated documents", "share of the split's documents", "")
    shares = [found / max(documents, 1) for _, _, found, documents in rows]
    bars.barh(range(len(rows)), shares, color=[_look(split, 0)[0] for _, split, _, _ in rows], height=0.62, alpha=0.85)
    for row, (share, (_, _, found, documents)) in enumerate(zip(shares, rows, strict=True)):
        text = f"  {found:,} of {documents:,}"
        bars.annotate(text, (share, row), fontsize=8, color=MUTED, va="center")
    bars.set_yticks(range(len(rows)), [label for label, _, _, _ in rows])
    bars.tick_params(axis="y", colors=INK, length=0)
    bars.grid(False, axis="y")
    bars.set_ylim(len(rows) - 0.4, -0.6)
    bars.set_xlim(0, max(*shares, 0.001) * 1.35)
    bars.set_xticks([tick for tick in MaxNLocator(5).tick_values(0, max(*shares, 0.001)) if tick <= 1])
    bars.xaxis.set_major_formatter(_PERCENT)
    if stats.repeats.groups:
        _copies_panel(times, stats)
    else:
        times.set_visible(False)
    _finish(figure, path, top=1.2, bottom=0.72, left=0.19, gap=0.16)


def _copies_panel(times: Axes, stats: Statistics) -> None:
    """Draw how many texts there are with so many copies."""
    groups = stats.repeats.groups
    _dress(times, "How often the same text is there", "copies of a text", "texts with so many copies")
    times.plot(list(groups), list(groups.values()), "o", color=_SPLITS["train"][0], markersize=6, mec=PAPER, mew=0.6)
    times.set_xscale("log")
    times.set_yscale("log")
    times.set_xlim(1.7, max(groups) * 1.6)
    times.set_ylim(0.7, max(groups.values()) * 2)
    for axis in (times.xaxis, times.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axis.set_minor_locator(LogLocator(numticks=2))
        axis.set_major_formatter(_LARGE)


def _repeated(stats: Statistics) -> list[tuple[str, str, int, int]]:
    """Return rows: what, of which split, how many documents, of how many."""
    repeats, rows = stats.repeats, list[tuple[str, str, int, int]]()
    for name, documents in repeats.documents.items():
        rows.append((f"{name}: copies within", name, documents - repeats.distinct[name], documents))
        rows += [
            (f"{name}: also in {other}", name, repeats.also_in[name, other], documents)
            for other in stats.splits
            if other != name
        ]
        if stats.near:
            rows.append((f"{name}: near copies", name, stats.near.documents[name], documents))
    return rows


_SMALL: dict[str, Any] = {"fontsize": 8.6, "color": MUTED}


def _unit(unit: str) -> str:
    return "bytes of UTF-8" if unit == "bytes" else unit


def _short(name: str) -> str:
    """Return a domain's name as it fits beside an axis, without what matplotlib would take for mathematics."""
    plain = "".join(letter if letter.isprintable() else "·" for letter in name)
    return (plain if len(plain) <= 30 else f"{plain[:28]}…").replace("$", r"\$")


def _look(split: str, place: int) -> tuple[str, str]:
    """Return colour and marker of a split."""
    return _SPLITS.get(split) or _OTHERS[place % len(_OTHERS)]


def _figure(title: str, stats: Statistics, height: float) -> Figure:
    """Return an empty figure with its title and the corpus named below it."""
    figure = Figure(figsize=(_WIDTH, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    counts = f"{sum(split.counts.documents for split in stats.splits.values()):,} documents"
    subtitle = f"{_short(stats.name)} · {counts}{' · tokenizer ' + stats.tokenizer if stats.tokenizer else ''}"
    figure.text(0.02, 1 - 0.34 / height, title, fontsize=16, fontweight="bold", color=INK, va="center")
    figure.text(0.02, 1 - 0.64 / height, subtitle, fontsize=9.5, color=MUTED, va="center")
    return figure


def _finish(
    figure: Figure, path: Path, *, top: float, bottom: float, left: float, gap: float, legend: Axes | None = None
) -> None:
    """Place the panels (margins in inches above and below), name the series once and save."""
    height = figure.get_figheight()
    figure.subplots_adjust(left=left, right=0.985, wspace=gap, top=1 - top / height, bottom=bottom / height)
    if legend:
        handles, labels = legend.get_legend_handles_labels()
        place = (0.99, 1 - 0.64 / height)
        figure.legend(
            handles,
            labels,
            loc="center right",
            bbox_to_anchor=place,
            ncols=9,
            fontsize=9,
            frameon=False,
            labelcolor=INK,
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a domain's name may have letters that the font has not
        figure.savefig(path, dpi=130, metadata={"Software": None})


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

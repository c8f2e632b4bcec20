"""The front: what a score costs to train, and what it costs to use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes

from sweeps.report import style
from sweeps.report.findings import Findings
from sweeps.report.palette import Palette, palette
from sweeps.report.png.axes import dress, few_ticks, footnote, front_line, save, sheet
from sweeps.report.png.labels import Label, put_labels
from sweeps.report.seeds import MeanPoint, Model

MOST_BARS = 40
"""Models up to which every evaluation is drawn with its interval; beyond, only those on the front have theirs."""
_GLYPHS = (
    "Filled: mean over seeds; hollow: single run; ×: stopped early; large: last evaluation; bars: 95 % intervals. "
    "Grey band: front; black numbers: its models, as in the table."
)
_RUNS = " Dashed: front of single runs, which lucky seeds lift. Thin lines: single seeds."
_PIECES = 8
"""Places along a piece of a curve that labels keep away from."""


def draw_front(path: Path, findings: Findings, line: str) -> None:
    """Draw the front of models and save it.

    Args:
        path: The PNG file.
        findings: What the sweep shows.
        line: The budget in one line.
    """
    figure, _ = sheet(findings.gathered.title, line, 12.5, 7.1, room=0.42)
    left, right = figure.subplots(1, 2, width_ratios=[1.75, 1.0])
    figure.subplots_adjust(wspace=0.16)
    colours = palette(findings.models, findings.free)
    _training(left, findings, colours)
    _inference(right, findings, colours)
    footnote(figure, _GLYPHS + (_RUNS if findings.several_seeds else ""))
    save(figure, path)


def _training(axes: Axes, findings: Findings, colours: Palette) -> None:
    dress(axes, "What a score costs to train", style.TRAIN_AXIS)
    costs = [point.train_flops for model in findings.models for point in model.curve]
    scores = [point.high for model in findings.models for point in model.curve]
    few_ticks(axes, min(costs) / 1.25, max(costs) * 1.35)
    axes.set_ylim(0.0, 1.12 * max(scores) or 1.0)
    front_line(axes, [(point.train_flops, point.score) for _, point in findings.front])
    if findings.several_seeds and findings.runs_front:
        axes.step(
            *zip(*findings.runs_front, strict=True),
            where="post",
            color=style.FRONT,
            linewidth=1.1,
            linestyle=(0, (4, 3)),
            zorder=1,
        )
    on_front = {(model.slug, point.step) for model, point in findings.front}
    leaders = {model.slug for model in findings.leaders}
    many = len(findings.models) > MOST_BARS
    for model in findings.models:
        look = colours.look(model)
        leads = model.slug in leaders
        if not model.single and not many:
            for run in model.runs:
                curve = [(point.train_flops, point.brier_lm) for point in run.trained]
                axes.plot(*zip(*curve, strict=True), color=look.colour, linewidth=0.6, alpha=0.3, zorder=1.5)
        x, y = [point.train_flops for point in model.curve], [point.score for point in model.curve]
        faint = many and not leads and model.stage != "baseline"
        axes.plot(x, y, color=look.colour, linewidth=0.7 if faint else 1.1, alpha=0.25 if faint else 0.8, zorder=2)
        for point in model.curve:
            if not many or (model.slug, point.step) in on_front or model.stage == "baseline":
                mark(axes, (point.train_flops, point.score), model, point, look, big=point is model.final)
            elif point is model.final:
                _dot(axes, (point.train_flops, point.score), model, look)
    spots = [(point.train_flops, value) for model in findings.models for point in model.curve for value in _bar(point)]
    spots += [spot for model in findings.models for spot in _along(model.curve)]
    put_labels(axes, _names(findings, colours), spots)


def mark(
    axes: Axes,
    place: tuple[float, float],
    model: Model,
    point: MeanPoint,
    look: style.Look,
    big: bool = True,
) -> None:
    """Draw one evaluation: filled for a mean over seeds, hollow for a single run, crossed where training stopped early.

    Args:
        axes: The panel.
        place: Where it is, in data units.
        model: Its model.
        point: The evaluation.
        look: Colour and marker.
        big: Whether it is a last evaluation.
    """
    axes.errorbar(
        *place,
        yerr=[[max(0.0, point.score - point.low)], [max(0.0, point.high - point.score)]],
        color=look.colour,
        ecolor=look.colour,
        elinewidth=1.6 if big else 0.8,
        capsize=3 if big else 0,
        marker=look.marker,
        markersize=8.5 if big else 4,
        markerfacecolor=style.PAPER if point.seeds == 1 else look.colour,
        markeredgecolor=look.colour if point.seeds == 1 else style.PAPER,
        markeredgewidth=(1.6 if big else 0.9) if point.seeds == 1 else 0.6,
        alpha=1.0 if point.whole else 0.45,
        zorder=4 if big else 3,
        clip_on=False,
    )
    if big and model.pruned:
        axes.plot(*place, marker="x", markersize=11, markeredgewidth=1.5, color=style.INK, zorder=5, clip_on=False)


def _dot(axes: Axes, place: tuple[float, float], model: Model, look: style.Look) -> None:
    """Draw one last evaluation among many: small, without its interval; hollow and crossed as `mark` has it."""
    face = style.PAPER if model.final.seeds == 1 else look.colour
    marker = "x" if model.pruned else look.marker
    axes.plot(*place, color=look.colour, marker=marker, markersize=4, markerfacecolor=face, alpha=0.7, zorder=3)


def _bar(point: MeanPoint) -> list[float]:
    """Return heights along an interval that labels keep away from."""
    return [point.low, (point.low + point.score) / 2, point.score, (point.score + point.high) / 2, point.high]


def _along(curve: Sequence[MeanPoint]) -> Iterator[tuple[float, float]]:
    """Yield places along a curve."""
    for before, after in pairwise(curve):
        for piece in range(1, _PIECES):
            w = piece / _PIECES
            cost = before.train_flops ** (1 - w) * after.train_flops**w
            yield cost, (1 - w) * before.score + w * after.score


def _names(findings: Findings, colours: Palette, inference: bool = False) -> list[Label]:
    """Return the name of each colour, beside the highest of its models, and the numbers of the front's models.

    In the panel of inference costs, models are numbered that are on that panel's front as well.
    """
    best: dict[str, Model] = {}
    for model in sorted(findings.models, key=lambda one: -one.final.score):
        best.setdefault(colours.name(model), model)
    names = [(name, model.final, colours.look(model).colour) for name, model in best.items()]
    standing: dict[str, MeanPoint] = {model.slug: point for model, point in findings.front}
    used = {model.slug for model, _ in findings.inference_front}
    numbers = [
        (str(number), model.final if inference else standing[model.slug], style.INK)
        for number, model in enumerate(findings.leaders, start=1)
        if not inference or model.slug in used
    ]
    return [
        Label(text, cost_of(point, inference), point.score, colour, 9.5, bold=True, near=text.isdigit())
        for text, point, colour in [*names, *numbers]
    ]


def cost_of(point: MeanPoint, inference: bool) -> float:
    """Return training FLOPs, or inference FLOPs per token."""
    return point.inference_flops_per_token if inference else point.train_flops


def _inference(axes: Axes, findings: Findings, colours: Palette) -> None:
    dress(axes, "What it costs to use", style.INFERENCE_AXIS)
    costs = [model.final.inference_flops_per_token for model in findings.models]
    few_ticks(axes, min(costs) / 1.5, max(costs) * 1.6)
    axes.set_ylim(0.0, 1.12 * max(model.final.high for model in findings.models) or 1.0)
    front_line(axes, [(point.inference_flops_per_token, point.score) for _, point in findings.inference_front])
    places = []
    shown = {model.slug for model, _ in findings.inference_front} | {model.slug for model in findings.leaders}
    for model in findings.models:
        place = (model.final.inference_flops_per_token, model.final.score)
        if len(findings.models) <= MOST_BARS or model.slug in shown or model.stage == "baseline":
            mark(axes, place, model, model.final, colours.look(model))
        else:
            _dot(axes, place, model, colours.look(model))
        places += [(place[0], height) for height in _bar(model.final)]
    put_labels(axes, _names(findings, colours, inference=True), places)

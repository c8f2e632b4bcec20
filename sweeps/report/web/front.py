"""The front, and the curves over text tokens, as charts: one trace for each look, however many models there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sweeps.report import style
from sweeps.report.findings import Findings
from sweeps.report.palette import palette
from sweeps.report.seeds import MeanPoint, Model
from sweeps.report.web.dressing import COST_AXIS, View, add_switch, bars, dress, hover

_MOST_BARS = 40
_LARGE, _SMALL = 13, 6
COSTS: tuple[tuple[str, Callable[[MeanPoint], float], str, str], ...] = (
    ("training FLOPs", lambda point: point.train_flops, style.TRAIN_AXIS, "~e"),
    ("text tokens", lambda point: point.text_tokens, "text tokens that the language model was trained on", "~s"),
    ("seconds", lambda point: point.seconds, "seconds of training the language model, evaluation left out", ","),
)
"""What learning curves are drawn over."""


def front_chart(findings: Findings) -> go.Figure:
    """Return the panels of training and inference FLOPs."""
    figure = make_subplots(
        rows=1,
        cols=2,
        column_widths=[0.62, 0.38],
        horizontal_spacing=0.07,
        subplot_titles=["What a score costs to train", "What it costs to use"],
    )
    _line(figure, [(p.train_flops, p.score) for _, p in findings.front], "front of models", 1, wide=True)
    if findings.several_seeds:
        _line(figure, findings.runs_front, "front of single runs", 1, wide=False)
    last = [(p.inference_flops_per_token, p.score) for _, p in findings.inference_front]
    _line(figure, last, "front of models", 2, wide=True)
    _curves(figure, findings, lambda point: point.train_flops, column=1)
    _curves(figure, findings, lambda point: point.inference_flops_per_token, column=2, last=True)
    _numbers(figure, findings)
    dress(figure, 620)
    figure.update_xaxes(**COST_AXIS)
    figure.update_xaxes(title_text=style.TRAIN_AXIS, row=1, col=1)
    figure.update_xaxes(title_text="FLOPs per generated token", row=1, col=2)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text=style.SCORE_AXIS, row=1, col=1)
    return figure


def curves_chart(findings: Findings) -> go.Figure:
    """Return the learning curves, with a switch between what they are drawn over: FLOPs, text tokens, seconds."""
    figure = make_subplots(rows=1, cols=1)
    _curves(figure, findings, COSTS[0][1], column=1)
    dress(figure, 500)
    figure.update_xaxes(**COST_AXIS, title_text=COSTS[0][2])
    figure.update_yaxes(rangemode="tozero", title_text=style.SCORE_AXIS)
    places = [_places(models, last=False) for _, _, models in _looks(findings)]
    views = [
        View(name, [[None if place is None else cost(place[1]) for place in one] for one in places], title, ticks)
        for name, cost, title, ticks in COSTS
    ]
    add_switch(figure, views)
    return figure


def _numbers(figure: go.Figure, findings: Findings) -> None:
    """Write the numbers of the front's models beside their highest evaluation there."""
    standing = {model.slug: point for model, point in findings.front}
    points = [standing[model.slug] for model in findings.leaders]
    figure.add_trace(
        go.Scatter(
            x=[point.train_flops for point in points],
            y=[point.score for point in points],
            mode="text",
            text=[f"<b>{number}</b>  " for number in range(1, len(points) + 1)],
            textposition="top left",
            textfont={"size": 13, "color": style.INK},
            showlegend=False,
            hoverinfo="skip",
        ),
        row=1,
        col=1,
    )


def _line(figure: go.Figure, points: Sequence[tuple[float, float]], name: str, column: int, wide: bool) -> None:
    """Add a front as a step line."""
    figure.add_trace(
        go.Scatter(
            x=[cost for cost, _ in points],
            y=[score for _, score in points],
            mode="lines",
            line={
                "shape": "hv",
                "color": style.FRONT,
                "width": 7 if wide else 1.5,
                "dash": "solid" if wide else "dash",
            },
            opacity=0.45 if wide else 0.9,
            name=name,
            legendgroup=name,
            showlegend=column == 1,
            hoverinfo="skip",
        ),
        row=1,
        col=column,
    )


Place = tuple[Model, MeanPoint] | None
"""An evaluation of a model; None is a gap between curves."""


def _looks(findings: Findings) -> list[tuple[str, style.Look, list[Model]]]:
    """Return name, look and models of each trace, the baseline first."""
    colours = palette(findings.models, findings.free)
    groups: dict[str, list[Model]] = {}
    for model in sorted(findings.models, key=lambda one: one.stage != "baseline"):
        groups.setdefault(colours.name(model), []).append(model)
    return [(name, colours.look(models[0]), models) for name, models in groups.items()]


def _places(models: Sequence[Model], last: bool) -> list[Place]:
    """Return the evaluations of one trace, or the last ones only, with gaps between models."""
    places: list[Place] = []
    for model in models:
        places += [(model, point) for point in ([model.final] if last else model.curve)]
        places.append(None)
    return places


def _curves(
    figure: go.Figure, findings: Findings, cost: Callable[[MeanPoint], float], column: int, last: bool = False
) -> None:
    """Add all models, those of one look as one trace with gaps between them."""
    many = len(findings.models) > _MOST_BARS
    for name, look, models in _looks(findings):
        places = _places(models, last)
        points = [None if place is None else place[1] for place in places]
        barred = [place[1] if place is not None and (not many or _is_last(place)) else None for place in places]
        figure.add_trace(
            go.Scatter(
                x=[None if point is None else cost(point) for point in points],
                y=[None if point is None else point.score for point in points],
                mode="markers" if last else "lines+markers",
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                line={"color": look.colour, "width": 1.3},
                marker={
                    "color": look.colour,
                    "symbol": [look.symbol if place is None else _symbol(*place, look.symbol) for place in places],
                    "size": [_SMALL if place is None else _size(*place) for place in places],
                    "opacity": 1,
                    "line": {"color": look.colour, "width": 1},
                },
                error_y=bars(barred, look.colour),
                hovertext=["" if place is None else hover(*place) for place in places],
                hoverinfo="text",
            ),
            row=1,
            col=column,
        )


def _is_last(place: tuple[Model, MeanPoint]) -> bool:
    return place[1] is place[0].final


def _symbol(model: Model, point: MeanPoint, symbol: str) -> str:
    """Return the mark of an evaluation: hollow for a single run, a cross where training was stopped."""
    if model.pruned and point is model.final:
        return "x"
    return f"{symbol}-open" if point.seeds == 1 else symbol


def _size(model: Model, point: MeanPoint) -> int:
    return _LARGE if point is model.final else _SMALL

"""What all charts of the page share: fonts, axes, hover texts."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from sweeps.report import style
from sweeps.report.seeds import MeanPoint, Model
from sweeps.report.tables import quantity

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
AXIS = {"showline": True, "linecolor": style.FRONT, "gridcolor": style.GRID, "ticks": "outside", "zeroline": False}
COST_AXIS = {"type": "log", "dtick": "D2", "tickformat": "~e", "minor": {"ticks": "outside"}}


def dress(figure: go.Figure, height: int, legend: bool = True) -> None:
    """Set fonts, margins, legend and axes.

    Args:
        figure: The chart.
        height: Pixels.
        legend: Whether it has a legend, above the panels.
    """
    figure.update_layout(
        template="plotly_white",
        font={"family": FONT, "size": 13, "color": style.INK},
        height=height,
        showlegend=legend,
        margin={"l": 64, "r": 20, "t": 84 if legend else 56, "b": 56},
        legend={"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top", "font": {"size": 12}},
        hoverlabel={"align": "left", "bgcolor": style.PAPER, "font": {"family": FONT, "size": 13}},
    )
    figure.update_xaxes(**AXIS)
    figure.update_yaxes(**AXIS)
    for title in figure.layout.annotations:
        title.update(font={"size": 14, "color": style.INK})


@dataclass(frozen=True)
class View:
    """What a chart's x axis can show.

    Attributes:
        name: The button's text.
        values: The x values of every trace.
        title: Title of the axis.
        ticks: How numbers are written at it, in d3's notation.
    """

    name: str
    values: Sequence[Sequence[float | None]]
    title: str
    ticks: str


def add_switch(figure: go.Figure, views: Sequence[View]) -> None:
    """Put buttons above a chart that exchange what its x axis shows.

    Args:
        figure: The chart, drawn with the first view.
        views: The views.
    """
    buttons = [
        {
            "label": view.name,
            "method": "update",
            "args": [
                {"x": [list(values) for values in view.values]},
                {"xaxis.title.text": view.title, "xaxis.tickformat": view.ticks, "xaxis.autorange": True},
            ],
        }
        for view in views
    ]
    menu = {"type": "buttons", "direction": "right", "showactive": True, "buttons": buttons}
    place = {"x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom", "pad": {"t": 0, "r": 0}}
    figure.update_layout(updatemenus=[{**menu, **place, "font": {"size": 12}}])


def to_html(figure: go.Figure, name: str) -> str:
    """Return a chart as a piece of the page, without the library.

    Args:
        figure: The chart.
        name: Its id in the page.
    """
    config = {"displaylogo": False, "responsive": True, "displayModeBar": "hover"}
    chart = figure.to_html(include_plotlyjs=False, full_html=False, config=config, div_id=name)
    return f'<div class="wide">{chart}</div>'


def hover(model: Model, point: MeanPoint) -> str:
    """Return what hovering over an evaluation shows."""
    spread = "single run" if point.spread is None else f"{point.seeds} seeds, SD between them {point.spread:.3f}"
    note = "" if point.whole else f"<br>{point.of - point.seeds} of {point.of} seeds were stopped before"
    values = "".join(
        f"<br>{html.escape(str(key))} = {html.escape(str(value))}" for key, value in model.runs[0].values.items()
    )
    return (
        f"<b>{html.escape(model.label)}</b>, step {point.step:,}{values}<br>BrierLM {point.score:.3f} "
        f"[{point.low:.3f}, {point.high:.3f}], SE {point.se:.3f}<br>{spread}{note}<br>"
        f"{quantity(point.text_tokens)} text tokens, {point.seconds:,.0f} s<br>"
        f"training {point.train_flops:.3e} FLOPs<br>inference {point.inference_flops_per_token:.3e} FLOPs/token"
    )


def bars(points: list[MeanPoint | None], colour: str) -> dict[str, Any]:
    """Return the intervals of points as Plotly's error bars; None stands for a gap between curves."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [None if point is None else max(0.0, point.high - point.score) for point in points],
        "arrayminus": [None if point is None else max(0.0, point.score - point.low) for point in points],
        "thickness": 1.1,
        "width": 2,
        "color": colour,
    }

"""The hypervolume's history as a chart."""

from __future__ import annotations

import html

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sweeps.front.series import PRUNED
from sweeps.report import style
from sweeps.report.findings import Findings
from sweeps.report.web.dressing import dress


def history_chart(findings: Findings) -> go.Figure:
    """Return hypervolume over trials and over the FLOPs that were spent."""
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        subplot_titles=["Over trials", "Over what the sweep spent"],
    )
    colour = style.MODEL_LOOKS[3].colour
    heights = [0.0, *(moment.hypervolume for moment in findings.moments)]
    texts = ["", *(f"after {html.escape(one.label)} ({one.state})" for one in findings.moments)]
    marks = ["circle", *("x" if one.state == PRUNED else "circle" for one in findings.moments)]
    for column, places in (
        (1, [0.0, *(float(moment.trials) for moment in findings.moments)]),
        (2, [0.0, *(moment.spent for moment in findings.moments)]),
    ):
        figure.add_trace(
            go.Scatter(
                x=places,
                y=heights,
                mode="lines+markers",
                line={"shape": "hv", "color": colour, "width": 2},
                marker={"symbol": marks, "size": 7, "color": colour, "line": {"color": colour, "width": 1}},
                hovertext=[f"{text}<br>hypervolume {height:.3f}" for text, height in zip(texts, heights, strict=True)],
                hoverinfo="text",
            ),
            row=1,
            col=column,
        )
    dress(figure, 380, legend=False)
    order = "in the order in which they ended" if findings.in_time else "in the order of their numbers"
    figure.update_xaxes(title_text=f"trials, {order}", row=1, col=1)
    figure.update_xaxes(title_text="training FLOPs spent, failed trials left out", tickformat="~e", row=1, col=2)
    figure.update_yaxes(title_text=style.VOLUME_AXIS, rangemode="tozero", row=1, col=1)
    return figure

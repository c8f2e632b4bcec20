"""Slices, importances and parallel coordinates as charts."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sweeps.report import style
from sweeps.report.comparisons import short, shown, titled
from sweeps.report.findings import Findings
from sweeps.report.png.slices import COLOURED
from sweeps.report.scales import scales
from sweeps.report.seeds import MeanPoint, Model
from sweeps.report.slices import Slice, at_flops
from sweeps.report.tables import scientific
from sweeps.report.web.dressing import bars, dress, hover


def slice_chart(findings: Findings, one: Slice) -> go.Figure:
    """Return one slice: last evaluations, and at equal FLOPs where there are such."""
    titles = ["last evaluations"] + ([] if one.budget is None else [f"at {scientific(one.budget)} training FLOPs"])
    figure = make_subplots(rows=1, cols=len(titles), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04)
    order = sorted(one.contrasts, key=lambda contrast: -max(model.final.score for _, model in contrast.models))
    for column, budget in enumerate([None, one.budget][: len(titles)], start=1):
        for rank, contrast in enumerate(order):
            drawn: list[tuple[str, Model, MeanPoint]] = []
            for (value,), model in contrast.models:
                point = model.final if budget is None else at_flops(model.curve, budget)
                if point is not None:
                    drawn.append((shown(value), model, point))
            look = style.MODEL_LOOKS[rank] if rank < COLOURED else style.Look(style.FRONT, "o", "circle")
            equal = contrast.equal
            name = ", ".join(f"{short(key)} = {shown(equal[key])}" for key in findings.free if key in equal)
            points = [point for _, _, point in drawn]
            figure.add_trace(
                go.Scatter(
                    x=[value for value, _, _ in drawn],
                    y=[point.score for point in points],
                    mode="lines+markers",
                    name=name or "all models",
                    legendgroup=str(rank),
                    showlegend=column == 1 and rank < COLOURED,
                    line={"color": look.colour, "width": 1.4},
                    opacity=1.0 if rank < COLOURED else 0.5,
                    marker={
                        "symbol": [f"{look.symbol}-open" if p.seeds == 1 else look.symbol for p in points],
                        "size": 9,
                        "color": look.colour,
                    },
                    error_y=bars(list(points), look.colour),
                    hovertext=[hover(model, point) for _, model, point in drawn],
                    hoverinfo="text",
                ),
                row=1,
                col=column,
            )
    dress(figure, 400)
    numbers = all(isinstance(value, (int, float)) for value in one.values)
    if numbers and len(one.values) > 9:
        logarithmic = float(one.values[0]) > 0 and float(one.values[-1]) / float(one.values[0]) >= 10
        figure.update_xaxes(type="log" if logarithmic else "linear", title_text=titled(one.key))
    else:
        figure.update_xaxes(
            type="category",
            categoryorder="array",
            categoryarray=[shown(value) for value in one.values],
            title_text=titled(one.key),
        )
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text=style.SCORE_AXIS, row=1, col=1)
    return figure


def importance_chart(findings: Findings) -> go.Figure | None:
    """Return the importances that could be computed, None where none could."""
    known = [found for found in findings.importances if not found.refusal]
    if not known:
        return None
    titles = [found.target for found in known]
    figure = make_subplots(rows=1, cols=len(known), subplot_titles=titles, horizontal_spacing=0.1)
    for column, found in enumerate(known, start=1):
        shares = list(reversed(found.shares))
        figure.add_trace(
            go.Bar(
                x=[share for _, share, _, _ in shares],
                y=[short(key) for key, _, _, _ in shares],
                orientation="h",
                marker={"color": style.MODEL_LOOKS[3].colour},
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [high - share for _, share, _, high in shares],
                    "arrayminus": [share - low for _, share, low, _ in shares],
                    "color": style.INK,
                    "thickness": 1.4,
                    "width": 3,
                },
                hovertext=[
                    f"{key}: {share:.3f}, resamples {low:.3f} to {high:.3f}" for key, share, low, high in shares
                ],
                hoverinfo="text",
            ),
            row=1,
            col=column,
        )
    dress(figure, 150 + 44 * max(3, *(len(found.shares) for found in known)), legend=False)
    figure.update_xaxes(range=[0, 1.08], title_text="share of the variance")
    return figure


def parallel_chart(findings: Findings) -> go.Figure:
    """Return the parallel coordinates: drag along an axis to select, drag its name to move it."""
    models, shown_scales = scales(findings.models, findings.free)
    dimensions = [
        {
            "label": scale.name,
            "values": [-0.1 if place is None else place for place in scale.positions],
            "range": [-0.1 if None in scale.positions else 0.0, 1.0],
            "tickvals": [place for place, _ in scale.ticks],
            "ticktext": [text for _, text in scale.ticks],
        }
        for scale in shown_scales
    ]
    colours = [[step / (len(style.LOW_TO_HIGH) - 1), colour] for step, colour in enumerate(style.LOW_TO_HIGH)]
    line = {"color": [model.final.score for model in models], "colorscale": colours, "showscale": False}
    figure = go.Figure(go.Parcoords(dimensions=dimensions, line=line))
    dress(figure, 440, legend=False)
    figure.update_layout(margin={"l": 60, "r": 60, "t": 70, "b": 30})
    return figure

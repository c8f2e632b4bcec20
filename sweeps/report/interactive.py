"""The interactive page: the PNG's panels in Plotly, the table and the caveats, in one HTML file.

plotly.js is inside the file (4 to 5 MB): it opens without a network, from a disk or from the artifacts of an
MLflow run. Hover shows where a point comes from; a click on the legend hides a model in all panels.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from calm_lightning.flops.paper import PUBLISHED
from calm_lightning.metrics.names import ScorePoint
from sweeps.front.series import Series, front_points
from sweeps.report import style
from sweeps.report.tables import Budget, checks, interval, quantity, scientific

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_SHEET = f"""
body {{ margin: 0; background: #fff; color: {style.INK}; font: 15px/1.5 {_FONT}; }}
main {{ max-width: 1280px; margin: 0 auto; padding: 28px 24px 40px; }}
h1 {{ font-size: 26px; line-height: 1.2; margin: 0 0 6px; }}
h2 {{ font-size: 17px; margin: 28px 0 8px; }}
p.budget {{ color: {style.MUTED}; margin: 0 0 12px; }}
li {{ margin: 3px 0; }}
div.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }}
th, td {{ padding: 6px 14px 6px 0; text-align: right; border-bottom: 1px solid {style.GRID}; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
th {{ color: {style.MUTED}; font-weight: 600; }}
"""


def draw_html(path: Path, series: Sequence[Series], budget: Budget, paper_overlay: bool = True) -> None:
    """Draw the page and write it.

    Args:
        path: The HTML file.
        series: The models.
        budget: What the page says about the numbers.
        paper_overlay: Draw the paper's models in a panel of their own, in the paper's units.
    """
    figure = _figure(series, paper_overlay)
    chart = figure.to_html(
        include_plotlyjs=True, full_html=False, config={"displaylogo": False, "responsive": True}, div_id="front"
    )
    verdicts = "".join(f"<li>{html.escape(sentence)}</li>" for _, sentence in checks(series))
    caveats = "".join(f"<li>{html.escape(caveat)}</li>" for caveat in budget.caveats)
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(budget.title)}</title><style>{_SHEET}</style></head><body><main>"
        f'<h1>{html.escape(budget.title)}</h1><p class="budget">{html.escape(budget.line())}</p>'
        f"{chart}<h2>Last evaluations</h2>{_table(series)}"
        f"<h2>Did the models learn?</h2><ul>{verdicts}</ul>"
        f"<h2>What this can and cannot show</h2><ul>{caveats}</ul></main></body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _table(series: Sequence[Series]) -> str:
    """Return the last evaluation of every model as an HTML table."""
    head = ("model", "parameters", "training FLOPs", "inference FLOPs/token", "text tokens", "BrierLM [95 %]")
    rows = [
        (
            one.label,
            quantity(one.parameters),
            scientific(one.final.train_flops),
            scientific(one.final.inference_flops_per_token),
            quantity(one.final.text_tokens),
            interval(one.final),
        )
        for one in sorted(series, key=lambda item: item.final.train_flops)
    ]
    cells = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    heading = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="wide"><table><tr>{heading}</tr>{cells}</table></div>'


def _figure(series: Sequence[Series], paper_overlay: bool) -> go.Figure:
    """Return the panels: a large one on the left, one or two on the right."""
    right: list[dict[str, int] | None] = [None, {} if paper_overlay else None]
    titles = ["What a score costs to train", "What it costs to use"]
    titles += ["The paper's models, in the paper's units"] if paper_overlay else []
    figure = make_subplots(
        rows=2,
        cols=2,
        column_widths=[0.62, 0.38],
        specs=[[{"rowspan": 2}, {} if paper_overlay else {"rowspan": 2}], right],
        subplot_titles=titles,
        horizontal_spacing=0.08,
        vertical_spacing=0.2,
    )
    _front(figure, [(p.train_flops, p.brier_lm) for _, p in front_points(series)], column=1)
    _front(figure, [(p.inference_flops_per_token, p.brier_lm) for _, p in front_points(series, True)], column=2)
    for one in series:
        curve = [point for point in one.trained if point.train_flops > 0]
        _points(figure, one, curve, series, column=1)
        _points(figure, one, [one.final], series, column=2)
    if paper_overlay:
        _paper(figure)
    _dress(figure, paper_overlay)
    return figure


def _front(figure: go.Figure, points: Sequence[tuple[float, float]], column: int) -> None:
    """Add the front as a step line."""
    figure.add_trace(
        go.Scatter(
            x=[cost for cost, _ in points],
            y=[score for _, score in points],
            mode="lines",
            line={"shape": "hv", "color": style.FRONT, "width": 7},
            opacity=0.45,
            name="Pareto front",
            legendgroup="front",
            showlegend=column == 1,
            hoverinfo="skip",
        ),
        row=1,
        col=column,
    )


def _hover(one: Series, point: ScorePoint) -> str:
    """Return what hovering over a point shows."""
    K = "" if one.K is None else f"K = {one.K}<br>"
    brier = " / ".join(f"{value:.2f}" for value in point.brier)
    return (
        f"<b>{html.escape(one.label)}</b>, step {point.step:,}<br>{K}{quantity(point.text_tokens)} text tokens, "
        f"{point.seconds:,.0f} s of training<br>BrierLM {point.brier_lm:.3f} ± {point.brier_lm_se:.3f} (SE)<br>"
        f"95 % interval {point.brier_lm_low:.3f} to {point.brier_lm_high:.3f}<br>Brier-1..4: {brier}<br>"
        f"training {point.train_flops:.3e} FLOPs<br>inference {point.inference_flops_per_token:.3e} FLOPs/token"
    )


def _points(figure: go.Figure, one: Series, shown: Sequence[ScorePoint], series: Sequence[Series], column: int) -> None:
    """Add a model's evaluations with their intervals; the last one is drawn large."""
    look = style.looks(series)[one.label]
    costs = [point.train_flops if column == 1 else point.inference_flops_per_token for point in shown]
    figure.add_trace(
        go.Scatter(
            x=costs,
            y=[point.brier_lm for point in shown],
            mode="lines+markers",
            name=one.label,
            legendgroup=one.label,
            showlegend=column == 1,
            line={"color": look.colour, "width": 1.5},
            marker={
                "color": look.colour,
                "symbol": look.symbol,
                "size": [14 if point is one.final else 7 for point in shown],
                "line": {"color": style.PAPER, "width": 1},
                "opacity": 1,
            },
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [max(0.0, point.brier_lm_high - point.brier_lm) for point in shown],
                "arrayminus": [max(0.0, point.brier_lm - point.brier_lm_low) for point in shown],
                "thickness": 1.2,
                "width": 3,
                "color": look.colour,
            },
            hovertext=[_hover(one, point) for point in shown],
            hoverinfo="text",
        ),
        row=1,
        col=column,
    )


def _paper(figure: go.Figure) -> None:
    """Add the published models in units of 1e20 FLOPs."""
    for family, name, place in (
        ("transformer", "Transformer (paper)", "bottom right"),
        ("calm", "CALM, K=4 (paper)", "top left"),
    ):
        look = style.PUBLISHED[family]
        rows = [row for preset, row in PUBLISHED.items() if preset.startswith(family)]
        figure.add_trace(
            go.Scatter(
                x=[row.training_flops / 1e20 for row in rows],
                y=[row.brier_lm for row in rows],
                mode="lines+markers+text",
                text=[row.name for row in rows],
                textposition=place,
                textfont={"size": 11, "color": look.colour},
                name=name,
                line={"color": look.colour, "width": 1.5},
                marker={
                    "symbol": look.symbol,
                    "size": 9,
                    "color": look.colour,
                    "line": {"color": style.PAPER, "width": 1},
                },
                hovertext=[
                    f"<b>{row.name}</b><br>{quantity(row.parameters)} parameters<br>BrierLM {row.brier_lm}<br>"
                    f"training {row.training_flops:.2e} FLOPs<br>"
                    f"inference {row.inference_flops_per_token:.1e} FLOPs/token"
                    for row in rows
                ],
                hoverinfo="text",
                showlegend=False,
            ),
            row=2,
            col=2,
        )


def _dress(figure: go.Figure, paper_overlay: bool) -> None:
    """Set axes, fonts and legend."""
    figure.update_layout(
        template="plotly_white",
        font={"family": _FONT, "size": 13, "color": style.INK},
        height=680,
        margin={"l": 60, "r": 20, "t": 40, "b": 60},
        legend={"x": 0.01, "y": 0.99, "bgcolor": "rgba(255,255,255,0.8)"},
        hoverlabel={"align": "left", "bgcolor": style.PAPER, "font": {"family": _FONT, "size": 13}},
    )
    axis = {"showline": True, "linecolor": style.FRONT, "gridcolor": style.GRID, "ticks": "outside", "zeroline": False}
    figure.update_xaxes(type="log", dtick="D2", exponentformat="power", minor={"ticks": "outside"}, **axis)
    figure.update_yaxes(title_text=style.SCORE_AXIS, rangemode="tozero", **axis)
    figure.update_xaxes(title_text=style.TRAIN_AXIS, row=1, col=1)
    figure.update_xaxes(title_text=style.INFERENCE_AXIS, row=1, col=2)
    if paper_overlay:
        figure.update_xaxes(title_text=style.PAPER_AXIS, range=[0.3, 1.7], row=2, col=2)
        figure.update_yaxes(range=[4.8, 9.9], row=2, col=2)

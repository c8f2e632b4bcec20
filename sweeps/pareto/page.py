"""The fronts, and two fronts compared, as pages in one file each that need no network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from sweeps.pareto.chosen import cautions, link
from sweeps.pareto.comparing import Comparison, Side, front_of
from sweeps.pareto.curves import arrow, front_curve
from sweeps.pareto.fronts import INFERENCE, Fronts, cost
from sweeps.pareto.png import AXES, LOOKS
from sweeps.pareto.tables import comparison_grid, front_grids
from sweeps.pareto.words import comparison_notes, saving_sentences, short, volume_sentence
from sweeps.report import style
from sweeps.report.findings import Findings
from sweeps.report.seeds import MeanPoint, Model
from sweeps.report.web.dressing import COST_AXIS, dress, hover, to_html
from sweeps.report.web.front import front_chart
from sweeps.report.web.markup import SHEET, items, paragraph, table

_COLUMNS = {"training": 1, "inference": 2}


def write_front_page(path: Path, fronts: Fronts, findings: Findings, command: str) -> None:
    """Write the page of the fronts of chosen runs.

    Args:
        path: The HTML file.
        fronts: The fronts.
        findings: What the chart draws.
        command: What makes the page again.
    """
    body = (
        to_html(front_chart(findings), "chart-front")
        + paragraph(
            "Filled marks are means over seeds, hollow ones single runs, crosses models that were stopped early. Bars "
            "are 95 % intervals. Click on a name in the legend to hide its models."
        )
        + "".join(table(grid) for grid in front_grids(fronts))
        + (f"<h3>Cautions</h3>{items(lines)}" if (lines := cautions(fronts.chosen.runs)) else "")
        + _runs(fronts)
    )
    _write(path, fronts.chosen.title, fronts.chosen.line(), body, command)


def write_comparison_page(path: Path, found: Comparison, legend: Sequence[str], command: str) -> None:
    """Write the page of a comparison.

    Args:
        path: The HTML file.
        found: The comparison.
        legend: What the two names stand for.
        command: What makes the page again.
    """
    a, b = found.names
    sentences = [sentence for side in found.sides for sentence in saving_sentences(found, side)]
    body = (
        f'<p class="finding">{html.escape(" ".join(sentences))}</p>'
        + to_html(_chart(found), "chart-compare")
        + table(comparison_grid(found))
        + items([*(volume_sentence(found, side) for side in found.sides), *comparison_notes(found)])
        + "".join(
            f"<h2>{html.escape(name)}</h2>" + _tables(one) for name, one in zip((a, b), found.fronts, strict=True)
        )
    )
    _write(path, f"{a} against {b}", " · ".join(legend), body, command)


def _tables(fronts: Fronts) -> str:
    return "".join(table(grid) for grid in front_grids(fronts)) + _runs(fronts)


def _write(path: Path, title: str, line: str, body: str, command: str) -> None:
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{SHEET}</style><script>{get_plotlyjs()}</script></head><body><main>"
        f'<h1>{html.escape(title)}</h1><p class="budget">{html.escape(line)}</p>{body}'
        f"<h3>Command</h3><pre>{html.escape(command)}</pre></main></body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _runs(fronts: Fronts) -> str:
    """Return the runs of the models on the fronts, with links where a server shows them."""
    leaders = {model.slug: model for front in fronts.both for model, _ in front.standing}
    lines = []
    for model in leaders.values():
        runs = []
        for series in model.runs:
            run = fronts.chosen.run_of(series)
            address, text = link(run), html.escape(f"{run.name} ({run.run_id})")
            runs.append(f'<a class="file" href="{html.escape(address)}">{text}</a>' if address else text)
        lines.append(f"<li>{html.escape(model.label)}: {', '.join(runs)}</li>")
    return f"<details><summary>Runs of the models on the fronts</summary><ul>{''.join(lines)}</ul></details>"


def _chart(found: Comparison) -> go.Figure:
    figure = make_subplots(
        rows=1,
        cols=2,
        column_widths=[0.58, 0.42],
        horizontal_spacing=0.07,
        subplot_titles=[title for title, _ in AXES.values()],
    )
    for side in found.sides:
        for number in (1, 0):
            _add_set(figure, found, side, number)
        _add_arrow(figure, side)
    dress(figure, 600)
    figure.update_layout(legend={"traceorder": "reversed"})
    figure.update_xaxes(**COST_AXIS)
    for kind, (_, label) in AXES.items():
        figure.update_xaxes(title_text=label, row=1, col=_COLUMNS[kind])
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text=style.SCORE_AXIS, row=1, col=1)
    return figure


def _add_set(figure: go.Figure, found: Comparison, side: Side, number: int) -> None:
    """Add the band, the front and the evaluations of A (0) or B (1)."""
    look, name, fronts = LOOKS[number], found.names[number], found.fronts[number]
    curve, column = front_curve((side.a, side.b)[number]), _COLUMNS[side.kind]
    seen = np.isfinite(curve.low)
    group = {"legendgroup": name, "showlegend": False}
    figure.add_trace(
        go.Scatter(
            x=[*curve.cost[seen], *curve.cost[seen][::-1]],
            y=[*curve.low[seen], *curve.high[seen][::-1]],
            fill="toself",
            mode="lines",
            line={"width": 0, "color": look.colour},
            fillcolor=look.colour,
            opacity=0.13,
            hoverinfo="skip",
            **group,
        ),
        row=1,
        col=column,
    )
    figure.add_trace(
        go.Scatter(
            x=curve.cost,
            y=curve.score,
            mode="lines",
            name=name,
            legendgroup=name,
            showlegend=column == 1,
            line={"color": look.colour, "width": 3},
            hovertemplate=f"{html.escape(name)}: BrierLM %{{y:.2f}} for %{{x:.3e}} FLOPs<extra></extra>",
        ),
        row=1,
        col=column,
    )
    places = _places(fronts, side.kind)
    figure.add_trace(
        go.Scatter(
            x=[cost(point, side.kind) for _, point, _ in places],
            y=[point.score for _, point, _ in places],
            mode="markers",
            marker={
                "color": look.colour,
                "symbol": look.symbol,
                "size": [10 if on_front else 5 for _, _, on_front in places],
                "opacity": [1.0 if on_front else 0.4 for _, _, on_front in places],
                "line": {"color": style.PAPER, "width": 1},
            },
            hovertext=[hover(model, point) for model, point, _ in places],
            hoverinfo="text",
            **group,
        ),
        row=1,
        col=column,
    )


def _places(fronts: Fronts, kind: str) -> list[tuple[Model, MeanPoint, bool]]:
    """Return the evaluations that a panel shows, and whether each is on the front."""
    front = front_of(fronts, kind)
    standing = {(model.slug, point.step) for model, point in front.standing} if front else set()
    return [
        (model, point, (model.slug, point.step) in standing)
        for model in fronts.models
        for point in ((model.final,) if kind == INFERENCE else model.curve)
    ]


def _add_arrow(figure: go.Figure, side: Side) -> None:
    """Add the saving as an arrow from what B pays to what A pays; places on logarithmic axes are logarithms."""
    place = arrow(side)
    if place is None:
        return
    of_b, of_a, score, saving = place
    axis = "" if side.kind == "training" else "2"
    share = saving.share
    ends = ", ".join(short(end).removesuffix(" %") for end in (share.high, share.low))
    figure.add_annotation(
        x=float(np.log10(of_a)), y=score, ax=float(np.log10(of_b)), ay=score, xref=f"x{axis}", yref=f"y{axis}",
        axref=f"x{axis}", ayref=f"y{axis}", showarrow=True, arrowhead=2, arrowwidth=2, arrowcolor=style.INK, text="",
    )  # fmt: skip
    middle = (float(np.log10(of_a)) + float(np.log10(of_b))) / 2
    for text, shift, size in (
        (f"<b>{short(share.value)}</b>", 12, 14),
        (f"[{ends}]", -12, 11),
    ):
        figure.add_annotation(
            x=middle, y=score, xref=f"x{axis}", yref=f"y{axis}", showarrow=False, yshift=shift, text=text,
            font={"size": size, "color": style.INK}, bgcolor="rgba(255,255,255,0.7)", borderpad=1,
        )  # fmt: skip

"""Autoencoders: what they restore, as a table and over what their training cost."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import plotly.graph_objects as go

from calm_lightning.metrics.names import (
    SECONDS,
    TEXT_TOKENS,
    TRAIN_FLOPS,
    VAL_ACCURACY_MEAN,
    VAL_ACCURACY_SAMPLED,
    VAL_CROSS_ENTROPY,
    VAL_KL,
)
from sweeps.report import style
from sweeps.report.grids import Grid
from sweeps.report.sources.run import ReportedRun
from sweeps.report.tables import quantity, scientific
from sweeps.report.web.dressing import View, add_switch, dress

_VIEWS = (
    ("training FLOPs", TRAIN_FLOPS, "training FLOPs of the autoencoder", "~e"),
    ("text tokens", TEXT_TOKENS, "text tokens that the autoencoder was trained on", "~s"),
    ("seconds", SECONDS, "seconds of training, evaluation left out", ","),
)
_MOST_NAMED = 12
"""Curves up to which each has a name and a colour of its own."""


def autoencoders_grid(runs: Sequence[ReportedRun]) -> Grid:
    """Return shape, cost and reconstruction of autoencoders, by K."""
    rows = [
        (
            run.name,
            str(run.section("model").get("K", run.tags.get("K", "-"))),
            str(run.section("model").get("l") or run.tags.get("l") or "-"),
            scientific(run.last[TRAIN_FLOPS]) if TRAIN_FLOPS in run.last else "-",
            quantity(run.text_tokens) if not math.isnan(run.text_tokens) else "-",
            _percent(run, VAL_ACCURACY_MEAN),
            _percent(run, VAL_ACCURACY_SAMPLED),
            _number(run, VAL_CROSS_ENTROPY),
            _number(run, VAL_KL),
            run.state_in_words(),
        )
        for run in sorted(runs, key=lambda one: (int(one.section("model").get("K", 0) or 0), one.name))
    ]
    head = ("autoencoder", "K", "l", "FLOPs", "text tokens", "z = mu", "z drawn", "cross-entropy", "KL", "state")
    notes = (
        "z = mu, z drawn: share of tokens restored from the mean of the posterior, and from a draw of it, which is "
        "what a language model has to hit. Cross-entropy in nats per token for drawn z, KL in nats per chunk.",
    )
    return Grid("What the autoencoders restore", head, tuple(rows), notes, wraps=frozenset({0, 9}))


def _percent(run: ReportedRun, name: str) -> str:
    return f"{100 * run.last[name]:.2f} %" if name in run.last else "-"


def _number(run: ReportedRun, name: str) -> str:
    return f"{run.last[name]:.4g}" if name in run.last else "-"


def autoencoders_chart(runs: Sequence[ReportedRun]) -> go.Figure | None:
    """Return the share of tokens restored from drawn latents over costs, None where nobody has more than one value."""
    curves = []
    for run in runs:
        steps = [step for step, values in run.evaluations.items() if step > 0 and VAL_ACCURACY_SAMPLED in values]
        if steps:
            curves.append((run, steps))
    if not any(len(steps) > 1 for _, steps in curves):
        return None
    figure = go.Figure()
    for number, (run, steps) in enumerate(curves):
        many = len(curves) > _MOST_NAMED
        look = style.Look(style.FRONT, "o", "circle") if many else style.MODEL_LOOKS[number % len(style.MODEL_LOOKS)]
        points = [run.evaluations[step] for step in steps]
        figure.add_trace(
            go.Scatter(
                x=[values.get(TRAIN_FLOPS) for values in points],
                y=[100 * values[VAL_ACCURACY_SAMPLED] for values in points],
                mode="lines+markers",
                name=run.name,
                showlegend=not many,
                line={"color": look.colour, "width": 1.3},
                marker={"color": look.colour, "symbol": look.symbol, "size": 7},
                hovertext=[
                    f"<b>{html.escape(run.name)}</b>, step {step:,}<br>"
                    f"{100 * values[VAL_ACCURACY_SAMPLED]:.2f} % of tokens restored"
                    for step, values in zip(steps, points, strict=True)
                ],
                hoverinfo="text",
            )
        )
    dress(figure, 420, legend=len(curves) <= _MOST_NAMED)
    figure.update_xaxes(type="log", tickformat="~e", nticks=8, title_text=_VIEWS[0][2])
    figure.update_yaxes(title_text="tokens restored from drawn z (percent)")
    views = [
        View(name, [[run.evaluations[step].get(key) for step in steps] for run, steps in curves], title, ticks)
        for name, key, title, ticks in _VIEWS
    ]
    add_switch(figure, views)
    return figure

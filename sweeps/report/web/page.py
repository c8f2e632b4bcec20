"""The page: a report that a colleague can read from top to bottom, in one file that needs no network."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from plotly.offline import get_plotlyjs

from sweeps.report import style
from sweeps.report.ablations import ablation_grid
from sweeps.report.comparisons import titled
from sweeps.report.findings import Findings
from sweeps.report.front_tables import failures_grid, front_grid, models_grid, seeds_grid
from sweeps.report.grids import Grid
from sweeps.report.importance import in_words
from sweeps.report.published import NOT_COMPARABLE
from sweeps.report.tables import checks, scientific
from sweeps.report.web.dressing import FONT, to_html
from sweeps.report.web.front import curves_chart, front_chart
from sweeps.report.web.history import history_chart
from sweeps.report.web.slices import importance_chart, parallel_chart, slice_chart
from sweeps.report.words import (
    budget_line,
    budget_rule,
    failures,
    fairness,
    limits,
    method,
    question,
    report_command,
    sweep_commands,
)

_SHEET = f"""
body {{ margin: 0; background: #fff; color: {style.INK}; font: 15px/1.55 {FONT}; }}
main {{ max-width: 1180px; margin: 0 auto; padding: 28px 24px 60px; }}
h1 {{ font-size: 27px; line-height: 1.2; margin: 0 0 6px; }}
h2 {{ font-size: 19px; margin: 40px 0 8px; padding-top: 10px; border-top: 1px solid {style.GRID}; }}
h3 {{ font-size: 15px; margin: 22px 0 6px; }}
p, ul {{ max-width: 860px; margin: 6px 0; }}
p.budget, p.note {{ color: {style.MUTED}; }}
p.note {{ font-size: 13px; margin: 3px 0; }}
nav a {{ color: {style.MODEL_LOOKS[3].colour}; text-decoration: none; margin-right: 14px; white-space: nowrap; }}
li {{ margin: 3px 0; }}
pre {{ background: #f6f7f9; padding: 10px 14px; overflow-x: auto; font-size: 13px; }}
div.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }}
th, td {{ padding: 5px 16px 5px 0; text-align: right; border-bottom: 1px solid {style.GRID}; white-space: nowrap; }}
th.prose, td.prose {{ text-align: left; white-space: normal; }}
th {{ color: {style.MUTED}; font-weight: 600; }}
tr.strong td {{ font-weight: 600; }}
summary {{ cursor: pointer; color: {style.MUTED}; }}
"""
_MOST_SAMPLES = 8
_LONGEST = 20
"""Rows up to which a table is shown unfolded."""


def write_page(path: Path, findings: Findings, out: Path | None) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        findings: What the sweep shows.
        out: Where the report goes if not to its usual place, for the command at the end.
    """
    sections = [
        ("question", "Question", _list(question(findings))),
        ("method", "Method", _list(method(findings))),
        ("budget", "Budget", _list(_budget(findings))),
        ("fairness", "Fairness", _list(fairness(findings))),
        ("front", "Front", _front(findings)),
        ("ablations", "Ablations beside the paper's", _ablations(findings)),
        ("curves", "Curves", to_html(curves_chart(findings), "chart-curves") + _table(models_grid(findings))),
        ("importance", "What the results depend on", _importance(findings)),
        ("parallel", "Parallel coordinates", _parallel(findings)),
        ("slices", "Slices", _slices(findings)),
        ("learned", "Did the models learn?", _learned(findings)),
        ("failures", "Failures", _failures(findings)),
        ("limits", "What cannot be concluded", _list(limits(findings))),
        ("samples", "Text samples", _samples(findings)),
        ("commands", "Commands", _commands(findings, out)),
    ]
    title = html.escape(findings.gathered.title)
    links = " ".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    body = "".join(f'<h2 id="{name}">{heading}</h2>{content}' for name, heading, content in sections)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_SHEET}</style><script>{get_plotlyjs()}</script></head><body><main>"
        f'<h1>{title}</h1><p class="budget">{html.escape(budget_line(findings))}</p><nav>{links}</nav>{body}'
        "</main></body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"


def _paragraph(text: str, kind: str = "note") -> str:
    return f'<p class="{kind}">{html.escape(text)}</p>'


def _budget(findings: Findings) -> list[str]:
    """Return rule, counts and what the sweep spent."""
    spent = findings.moments[-1].spent
    rules = dict.fromkeys(budget_rule(record.config.budget) for record in findings.gathered.records)
    return [
        *rules,
        f"Together, the trials took {scientific(spent)} training FLOPs; an autoencoder that several share is counted "
        "once, failed trials are not counted.",
        budget_line(findings),
        *findings.gathered.legend(),
    ]


def _front(findings: Findings) -> str:
    seeds = seeds_grid(findings)
    marks = "Filled marks are means over seeds, hollow ones single runs, crosses models that were stopped early. "
    return (
        to_html(front_chart(findings), "chart-front")
        + _paragraph(f"{marks}Bars are 95 % intervals. Click on a name in the legend to hide its models.")
        + front_grid(findings, _LONGEST).to_html()
        + (_table(seeds) if seeds else "")
        + "<h3>How the front grew</h3>"
        + to_html(history_chart(findings), "chart-history")
    )


def _ablations(findings: Findings) -> str:
    if not findings.ablations:
        return "<p>No key of the paper's ablations was varied with all else equal.</p>"
    tables = "".join(ablation_grid(one).to_html() for one in findings.ablations)
    return f"<p><strong>{html.escape(NOT_COMPARABLE)}</strong></p>{tables}"


def _importance(findings: Findings) -> str:
    chart = importance_chart(findings)
    drawn = "" if chart is None else to_html(chart, "chart-importance")
    note = (
        "fANOVA: how much of the variance of a random forest's predictions each key explains by itself, relative to "
        "the other keys. Shares sum to 1 whatever the data; brackets hold the range over resamples of the models."
    )
    return drawn + _list(in_words(found) for found in findings.importances) + _paragraph(note)


def _parallel(findings: Findings) -> str:
    if not findings.free:
        return "<p>No key was varied.</p>"
    hint = "Dark lines score high. Drag along an axis to select models; drag a name to move its axis."
    return to_html(parallel_chart(findings), "chart-parallel") + _paragraph(hint)


def _slices(findings: Findings) -> str:
    if not findings.slices:
        return "<p>No two models differ in one chosen key only.</p>"
    parts = [
        f"<h3>{html.escape(titled(one.key)[0].upper() + titled(one.key)[1:])}</h3>"
        + to_html(slice_chart(findings, one), f"chart-slice-{number}")
        + (
            _paragraph(f"Models that do not reach the equal FLOPs: {one.left_out}.")
            if one.budget and one.left_out
            else ""
        )
        for number, one in enumerate(findings.slices)
    ]
    more = f" Not drawn: {', '.join(findings.unsliced)}." if findings.unsliced else ""
    note = f"Lines join models that are equal in the other chosen keys; grey ones are further groups.{more}"
    return "".join(parts) + _paragraph(note)


def _learned(findings: Findings) -> str:
    return _folded(
        "Brier-1 of every trial against the untrained model's",
        _list(sentence for _, sentence in checks(findings.gathered.series)),
    )


def _failures(findings: Findings) -> str:
    rows = failures(findings)
    return failures_grid(rows).to_html("") if rows else "<p>No trial failed and none was stopped early.</p>"


def _samples(findings: Findings) -> str:
    models = [model for model in findings.leaders if model.runs[0].text.strip()]
    shown = models[-_MOST_SAMPLES:]
    if not shown:
        return "<p>No model on the front has a text sample.</p>"
    return "".join(_folded(model.label, f"<pre>{html.escape(model.runs[0].text)}</pre>") for model in shown)


def _table(grid: Grid) -> str:
    """Return a table, folded where it is long."""
    return grid.to_html() if len(grid.rows) <= _LONGEST else _folded(grid.title, grid.to_html(""))


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def _commands(findings: Findings, out: Path | None) -> str:
    lines: Sequence[str] = [*sweep_commands(findings), report_command(findings, out)]
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"

"""What runs show that compare with each other, as parts of the page: front, tables, ablations, curves, slices."""

from __future__ import annotations

import base64
import html
import tempfile
from pathlib import Path

from sweeps.report.ablations import ablation_grid
from sweeps.report.best import stretches_grid
from sweeps.report.comparisons import calm_models, titled
from sweeps.report.findings import Findings
from sweeps.report.front_tables import brier_grid, front_grid, models_grid, seeds_grid
from sweeps.report.headline import headline
from sweeps.report.importance import in_words
from sweeps.report.png.front import draw_front
from sweeps.report.published import NOT_COMPARABLE
from sweeps.report.tables import checks
from sweeps.report.web.dressing import to_html
from sweeps.report.web.front import curves_chart, front_chart
from sweeps.report.web.history import history_chart
from sweeps.report.web.markup import LONGEST, folded, items, paragraph, table
from sweeps.report.web.slices import importance_chart, parallel_chart, slice_chart
from sweeps.report.words import budget_line

_FEWEST_FOR_PARALLEL, _FEWEST_FOR_SLICES = 5, 3
"""Models below which a chart would show less than the tables do."""
_SECONDS = (
    "Seconds are those of the machines that the runs were trained on; only runs on equal, otherwise idle machines "
    "compare in them. Text tokens and seconds leave the autoencoder out, training FLOPs hold it."
)


def headline_part(findings: Findings, name: str) -> str:
    """Return the paragraph of findings and the figure of the front.

    Args:
        findings: What the runs show.
        name: Part of the ids of charts, different for each group of runs.
    """
    marks = "Filled marks are means over seeds, hollow ones single runs, crosses models that were stopped early. "
    return (
        paragraph(" ".join(headline(findings)), "finding")
        + to_html(front_chart(findings), f"chart-front-{name}")
        + f"<noscript>{_picture(findings)}</noscript>"
        + paragraph(f"{marks}Bars are 95 % intervals. Click on a name in the legend to hide its models.")
    )


def _picture(findings: Findings) -> str:
    """Return the front as a picture, for readers of mail that run no scripts."""
    with tempfile.TemporaryDirectory(prefix="calm-report-") as scratch:
        path = Path(scratch) / "front.png"
        draw_front(path, findings, budget_line(findings))
        content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="BrierLM against training and inference FLOPs" src="data:image/png;base64,{content}">'


def tables_part(findings: Findings, name: str) -> str:
    """Return the tables of front, last evaluations and seeds, and how the front of a sweep grew."""
    seeds, by_budget = seeds_grid(findings), stretches_grid(findings)
    parts = [
        front_grid(findings, LONGEST).to_html(),
        table(by_budget) if len(by_budget.rows) > 1 else "",
        table(models_grid(findings)),
        table(brier_grid(findings.gathered.series)),
        table(seeds) if seeds else "",
    ]
    if findings.gathered.records:
        parts += ["<h3>How the front grew</h3>", to_html(history_chart(findings), f"chart-history-{name}")]
    return "".join(parts)


def ablations_part(findings: Findings, name: str) -> str:
    """Return the paper's ablation tables with ours beside them; "" where none of its keys was varied."""
    if not findings.ablations:
        return ""
    tables = "".join(ablation_grid(one).to_html() for one in findings.ablations)
    return f"<p><strong>{html.escape(NOT_COMPARABLE)}</strong></p>{tables}"


def curves_part(findings: Findings, name: str) -> str:
    """Return the learning curves, and whether the models learned."""
    verdicts = items(sentence for _, sentence in checks(findings.gathered.series))
    title = "Did the models learn? Brier-1 of every run against the untrained model's"
    return (
        to_html(curves_chart(findings), f"chart-curves-{name}")
        + paragraph(_SECONDS)
        + folded(title, verdicts, unfolded=len(findings.gathered.series) <= 2)
    )


def importance_part(findings: Findings, name: str) -> str:
    """Return what the results depend on; "" where too few models were trained to say."""
    if all(found.refusal for found in findings.importances) and not findings.gathered.records:
        return ""
    chart = importance_chart(findings)
    drawn = "" if chart is None else to_html(chart, f"chart-importance-{name}")
    note = (
        "fANOVA: how much of the variance of a random forest's predictions each key explains by itself, relative to "
        "the other keys. Shares sum to 1 whatever the data; brackets hold the range over resamples of the models."
    )
    return drawn + items(in_words(found) for found in findings.importances) + paragraph(note)


def parallel_part(findings: Findings, name: str) -> str:
    """Return the parallel coordinates; "" where nothing was varied or there are too few models to see anything."""
    if not findings.free or len(calm_models(findings.models)) < _FEWEST_FOR_PARALLEL:
        return ""
    hint = "Dark lines score high. Drag along an axis to select models; drag a name to move its axis."
    return to_html(parallel_chart(findings), f"chart-parallel-{name}") + paragraph(hint)


def slices_part(findings: Findings, name: str) -> str:
    """Return scores along each chosen key; "" where no two models differ in one key only."""
    if not findings.slices or len(findings.models) < _FEWEST_FOR_SLICES:
        return ""
    parts = []
    for number, one in enumerate(findings.slices):
        left_out = f"Models that do not reach the equal FLOPs: {one.left_out}." if one.budget and one.left_out else ""
        title = titled(one.key)[0].upper() + titled(one.key)[1:]
        parts.append(
            f"<h3>{html.escape(title)}</h3>{to_html(slice_chart(findings, one), f'chart-slice-{name}-{number}')}"
        )
        parts.append(paragraph(left_out) if left_out else "")
    more = f" Not drawn: {', '.join(findings.unsliced)}." if findings.unsliced else ""
    return "".join(parts) + paragraph(
        f"Lines join models that are equal in the other chosen keys; grey ones are further groups.{more}"
    )

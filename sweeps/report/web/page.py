"""The page: a report that a colleague can read from top to bottom, in one file that needs no network."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from pathlib import Path

from plotly.offline import get_plotlyjs

from sweeps.report.findings import Findings
from sweeps.report.front_tables import failures_grid
from sweeps.report.headline import restored
from sweeps.report.sources.evaluations import evaluations_grid
from sweeps.report.sources.protocols import comparable, described, minor_differences
from sweeps.report.sources.report import Report
from sweeps.report.sources.run import FINISHED
from sweeps.report.tables import scientific
from sweeps.report.web import found, runs
from sweeps.report.web.markup import SHEET, items, paragraph
from sweeps.report.words import budget_line, budget_rule, counts, failures, fairness, limits, method, question

GENERATOR = '<meta name="generator" content="calm-lightning report">'
"""By this a page is known again, so that nothing else is overwritten."""
_MOST_NAMED = 8
_AUTOENCODER = (
    "An autoencoder turns K tokens into one latent vector z of dimension l and back. The language model draws such "
    "vectors, so what counts is how many tokens come back from a z drawn around the mean."
)
_WITHOUT_SCRIPTS = "<noscript><style>.plotly-graph-div { display: none }</style></noscript>"
_ON_PRINT = "addEventListener('beforeprint',()=>document.querySelectorAll('details').forEach(part=>part.open=true))"


def write_page(path: Path, report: Report) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        report: What it shows.
    """
    sections = [(name, heading, content) for name, heading, content in _sections(report) if content]
    title = html.escape(report.title)
    links = " ".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    body = "".join(f'<h2 id="{name}">{heading}</h2>{content}' for name, heading, content in sections)
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{GENERATOR}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{SHEET}</style>{_WITHOUT_SCRIPTS}<script>{get_plotlyjs()}</script><script>{_ON_PRINT}</script>"
        f'</head><body><main><h1>{title}</h1><p class="budget">{html.escape(_line(report))}</p>{_warnings(report)}'
        f"<nav>{links}</nav>{body}</main></body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _sections(report: Report) -> Iterator[tuple[str, str, str]]:
    """Yield anchor, heading and content of every section; those without content are left out of the page."""
    yield "findings", "Findings", _findings(report)
    yield "question", "Question", _question(report)
    yield "method", "Method", _method(report)
    yield "budget", "Budget", _budget(report)
    yield "fairness", "Fairness", _each(report, lambda one, name: items(fairness(one)))
    yield "front", "Tables", _each(report, found.tables_part)
    yield "evaluations", "Evaluations after training", _evaluations(report)
    yield "curves", "Learning curves", _each(report, found.curves_part)
    yield "ablations", "Ablations beside the paper's", _each(report, found.ablations_part)
    yield "slices", "Slices", _each(report, found.slices_part)
    yield "importance", "What the results depend on", _each(report, found.importance_part)
    yield "parallel", "Parallel coordinates", _each(report, found.parallel_part)
    yield "autoencoders", "Autoencoders", runs.autoencoders_part(report)
    yield "runs", "Runs", runs.runs_part(report)
    yield "failures", "Failures", _failures(report)
    yield "samples", "Text samples", runs.samples_part(report)
    yield "limits", "What cannot be concluded", _limits(report)
    yield "commands", "Commands", runs.commands_part(report)
    yield "environment", "Environment", runs.environment_part(report)


def _each(report: Report, part: Callable[[Findings, str], str]) -> str:
    """Return a part for every group of runs that compare, under the group's heading where there are several."""
    made = []
    for number, group in enumerate(report.groups, start=1):
        content = part(group.findings, str(number))
        made.append(f"<h3>{html.escape(group.heading)}</h3>{content}" if content and group.heading else content)
    return "".join(made)


def _line(report: Report) -> str:
    """Return counts and seeds in one line."""
    if report.gathered is None:
        return runs.stages_in_words(report)
    if len(report.groups) == 1:
        return budget_line(report.groups[0].findings)
    return " · ".join(counts(report.gathered, sum(len(group.findings.models) for group in report.groups)))


def _warnings(report: Report) -> str:
    """Return what a reader has to know before anything else."""
    made = ""
    if len(report.groups) > 1:
        apart = " and ".join((", ".join(report.apart[:-1]), report.apart[-1])).removeprefix(" and ")
        groups = [f"{group.heading} ({len(group.runs)} runs)" for group in report.groups]
        made += (
            f"<p><strong>Not all of these runs compare with each other.</strong> They differ in {html.escape(apart)}, "
            "and scores measured differently say nothing about each other. The page keeps them apart:</p>"
        ) + items(groups)
    elif not report.groups and len(comparable(report.autoencoders)) > 1:
        made += "<p><strong>These autoencoders were scored on different text</strong> (see the method).</p>"
    unfinished = [run for run in report.runs if run.state != FINISHED and not run.reason]
    if unfinished:
        named = [f"{run.name} ({run.state_in_words()})" for run in unfinished[:_MOST_NAMED]]
        more = f" and {len(unfinished) - _MOST_NAMED} more" if len(unfinished) > _MOST_NAMED else ""
        made += paragraph(f"Not trained to the end, and reported as they are: {', '.join(named)}{more}.", "plain")
    made += "".join(paragraph(remark, "plain") for remark in report.remarks[:_MOST_NAMED])
    return f'<div class="warning">{made}</div>' if made else ""


def _findings(report: Report) -> str:
    if report.groups:
        return _each(report, found.headline_part)
    return "".join(paragraph(restored(run), "finding") for run in report.autoencoders if run.trained)


def _question(report: Report) -> str:
    if report.groups:
        return _each(report, lambda one, name: items(question(one)))
    return items(["How much of the text do these autoencoders restore, and what did that cost?"])


def _method(report: Report) -> str:
    """Return what was done, and how it was measured: for each group of language models, else of autoencoders."""
    lines = method(report.gathered) if report.gathered is not None else [_AUTOENCODER]
    parts = [(group.name, group.runs) for group in report.groups]
    if not parts:
        alike = comparable(report.autoencoders)
        parts = [(", ".join(run.name for run in part) if len(alike) > 1 else "", tuple(part)) for part in alike]
    for name, members in parts:
        told = next((text for run in members if (text := described(run))), "How scores were measured is not recorded.")
        lines.append(f"{name}: {told}" if name else told)
        lines += minor_differences(members)
    return items(lines)


def _evaluations(report: Report) -> str:
    return evaluations_grid(report.evaluations).to_html("") if report.evaluations else ""


def _budget(report: Report) -> str:
    """Return rule, counts and what was spent."""
    gathered = report.gathered
    if gathered is None:
        return ""
    lines = list(dict.fromkeys(budget_rule(record.config.budget) for record in gathered.records))
    for group in report.groups:
        spent = scientific(group.findings.moments[-1].spent)
        what = f"{group.name}: together" if group.name else "Together"
        lines.append(
            f"{what}, the runs took {spent} training FLOPs; an autoencoder that several share is counted once"
            f"{', failed trials are not counted' if gathered.failed else ''}."
        )
    return items([*lines, _line(report), *gathered.legend()])


def _failures(report: Report) -> str:
    rows = failures(report.gathered) if report.gathered is not None else []
    return failures_grid(rows).to_html("") if rows else ""


def _limits(report: Report) -> str:
    lines = [line for group in report.groups for line in limits(group.findings)]
    if not report.groups:
        lines.append(
            "How well a language model learns on these latents: a high share of restored tokens is needed for it and "
            "does not ensure it."
        )
    if len(report.groups) > 1:
        lines.insert(0, "Which of the groups is better: their scores were not measured in the same way.")
    return items(dict.fromkeys(lines))

"""What a report found, in a few lines for the terminal."""

from __future__ import annotations

from sweeps.report.headline import headline, restored
from sweeps.report.sources.report import Report
from sweeps.report.sources.run import FINISHED


def told(report: Report) -> list[str]:
    """Return heading, findings and what a reader has to know, each on its line."""
    lines = [report.title]
    for group in report.groups:
        lines += ([group.heading] if group.heading else []) + [" ".join(headline(group.findings))]
    if not report.groups:
        lines += [restored(run) for run in report.autoencoders if run.trained]
    if len(report.groups) > 1:
        lines.append(f"The groups do not compare with each other: they differ in {', '.join(report.apart)}.")
    unfinished = sum(run.state != FINISHED and not run.reason for run in report.runs)
    if unfinished:
        lines.append(f"Not trained to the end, and reported as they are: {unfinished} of {len(report.runs)} runs.")
    return [*lines, *report.remarks]

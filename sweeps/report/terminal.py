"""The report in the terminal: the tables, what they depend on, what cannot be concluded. It fits 80 columns."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from sweeps.report.ablations import ablation_grid
from sweeps.report.findings import Findings
from sweeps.report.front_tables import MOST_OTHERS, failures_grid, front_grid, seeds_grid
from sweeps.report.importance import in_words
from sweeps.report.published import NOT_COMPARABLE
from sweeps.report.words import budget_line, failures, limits

_MOST_FAILURES = 10


def show_report(console: Console, findings: Findings) -> None:
    """Print a report.

    Args:
        console: Where to.
        findings: What the sweep shows.
    """
    console.print(Text(findings.gathered.title, style="bold"))
    console.print(Text(budget_line(findings), style="dim"))
    for line in findings.gathered.legend():
        console.print(Text(line, style="dim"))
    grids = [
        front_grid(findings, MOST_OTHERS),
        seeds_grid(findings, MOST_OTHERS),
        *map(ablation_grid, findings.ablations),
    ]
    for grid in grids:
        if grid is not None:
            console.print()
            console.print(grid.to_terminal())
    if findings.ablations:
        console.print(Text(f"\n{NOT_COMPARABLE}"))
    console.print(Text("\nWhat the results depend on (fANOVA)", style="bold"))
    _bullets(console, [in_words(found) for found in findings.importances])
    rows = failures(findings.gathered)
    if rows:
        console.print()
        console.print(failures_grid(rows[:_MOST_FAILURES]).to_terminal())
        if len(rows) > _MOST_FAILURES:
            console.print(Text(f"{len(rows) - _MOST_FAILURES} more are in the page.", style="dim"))
    console.print(Text("\nWhat cannot be concluded", style="bold"))
    _bullets(console, limits(findings))


def _bullets(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(Padding(Text(f"· {line}"), (0, 0, 0, 0)))

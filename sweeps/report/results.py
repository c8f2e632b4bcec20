"""The files that every sweep ends with: figure, page, table of evaluations, summary. Made anew from the record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from calm_lightning.config import RunConfig, load_config
from calm_lightning.tracking.provenance import processor
from sweeps import artifacts
from sweeps.report.tables import Budget, brier_table, checks, pareto_table, quantity, summary, write_points
from sweeps.trials.reading import SweepRecord

if TYPE_CHECKING:
    from calm_lightning.data.shards.manifest import Manifest


def write_results(record: SweepRecord, manifest: Manifest) -> tuple[list[Path], Budget]:
    """Write figure, page, CSV and Markdown, each whole or not at all.

    Args:
        record: A sweep with at least one series.
        manifest: Its corpus.

    Returns:
        Their paths (PNG, HTML, CSV, Markdown), and what the sweep was given.
    """
    from sweeps.report.figures import draw_png
    from sweeps.report.interactive import draw_html

    directory, series, overlay = record.directory, list(record.series), record.config.paper_overlay
    budget = budget_of(record, load_config([str(Path(series[0].run_dir) / "config.yaml")]), manifest)
    text = summary(series, budget, record.study)
    files = [
        artifacts.write_whole(directory / artifacts.FIGURE, lambda path: draw_png(path, series, budget, overlay)),
        artifacts.write_whole(directory / artifacts.PAGE, lambda path: draw_html(path, series, budget, overlay)),
        artifacts.write_whole(directory / artifacts.POINTS, lambda path: write_points(path, series)),
        artifacts.write_text(directory / artifacts.SUMMARY, text),
    ]
    return files, budget


def show_results(console: Console, record: SweepRecord, budget: Budget) -> None:
    """Print the table, what the models learned, what failed, and what the numbers mean."""
    series = list(record.series)
    console.print()
    console.print(pareto_table(series, budget.title))
    console.print()
    console.print(brier_table(series))
    console.print()
    console.print(budget.line(), style="dim", highlight=False)
    for learned, sentence in checks(series):
        console.print(f"[{'green' if learned else 'yellow'}]{'✓' if learned else '!'}[/] {sentence}", highlight=False)
    for failure in record.failures:
        console.print(f"[red]✗[/] {failure.label} failed: {escape(failure.reason)}", highlight=False)
    for caveat in budget.caveats:
        console.print(f"· {caveat}", style="dim", highlight=False)


def budget_of(record: SweepRecord, config: RunConfig, manifest: Manifest) -> Budget:
    """Return what a sweep was given, in words.

    Args:
        record: The sweep.
        config: Configuration of one of its language models.
        manifest: Its corpus.
    """
    sweep, evaluation = record.config, config.evaluation
    tokens = manifest.split(config.data.train_split).totals.tokens
    seeds = sorted({series.seed for series in record.series})
    return Budget(
        title=sweep.title or sweep.name,
        corpus=f"{Path(sweep.corpus.out).name} corpus, {quantity(tokens)} training tokens, V = {manifest.vocabulary:,}",
        protocol=f"scored in blocks of {config.data.block_tokens} tokens, every {evaluation.start_stride} tokens, "
        f"{evaluation.samples} samples",
        machine=f"{'one seed' if len(seeds) == 1 else 'seeds'} ({', '.join(map(str, seeds))}), {processor()}",
        caveats=tuple(sweep.caveats),
    )

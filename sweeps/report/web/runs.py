"""The runs themselves, as parts of the page: state, samples, commands, environment."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from importlib import metadata

import yaml

from calm_lightning.metrics.names import BRIER_LM, SECONDS
from sweeps.report.grids import Grid
from sweeps.report.sources.commands import corpus_lines, folder_command, train_command
from sweeps.report.sources.report import Report
from sweeps.report.sources.run import AUTOENCODER, ReportedRun
from sweeps.report.tables import quantity
from sweeps.report.web.autoencoders import autoencoders_chart, autoencoders_grid
from sweeps.report.web.dressing import to_html
from sweeps.report.web.markup import block, folded, items, paragraph, table
from sweeps.report.words import counted, sweep_commands

_MOST_SAMPLES = 12
_MOST_COMMANDS = 60
_MOST_CONFIGS = 12
_UNFOLDED, _UNFOLDED_COMMANDS = 2, 6
_MOST_LISTS = 3
_FACTS = {
    "commit": "commit",
    "python": "Python",
    "platform": "platform",
    "cpu": "CPU",
    "gpu": "GPU",
    "precision": "precision",
    "device": "device",
}
_VERSION = "version."


def runs_part(report: Report) -> str:
    """Return every run: how far it came, its score, where it is."""
    rows = [
        (
            run.name,
            run.stage,
            str(run.seed),
            run.state_in_words(),
            quantity(run.last[SECONDS]) if not math.isnan(run.last.get(SECONDS, math.nan)) else "-",
            f"{run.last[BRIER_LM]:.2f}" if BRIER_LM in run.last else "-",
            run.identity[:10] or "-",
            run.mlflow_run_id[:8] or "-",
        )
        for run in report.runs
    ]
    head = ("run", "stage", "seed", "state", "seconds", "BrierLM", "identity", "MLflow run")
    return table(Grid("Every run", head, tuple(rows), wraps=frozenset({0, 3})))


def autoencoders_part(report: Report) -> str:
    """Return what the autoencoders restore; "" where none is at hand."""
    if not report.autoencoders:
        return ""
    chart = autoencoders_chart(report.autoencoders)
    return table(autoencoders_grid(report.autoencoders)) + (
        "" if chart is None else to_html(chart, "chart-autoencoders")
    )


def samples_part(report: Report) -> str:
    """Return texts that the models generated, those of models on a front first."""
    runs = [run for run in _leaders_first(report) if run.text.strip()]
    if not runs:
        return "" if not report.models else "<p>No run has a text sample: they are made at the end of a training.</p>"
    shown = runs[:_MOST_SAMPLES]
    more = f"{len(runs) - len(shown)} more are in the run directories." if len(runs) > len(shown) else ""
    parts = [
        folded(_called(run, report), f"<pre>{html.escape(run.text)}</pre>", unfolded=number < _UNFOLDED)
        for number, run in enumerate(shown)
    ]
    return "".join(parts) + (paragraph(more) if more else "")


def _leaders_first(report: Report) -> list[ReportedRun]:
    """Return the language models, those on a front first, the highest score in front."""
    leaders = {
        (series.run_dir, series.mlflow_run_id)
        for group in report.groups
        for model in group.findings.leaders
        for series in model.runs
    }
    return sorted(
        report.models,
        key=lambda run: ((run.run_dir, run.mlflow_run_id or None) not in leaders, -run.last.get(BRIER_LM, 0.0)),
    )


def _called(run: ReportedRun, report: Report) -> str:
    """Return a run's name, its seed where others have the same name, and its score."""
    several = sum(one.name == run.name for one in report.models) > 1
    score = f", BrierLM {run.last[BRIER_LM]:.2f}" if BRIER_LM in run.last else ""
    return f"{run.name}{f' ({run.identity[:6]})' if several and run.identity else ''}{score}"


def commands_part(report: Report) -> str:
    """Return the commands that repeat report, sweeps and runs, and where the corpora come from."""
    parts = ["<p>This page, made anew:</p>", block([report.command])]
    if report.gathered is not None and report.gathered.records:
        parts += ["<p>The sweeps; what is trained already is found, not trained again:</p>"]
        parts += [block(sweep_commands(report.gathered))]
    corpora = corpus_lines(report.runs)
    if corpora:
        parts += [f"<p>{'The corpus' if len(corpora) == 1 else 'The corpora'}:</p>", items(corpora)]
    runs = [*report.autoencoders, *_leaders_first(report)]
    known = [run for run in runs if run.resolved][:_MOST_COMMANDS]
    if known:
        parts.append(
            "<p>Each run, on any machine that has the corpus; autoencoders come first, since language models name "
            "them. Where a run is there already, its command finds it, or goes on with it:</p>"
        )
        parts += [_commands_of(run, len(known)) for run in known]
    more = sum(bool(run.resolved) for run in runs) - len(known)
    if more:
        parts.append(
            paragraph(f"{counted(more, 'more run')} have their configuration in config.yaml of their directory.")
        )
    unknown = sum(not run.resolved for run in runs)
    if unknown:
        parts.append(paragraph(f"The configurations of {counted(unknown, 'run')} are not at hand any more."))
    return "".join(parts)


def _commands_of(run: ReportedRun, of: int) -> str:
    """Return the commands of one run, and its configuration where there are few runs."""
    lines = [train_command(run)]
    here = folder_command(run)
    content = block(lines) + (f"<p class='note'>Where the directory is:</p>{block([here])}" if here else "")
    if of <= _MOST_CONFIGS:
        resolved = yaml.safe_dump(dict(run.resolved), sort_keys=False, allow_unicode=True)
        content += folded("config.yaml, resolved", f"<pre>{html.escape(resolved)}</pre>", printed=False)
    return folded(run.name, content, unfolded=of <= _UNFOLDED_COMMANDS)


def environment_part(report: Report) -> str:
    """Return what runs were made with: each fact with its values, and how many runs have them."""
    runs = report.runs
    versions = sorted({name for run in runs for name in run.environment if name.startswith(_VERSION)})
    titles = _FACTS | {name: name.removeprefix(_VERSION) for name in versions}
    rows = [(title, _values(name, runs)) for name, title in titles.items()]
    grid = Grid("", ("fact", "value"), tuple(row for row in rows if row[1]), wraps=frozenset({0, 1}))
    missing = sum(not run.environment.get("commit") and not run.environment.get("python") for run in runs)
    notes = f"Commit and machine were not recorded for {missing} of {len(runs)} runs." if missing else ""
    lists = sorted({run.packages for run in runs if run.packages})[:_MOST_LISTS]
    packages = "".join(
        folded(
            "Every installed package" if len(lists) == 1 else f"Installed packages, list {number}",
            f"<pre>{html.escape(text)}</pre>",
            printed=False,
        )
        for number, text in enumerate(lists, start=1)
    )
    written = f"This page was written by calm-lightning {metadata.version('calm-lightning')}."
    return (grid.to_html("") if grid.rows else "") + (paragraph(notes) if notes else "") + packages + paragraph(written)


def _values(name: str, runs: Sequence[ReportedRun]) -> str:
    """Return the values of a fact, with the number of runs behind each where they differ."""
    found: dict[str, int] = {}
    for run in runs:
        value = run.environment.get(name, "")
        if value:
            found[value] = found.get(value, 0) + 1
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{value} ({count} {'run' if count == 1 else 'runs'})" for value, count in found.items())


def stages_in_words(report: Report) -> str:
    """Return how many runs of which kind there are, for pages without a score."""
    return f"{len(report.autoencoders)} {AUTOENCODER}{'' if len(report.autoencoders) == 1 else 's'}"

"""The whole of a sweep: corpus, study, front, figures, MLflow parent run.

Killed anywhere and started again, it continues: the corpus is whole or absent, trials are in the study's
database, runs have their checkpoints, and everything after the last trial is made anew from these in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.rule import Rule

from calm_lightning.tracking.parent import ParentRun
from calm_lightning.tracking.provenance import processor, provenance
from sweeps import artifacts
from sweeps.config import SweepConfig, sweep_to_yaml
from sweeps.front.series import Series, front_points
from sweeps.lock import only_sweep
from sweeps.report.tables import (
    Budget,
    brier_table,
    checks,
    front_numbers,
    pareto_table,
    quantity,
    summary,
    write_points,
)
from sweeps.space.points import Point, digest, points
from sweeps.work.objective import Execute, Objective

if TYPE_CHECKING:
    from calm_lightning.data.shards.manifest import Manifest

PrepareCorpus = Callable[[SweepConfig, Path], "Manifest"]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep left behind.

    Attributes:
        directory: Directory of the sweep: database, figures, tables.
        series: The models with all their evaluations.
        files: Paths of PNG, HTML, CSV and Markdown.
        parent_run_id: MLflow run id of the parent, None where it is not recorded.
    """

    directory: Path
    series: tuple[Series, ...]
    files: tuple[Path, ...]
    parent_run_id: str | None


def corpus_dir(sweep: SweepConfig, work_dir: Path) -> Path:
    """Return where the corpus of a sweep lies: a relative `corpus.out` is taken beside the work directory."""
    return work_dir.resolve().parent / sweep.corpus.out


def prepare_corpus(sweep: SweepConfig, out: Path) -> Manifest:
    """Prepare the corpus of a sweep, or find it prepared.

    Raises:
        DataError: A source or the tokenizer is unusable.
    """
    from data_pipelines.prepare import prepare

    return prepare(
        sweep.corpus.source,
        out,
        sweep.corpus.tokenizer,
        elsewhere="choose another directory with corpus.out=OTHER",
        replacing="delete it to have it made anew",
    )


def budget_of(sweep: SweepConfig, made: list[Point], manifest: Manifest) -> Budget:
    """Return what a sweep was given, in words."""
    config = made[0].model
    tokens = manifest.split(config.data.train_split).totals.tokens
    evaluation = config.evaluation
    return Budget(
        title=sweep.title or sweep.name,
        corpus=f"{Path(sweep.corpus.out).name} corpus, {quantity(tokens)} training tokens, V = {manifest.vocabulary:,}",
        protocol=f"scored in blocks of {config.data.block_tokens} tokens, every {evaluation.start_stride} tokens, "
        f"{evaluation.samples} samples",
        machine=f"one seed ({config.seed}), {processor()}",
        caveats=tuple(sweep.caveats),
    )


def reproduce(
    sweep: SweepConfig,
    work_dir: Path,
    execute: Execute,
    console: Console,
    prepare: PrepareCorpus = prepare_corpus,
) -> SweepResult:
    """Run a sweep to its end, or continue it.

    Args:
        sweep: The sweep.
        work_dir: Directory that holds run directories.
        execute: Trains one run (`calm_lightning.run.execute`).
        console: Where progress, table and checks are printed.
        prepare: Makes the corpus.

    Raises:
        CalmError: Whatever the user can mend; running it again continues.
    """
    from sweeps.study import completed, open_study, run_study

    with only_sweep(work_dir):
        corpus = corpus_dir(sweep, work_dir)
        console.print(f"corpus: {corpus}")
        manifest = prepare(sweep, corpus)
        made = points(sweep, corpus, work_dir)
        budget = budget_of(sweep, made, manifest)
        study_name = f"{sweep.name}-{digest(made, manifest.corpus_hash)[:10]}"
        directory = work_dir / "sweeps" / study_name
        study = open_study(directory, study_name)
        artifacts.write_whole(directory / artifacts.CONFIG, lambda path: _write(path, sweep_to_yaml(sweep)))
        parent = _open_parent(sweep, work_dir, study_name, directory, manifest)
        console.print(f"study: {study_name}, {len(made)} trials, {len(completed(study))} completed before")
        place = {point.label: number for number, point in enumerate(made, start=1)}

        def announce(label: str, what: str) -> None:
            console.print(Rule(f"trial {place[label]} of {len(made)} · {label}: {what}", align="left", style="dim"))

        objective = Objective(
            execute,
            vocabulary=manifest.vocabulary,
            parent_run_id=parent.run_id if parent else None,
            study=study_name,
            announce=announce,
        )
        try:
            series = run_study(study, made, objective, visit=objective.quietly if parent else None)
            files = write_results(directory, series, budget, study_name, sweep.paper_overlay)
        except BaseException as error:
            if parent:
                parent.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        if parent:
            _record(parent, series, files, directory)
        _show(console, series, budget)
    return SweepResult(directory, tuple(series), tuple(files), parent.run_id if parent else None)


def write_results(
    directory: Path, series: list[Series], budget: Budget, study_name: str, paper_overlay: bool
) -> list[Path]:
    """Write figure, page, CSV and Markdown, each whole or not at all.

    Returns:
        Their paths: PNG, HTML, CSV, Markdown.
    """
    from sweeps.report.figures import draw_png
    from sweeps.report.interactive import draw_html

    text = summary(series, budget, study_name)
    return [
        artifacts.write_whole(directory / artifacts.FIGURE, lambda path: draw_png(path, series, budget, paper_overlay)),
        artifacts.write_whole(directory / artifacts.PAGE, lambda path: draw_html(path, series, budget, paper_overlay)),
        artifacts.write_whole(directory / artifacts.POINTS, lambda path: write_points(path, series)),
        artifacts.write_whole(directory / artifacts.SUMMARY, lambda path: _write(path, text)),
    ]


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _open_parent(
    sweep: SweepConfig, work_dir: Path, study_name: str, directory: Path, manifest: Manifest
) -> ParentRun | None:
    """Open the study's MLflow run, if the sweep is recorded there."""
    if not sweep.tracking.mlflow:
        return None
    tags = {"calm.stage": "sweep", "calm.corpus": manifest.corpus_hash, "calm.sweep_dir": str(directory.resolve())}
    tags |= {f"env.{name}": value for name, value in provenance().items()}
    settings: dict[str, Any] = {"name": sweep.name, "space": sweep.space, "corpus": vars(sweep.corpus)}
    return ParentRun.open(
        sweep.tracking, work_dir, study=study_name, name=study_name, tags=tags, params={"sweep": settings}
    )


def _record(parent: ParentRun, series: list[Series], files: list[Path], directory: Path) -> None:
    """Log numbers, files and description to the parent run, and the front to its children."""
    parent.log_metrics(front_numbers(series))
    parent.log_files([*files, directory / artifacts.CONFIG])
    parent.describe((directory / artifacts.SUMMARY).read_text(encoding="utf-8"))
    on_front = {one.label for one, _ in front_points(series)}
    for one in series:
        if one.mlflow_run_id:
            state = "front" if one.label in on_front else "dominated"
            parent.tag_child(one.mlflow_run_id, {"pareto": state})
    parent.finish()


def _show(console: Console, series: list[Series], budget: Budget) -> None:
    """Print the table, what the models learned, and what the numbers mean."""
    console.print()
    console.print(pareto_table(series, budget.title))
    console.print()
    console.print(brier_table(series))
    console.print()
    console.print(budget.line(), style="dim", highlight=False)
    for learned, sentence in checks(series):
        console.print(f"[{'green' if learned else 'yellow'}]{'✓' if learned else '!'}[/] {sentence}", highlight=False)
    for caveat in budget.caveats:
        console.print(f"· {caveat}", style="dim", highlight=False)

"""`calm runs`: the runs of a store as a table, as a file, and in another store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calm_lightning.cli.options import AsJson

if TYPE_CHECKING:
    from rich.table import Table

    from calm_lightning.tracking.moving.transfer import Copied
    from calm_lightning.tracking.reading.listing import RunRow

app = typer.Typer(no_args_is_help=True, help="List runs, move them between stores, send what MLflow has not got.")

WorkDir = Annotated[Path, typer.Option(help="Directory of runs; the store is mlruns/ beside it.")]
Uri = Annotated[str, typer.Option(help="Another MLflow store (tracking.uri of the runs).")]
Experiments = Annotated[
    list[str] | None, typer.Option("--experiment", metavar="NAME", help="Only in this experiment; may be repeated.")
]
Selection = Annotated[
    list[str] | None,
    typer.Argument(metavar="SELECTION...", help="Run ids or their beginnings, run names, MLflow filters."),
]
Everything = Annotated[bool, typer.Option("--all", help="All runs.")]
NoChildren = Annotated[
    bool, typer.Option("--no-children", help="Only the runs named, without children and autoencoders.")
]
_STORE = "A URI, or a directory that has mlruns (or gets it)."
Into = Annotated[str, typer.Option(metavar="NAME", help="Put all runs into this experiment, not each into its own.")]


@app.command("list")
def list_(
    selection: Annotated[
        str, typer.Argument(metavar="[FILTER]", help="MLflow filter, run name, or run id or its beginning.")
    ] = "",
    work_dir: WorkDir = Path("runs"),
    uri: Uri = "",
    experiment: Experiments = None,
    as_json: AsJson = False,
) -> None:
    """List runs: what was trained, its BrierLM and training FLOPs (the autoencoder's included).

    Example: calm runs list "tags.K = '4'"
    """
    import json
    from dataclasses import asdict

    from calm_lightning.tracking.reading.listing import list_runs
    from calm_lightning.tracking.reading.places import place_beside

    place = place_beside(work_dir, uri)
    rows = list_runs(place, selection, experiment or ())
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
    elif not rows:
        typer.echo(f"{place.shown} has no such runs" if selection else f"{place.shown} has no runs")
    else:
        from rich.console import Console

        Console().print(_table(rows))
        typer.echo(f"{len(rows)} run{'' if len(rows) == 1 else 's'}")


@app.command()
def export(
    out: Annotated[Path, typer.Option(metavar="FILE.zip", help="The archive to write.")],
    selection: Selection = None,
    everything: Everything = False,
    work_dir: WorkDir = Path("runs"),
    uri: Uri = "",
    experiment: Experiments = None,
    no_children: NoChildren = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write runs into one file, with children, autoencoders, metric histories, files and models.

    Example: calm runs export --all --out runs.zip
    """
    from calm_lightning.errors import TrackingError
    from calm_lightning.tracking.moving.archive_writer import write_archive
    from calm_lightning.tracking.reading.places import place_beside
    from calm_lightning.tracking.reading.store_source import StoreSource

    chosen = _chosen(selection, everything, bool(experiment))
    if out.exists() and not force:
        raise TrackingError(f"{out} is there already: name another file, or replace it with --force")
    source = StoreSource.choose(
        place_beside(work_dir, uri), chosen, experiments=experiment or (), children=not no_children
    )
    with _progress("exporting") as progress:
        size = write_archive(source, out, progress)
    typer.echo(f"{_count(len(source.run_ids))} in {out} ({size / 1e6:.1f} MB)")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.zip", help="An archive that calm runs export wrote.")],
    work_dir: WorkDir = Path("runs"),
    uri: Uri = "",
    into: Into = "",
) -> None:
    """Add the runs of an archive to a store; runs that are there already are completed, not doubled.

    Example: calm runs import runs.zip
    """
    from calm_lightning.tracking.moving.archive import ArchiveSource
    from calm_lightning.tracking.moving.transfer import copy_runs
    from calm_lightning.tracking.reading.places import place_beside

    place = place_beside(work_dir, uri)
    with ArchiveSource(file) as source:
        with _progress("checking") as progress:
            source.check(progress)
        with _progress("importing") as progress:
            done = copy_runs(source, place, into=into, progress=progress)
    _report(done, place.shown)


@app.command()
def copy(
    selection: Selection = None,
    everything: Everything = False,
    from_: Annotated[
        str, typer.Option("--from", metavar="STORE", help=_STORE, show_default="that beside the work directory")
    ] = "",
    to: Annotated[
        str, typer.Option("--to", metavar="STORE", help=_STORE, show_default="that beside the work directory")
    ] = "",
    work_dir: WorkDir = Path("runs"),
    experiment: Experiments = None,
    into: Into = "",
    no_children: NoChildren = False,
) -> None:
    """Copy runs into another store; what is there already is completed, so it can be killed and run again.

    Example: calm runs copy --all --to http://127.0.0.1:5000
    """
    from calm_lightning.errors import TrackingError
    from calm_lightning.tracking.moving.transfer import copy_runs
    from calm_lightning.tracking.reading.places import find_place, place_beside
    from calm_lightning.tracking.reading.store_source import StoreSource

    chosen = _chosen(selection, everything, bool(experiment))
    origin, place = (find_place(one) if one else place_beside(work_dir) for one in (from_, to))
    if origin.uri == place.uri:
        raise TrackingError(
            f"runs would be copied from {place.shown} to itself: name another store with --from or --to"
        )
    source = StoreSource.choose(origin, chosen, experiments=experiment or (), children=not no_children)
    with _progress("copying") as progress:
        done = copy_runs(source, place, into=into, progress=progress)
    _report(done, place.shown)


def _chosen(selection: list[str] | None, everything: bool, narrowed: bool) -> list[str]:
    """Return the selection; that all runs are meant has to be said.

    Raises:
        TrackingError: Nothing was chosen, or everything and something.
    """
    from calm_lightning.errors import TrackingError

    if selection and everything:
        raise TrackingError("--all and a selection contradict each other: give one of them")
    if not selection and not everything and not narrowed:
        raise TrackingError("no runs are named: give run ids, names or a filter, or --all")
    return selection or []


@contextmanager
def _progress(doing: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a progress bar on stderr; yields what is told of every run."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[run]}"),
    )
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(doing, total=None, run="")

        def tell(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, run=name)

        yield tell


def _report(done: list[Copied], shown: str) -> None:
    """Say what became of runs, each kind counted."""
    phrases = {
        "copied": "copied",
        "completed": "completed",
        "unchanged": "there already",
        "original": "left alone, since they were recorded there",
    }
    counts = {what: sum(one.what == what for one in done) for what in phrases}
    said = ", ".join(f"{count} {phrases[what]}" for what, count in counts.items() if count)
    typer.echo(f"{_count(len(done))} in {shown}: {said}")


def _count(number: int) -> str:
    return f"{number} run{'' if number == 1 else 's'}"


def _table(rows: list[RunRow]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("run", "id", "stage", "K", "l", "N", "head", "BrierLM", "FLOPs", "status", "study", "pareto"):
        right = heading in ("K", "l", "N", "BrierLM", "FLOPs")
        table.add_column(heading, justify="right" if right else "left", no_wrap=heading != "study", overflow="fold")
    for row in rows:
        table.add_row(
            row.name,
            row.run_id[:8],
            row.stage,
            row.K,
            row.l,
            row.N,
            row.head,
            _score(row),
            "" if row.train_flops is None else f"{row.train_flops:.2e}".replace("e+", "e"),
            row.status,
            row.study,
            row.pareto,
        )
    return table


def _score(row: RunRow) -> str:
    if row.brier_lm is None:
        return ""
    return f"{row.brier_lm:.2f}" + (f" ± {row.brier_lm_se:.2f}" if row.brier_lm_se is not None else "")

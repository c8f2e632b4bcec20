"""`calm sweep report`, `export` and `best`: what a sweep shows, as tables, figures, a page, files, and one answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calm_lightning.cli.options import AsJson

if TYPE_CHECKING:
    from rich.console import Console

    from sweeps.report.best import Choice
    from sweeps.report.findings import Findings
    from sweeps.report.gathering import Gathered

Place = Annotated[
    Path, typer.Argument(metavar="SWEEP", help="A sweep's directory, or its name or the beginning of it.")
]
WorkDir = Annotated[Path, typer.Option(help="Where runs are.")]


def report(
    places: Annotated[list[Path], typer.Argument(metavar="SWEEP...", help="Directories of sweeps, or their names.")],
    work_dir: WorkDir = Path("runs"),
    out: Annotated[
        Path | None, typer.Option(help="Where the files go; without it, into report/ of the sweep's directory.")
    ] = None,
) -> None:
    """Write a page, figures and tables about a sweep, and print what it shows.

    Front with errors and hypervolume, the paper's ablation tables beside its numbers, importances, slices, parallel
    coordinates, failures, and what cannot be concluded. A sweep that still runs is reported as it is. Several sweeps
    are put together, their models told apart by letters.

    Example: calm sweep report k4-sweet-spot-sample --out report
    """
    from rich.console import Console

    from sweeps.report.findings import find
    from sweeps.report.terminal import show_report
    from sweeps.report.writing import default_place, write_report

    _require_extra()
    directories = [_directory(place, work_dir) for place in places]
    place = out if out is not None else default_place(directories)
    console = Console()
    findings = find(_gather(directories))
    files = write_report(findings, place, out)
    show_report(console, findings)
    console.print()
    for path in files:
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)


def export(
    place: Place,
    out: Annotated[Path, typer.Option(help="The file; its ending says the format: .csv, .parquet or .jsonl.")],
    trials: Annotated[
        bool, typer.Option("--trials/--evaluations", help="One row for each trial, or one for each evaluation.")
    ] = False,
    work_dir: WorkDir = Path("runs"),
) -> None:
    """Write all evaluations (or trials) of a sweep with all swept values and settings as columns.

    Example: calm sweep export k4-sweet-spot-sample --out evaluations.parquet
    """
    _require_extra()
    from sweeps.report.exporting import check_format, evaluations_frame, trials_frame, write_frame

    check_format(out)
    gathered = _gather([_directory(place, work_dir)])
    frame = trials_frame(gathered) if trials else evaluations_frame(gathered)
    write_frame(frame, out)
    typer.echo(f"{out}: {len(frame)} rows, {len(frame.columns)} columns")


def best(
    place: Place,
    budget: Annotated[
        float | None, typer.Option(help="Training FLOPs that may be spent, for example 2e13; without it, any.")
    ] = None,
    as_json: AsJson = False,
    work_dir: WorkDir = Path("runs"),
) -> None:
    """Say which model scores best at a budget of training FLOPs, how sure that is, and how to train it again.

    Example: calm sweep best k4-sweet-spot-sample --budget 2e13
    """
    import json

    from rich.console import Console

    from sweeps.report.best import choose, to_json
    from sweeps.report.findings import find

    _require_extra()
    if budget is not None and not budget > 0:
        from calm_lightning.errors import SweepError

        raise SweepError(f"--budget {budget:g} must be above 0: it is a number of training FLOPs")
    findings = find(_gather([_directory(place, work_dir)]), importance=False)
    choice = choose(findings.models, budget if budget is not None else findings.reference)
    if as_json:
        typer.echo(json.dumps(to_json(choice), indent=2))
        return
    _show_best(Console(), findings, choice)


def _show_best(console: Console, findings: Findings, choice: Choice) -> None:
    """Print the front by budget, the choice, and its commands."""
    from rich.text import Text

    from sweeps.report.best import commands, described, stretches_grid

    console.print(stretches_grid(findings).to_terminal())
    console.print()
    for line in described(choice):
        console.print(Text(line))
    if findings.gathered.unfinished:
        console.print(Text(f"{findings.gathered.unfinished} trials are still to come: this can change."))
    console.print(Text("\nTo train it again:"))
    for command in commands(choice):
        console.print(command, soft_wrap=True, highlight=False, markup=False)


def _directory(place: Path, work_dir: Path) -> Path:
    from sweeps.directory import find_sweep_directory

    return find_sweep_directory(place, work_dir)


def _gather(places: list[Path]) -> Gathered:
    """Read sweeps and put them together.

    Raises:
        SweepError: A directory holds no sweep, or no trial has a result yet.
    """
    from sweeps.report.gathering import gather
    from sweeps.trials.reading import read_sweep

    return gather([read_sweep(place) for place in places])


def _require_extra() -> None:
    """Check that the packages of the `sweeps` extra are there.

    Raises:
        SweepError: One of them is not installed.
    """
    import importlib.util

    from calm_lightning.errors import SweepError

    for package in ("optuna", "plotly", "matplotlib", "pandas", "pyarrow", "scipy", "sklearn"):
        if importlib.util.find_spec(package) is None:
            raise SweepError(f"{package} is not installed: run pip install 'calm-lightning[sweeps]'")

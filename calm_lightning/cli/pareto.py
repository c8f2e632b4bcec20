"""`calm pareto`: fronts of any runs that MLflow has, and what one set of runs costs less than another."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calm_lightning.cli.options import AsJson

if TYPE_CHECKING:
    from sweeps.pareto.chosen import Chosen

app = typer.Typer(no_args_is_help=True, help="Pareto fronts of runs in MLflow, and two of them compared.")

_SELECTION = "A study's name, an MLflow filter, a run; another store before it: STORE::FILTER."
_OR = " | "
"""Between selections of one argument: MLflow's filters have no "or"."""
WorkDir = Annotated[Path, typer.Option(help="Directory of runs; the store is mlruns/ beside it.")]
Uri = Annotated[str, typer.Option(help="Another MLflow store (tracking.uri of the runs).")]
Experiments = Annotated[
    list[str] | None, typer.Option("--experiment", metavar="NAME", help="Only in this experiment; may be repeated.")
]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write figure, page, table and JSON into this directory.")
]
Reference = Annotated[
    float | None,
    typer.Option(
        "--at-reference",
        metavar="FLOPS",
        min=1.0,
        help="Reference cost of hypervolumes over training FLOPs.",
        show_default="the largest cost",
    ),
]


@app.command()
def front(
    selections: Annotated[
        list[str] | None, typer.Argument(metavar="[SELECTION]...", help=_SELECTION, show_default="all runs")
    ] = None,
    work_dir: WorkDir = Path("runs"),
    uri: Uri = "",
    experiment: Experiments = None,
    out: Out = None,
    at_reference: Reference = None,
    as_json: AsJson = False,
) -> None:
    """Show the front of the chosen runs over training and over inference FLOPs.

    Seeds of one model are averaged. A selection is the name of a study (a sweep) or how it begins, a filter in MLflow's
    language, or a run.

    Example: calm pareto front k4-sweet-spot "../other::tags.K = '4'" --out front
    """
    import json

    from sweeps.pareto.fronts import front_json, fronts_of

    chosen = _chosen(selections or [""], work_dir, uri, experiment)
    fronts = fronts_of(chosen, at_reference)
    files: list[Path] = []
    if out is not None:
        from sweeps.pareto.writing import write_fronts

        files = write_fronts(fronts, out, _command())
    if as_json:
        typer.echo(json.dumps(front_json(fronts), indent=2))
        return
    from sweeps.pareto.chosen import cautions
    from sweeps.pareto.tables import front_grids

    _show([chosen.line()], front_grids(fronts), cautions(chosen.runs), files)
    if not fronts.both:
        typer.echo("No model scores above 0 yet, so that there is no front.")


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=_SELECTION)],
    b: Annotated[str, typer.Argument(metavar="B", help="The same; several are joined by ' | '.")],
    work_dir: WorkDir = Path("runs"),
    uri: Uri = "",
    experiment: Experiments = None,
    at: Annotated[
        float | None, typer.Option(metavar="BRIERLM", min=0.0, help="Give the saving at this score too.")
    ] = None,
    from_: Annotated[
        float | None,
        typer.Option(
            "--from", metavar="BRIERLM", min=0.0, help="Lowest score of the mean saving.", show_default="common"
        ),
    ] = None,
    to: Annotated[
        float | None,
        typer.Option(
            "--to", metavar="BRIERLM", min=0.0, help="Highest score of the mean saving.", show_default="common"
        ),
    ] = None,
    name_a: Annotated[str, typer.Option(metavar="NAME", help="What A is called.")] = "A",
    name_b: Annotated[str, typer.Option(metavar="NAME", help="What B is called.")] = "B",
    out: Out = None,
    at_reference: Reference = None,
    as_json: AsJson = False,
) -> None:
    """Compare two sets of runs: what A saves against B at equal BrierLM, and their hypervolumes, with intervals.

    Example: calm pareto compare "tags.stage = 'calm'" "tags.stage = 'baseline'" --name-a CALM --name-b Transformer
    """
    import json

    from sweeps.pareto.comparing import compare as compared
    from sweeps.pareto.comparing import comparison_json
    from sweeps.pareto.tables import comparison_grid, legend
    from sweeps.pareto.words import comparison_notes, saving_sentences, volume_sentence

    names = name_a, name_b
    chosen = _chosen([a], work_dir, uri, experiment, name_a), _chosen([b], work_dir, uri, experiment, name_b)
    found = compared(*chosen, names=names, level=at, low=from_, high=to, reference=at_reference)
    lines = legend(names, (a, b), chosen)
    files: list[Path] = []
    if out is not None:
        from sweeps.pareto.writing import write_comparison

        files = write_comparison(found, out, lines, _command())
    if as_json:
        typer.echo(json.dumps(comparison_json(found), indent=2))
        return
    said = [sentence for side in found.sides for sentence in saving_sentences(found, side)]
    said += [volume_sentence(found, side) for side in found.sides]
    _show(lines, [comparison_grid(found)], [*said, "", *comparison_notes(found)], files)


def _chosen(
    selections: Sequence[str], work_dir: Path, uri: str, experiments: Sequence[str] | None, heading: str = ""
) -> Chosen:
    """Return the chosen runs, read from their stores."""
    from calm_lightning.tracking.reading.places import place_beside
    from calm_lightning.tracking.reading.selection import select_runs

    _require_extra()
    from sweeps.pareto.chosen import choose

    place = place_beside(work_dir, uri)
    words = [word for selection in selections for word in selection.split(_OR)]
    with _progress() as progress:
        runs = select_runs(words, place, experiments=experiments or (), progress=progress)
    return choose(runs, heading)


def _require_extra() -> None:
    """Check that what draws and computes fronts is installed.

    Raises:
        SweepError: It is not.
    """
    from importlib.util import find_spec

    from calm_lightning.errors import SweepError

    if any(find_spec(name) is None for name in ("optuna", "plotly", "pandas")):
        raise SweepError("fronts need the packages of sweeps: run pip install 'calm-lightning[sweeps]'")


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None] | None]:
    """Show a progress bar on stderr where that is a terminal; yields what is told of every request."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("reading evaluations"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[what]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None, what="")

        def tell(done: int, of: int, what: str) -> None:
            bar.update(task, completed=done, total=of, what=what)

        yield tell


def _command() -> str:
    """Return the command line that is being run."""
    return shlex.join(["calm", *sys.argv[1:]])


def _show(lines: Sequence[str], grids: Sequence[object], said: Sequence[str], files: Sequence[Path]) -> None:
    """Print lines, tables, sentences and the names of files."""
    from rich.console import Console
    from rich.text import Text

    from sweeps.report.grids import Grid

    console = Console()
    for line in lines:
        console.print(Text(line, style="dim"))
    for grid in grids:
        assert isinstance(grid, Grid)
        console.print()
        console.print(grid.to_terminal())
    if said:
        console.print()
    for sentence in said:
        console.print(Text(sentence))
    if files:
        console.print()
    for path in files:
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)

"""`calm report`: one page about any runs, to send to a colleague."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Directories of runs or sweeps, or their names or how these begin; or runs in MLflow: an id, a name, "
            "a study, a filter such as \"tags.K = '4'\".",
        ),
    ],
    work_dir: Annotated[Path, typer.Option(help="Where runs are.")] = Path("runs"),
    uri: Annotated[
        str, typer.Option(help="MLflow store: a tracking URI or a directory.", show_default="beside --work-dir")
    ] = "",
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Heading.", show_default="the models or the sweep")] = "",
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write one page about any runs: what was found with errors, figures, tables, samples, commands, environment.

    The page is a single file that needs no network. Runs that are unfinished are reported as they are; runs that were
    scored in different ways are kept apart. A sweep stands for all its trials, several seeds of a model for their mean.

    Example: calm report runs/calm/calm-K4-l128-N8-d192-s0-0123456789 runs/baseline/* --out report.html
    """
    from sweeps.report.sources.material import read_named
    from sweeps.report.sources.naming import find_named
    from sweeps.report.sources.report import make_report
    from sweeps.report.sources.saving import check_place, save_page

    _require_extra()
    check_place(out)
    with _progress() as tell:
        named = find_named(runs, work_dir, uri, progress=tell)
        material = read_named(named, progress=tell)
        found = make_report(material, _command(runs, work_dir, uri, title), title=title, progress=tell)
        tell(0, 1, "the page")
        save_page(found, out)
    from sweeps.report.sources.telling import told

    for line in told(found):
        typer.echo(line)
    size = out.stat().st_size / 1e6
    typer.echo(f"\n{out} ({size:.1f} MB, opens in any browser)")
    if open_:
        _open(out)


def _command(runs: list[str], work_dir: Path, uri: str, title: str) -> str:
    """Return the command that makes the page anew."""
    import shlex

    options = {"--work-dir": "" if work_dir == Path("runs") else str(work_dir), "--uri": uri, "--title": title}
    given = [part for name, value in options.items() if value for part in (name, value)]
    return shlex.join(["calm", "report", *runs, *given])


def _open(page: Path) -> None:
    """Open the page in a browser, or say that there is none."""
    import webbrowser

    if not webbrowser.open(page.resolve().as_uri()):
        typer.echo("no browser could be started here: open the file from yours", err=True)


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """Show what is being done, on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("report"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[what]}", markup=False))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("report", total=None, what="")

        def tell(done: int, of: int, what: str) -> None:
            bar.update(task, completed=done, total=of, what=what)

        yield tell


def _require_extra() -> None:
    """Check that the packages of the `sweeps` extra are there.

    Raises:
        SweepError: One of them is not installed.
    """
    import importlib.util

    from calm_lightning.errors import SweepError

    for package in ("optuna", "plotly", "matplotlib", "scipy", "sklearn"):
        if importlib.util.find_spec(package) is None:
            raise SweepError(f"{package} is not installed: run pip install 'calm-lightning[sweeps]'")

"""`calm sweep`: search spaces of models, trained by any number of workers, looked at, stopped and continued."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calm_lightning.cli.options import AsJson
from calm_lightning.cli.sweep_replay import replay
from calm_lightning.cli.sweep_report import best, export, report
from calm_lightning.cli.sweep_scaling import scaling

if TYPE_CHECKING:
    from calm_lightning.config import RunConfig
    from sweeps.config import SweepConfig

app = typer.Typer(no_args_is_help=True, help="Sweeps: search spaces of models, trained by any number of workers.")

Place = Annotated[
    Path, typer.Argument(metavar="SWEEP", help="A sweep's directory, or its name or the beginning of it.")
]
WorkDir = Annotated[Path, typer.Option(help="Where runs go; the corpus and the MLflow store are made beside it.")]
Plain = Annotated[bool, typer.Option("--plain", help="Lines instead of a dashboard; always so without a terminal.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Try trials again that have failed.")]


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="A sweep that comes along (k4-sweet-spot), or a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes of the sweep, for example budget.flops=1e13."),
    ] = None,
    preset: Annotated[str, typer.Option(help="The sweep's budget, where it comes along in several.")] = "sample",
    work_dir: WorkDir = Path("runs"),
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at the same time.", show_default="1")] = None,
    launcher: Annotated[
        str | None, typer.Option(help="Where workers run: local, ray or slurm.", show_default="local")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="Optuna storage: journal, or an address such as postgresql://...", show_default="SQLite"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the trials with their FLOPs, memory and time; train nothing.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="With --dry-run: time a few steps of every shape, to know how long it takes."),
    ] = False,
    as_json: AsJson = False,
    plain: Plain = False,
    retry_failed: RetryFailed = False,
) -> None:
    """Run a sweep, or continue it: killed anywhere, the same command goes on where it was.

    Example: calm sweep run k4-sweet-spot --workers 2 "space.model.K=[2,4]" "seeds=[0,1,2]"
    """
    from sweeps.config import find_sweep, load_sweep

    asked = [("launch.workers", workers), ("launch.launcher", launcher), ("storage", storage)]
    options = [f"{key}={value}" for key, value in asked if value is not None]
    sweep = load_sweep(find_sweep(name, preset), [*(overrides or []), *options])
    if dry_run:
        list_trials(sweep, work_dir, as_json, measure)
    else:
        start(sweep, work_dir, plain=plain, retry_failed=retry_failed)


@app.command()
def resume(
    place: Place,
    work_dir: WorkDir = Path("runs"),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Trials at the same time.", show_default="as it was")
    ] = None,
    plain: Plain = False,
    retry_failed: RetryFailed = False,
) -> None:
    """Continue a sweep by its directory or name, with the configuration that it was started with.

    Example: calm sweep resume k4-sweet-spot-sample --workers 2 --retry-failed
    """
    from calm_lightning.errors import SweepError
    from sweeps.artifacts import CONFIG
    from sweeps.config import load_sweep
    from sweeps.directory import find_sweep_directory, read_session
    from sweeps.validation import study_name

    directory = find_sweep_directory(place, work_dir)
    session = read_session(directory)
    sweep = load_sweep(directory / CONFIG, [f"launch.workers={workers}"] if workers else [])
    sweep.storage = session.storage  # the file leaves its password out
    if study_name(sweep, session.corpus_hash) != directory.name:
        raise SweepError(
            f"{directory / CONFIG} is not what this sweep was started with: put the file back, or start a new sweep "
            f"with it (calm sweep run {directory / CONFIG})"
        )
    start(sweep, Path(session.work_dir), plain=plain, retry_failed=retry_failed)


@app.command()
def status(
    place: Annotated[
        Path | None, typer.Argument(metavar="[SWEEP]", help="A sweep's directory or name; else the last one.")
    ] = None,
    work_dir: WorkDir = Path("runs"),
    state: Annotated[
        list[str] | None, typer.Option(help="Trials in this state only: waiting, running, complete, pruned, failed.")
    ] = None,
    last: Annotated[int | None, typer.Option(min=0, help="The last so many trials only; 0 for none.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and follow the sweep until it ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how a sweep is doing: trials, front, cache, failures.

    Example: calm sweep status k4-sweet-spot-sample --state failed
    """
    from rich.console import Console

    from calm_lightning.cli.sweep_watch import follow, look_once
    from calm_lightning.errors import SweepError

    if watch and as_json:
        raise SweepError("--watch and --json exclude each other: ask for --json as often as it is wanted")
    directory = _directory(place, work_dir)
    if watch:
        follow(directory, Console())
    else:
        look_once(directory, Console(), state or [], last, as_json)


@app.command()
def stop(
    place: Annotated[
        Path | None, typer.Argument(metavar="[SWEEP]", help="A sweep's directory or name; else the last one.")
    ] = None,
    work_dir: WorkDir = Path("runs"),
) -> None:
    """Ask all workers of a sweep, wherever they are, to save their place and leave; nothing is lost.

    Example: calm sweep stop k4-sweet-spot-sample
    """
    from sweeps.directory import ask_to_stop
    from sweeps.run import USER
    from sweeps.trials.reading import read_sweep

    directory = _directory(place, work_dir)
    if read_sweep(directory).unfinished <= 0:
        typer.echo(f"{directory.name} has ended: there is nothing to stop")
        return
    ask_to_stop(directory, USER)
    typer.echo(
        f"{directory.name}: workers leave after their present step; calm sweep resume {directory.name} continues"
    )


@app.command()
def worker(
    place: Place,
    work_dir: WorkDir = Path("runs"),
    name: Annotated[
        str | None, typer.Option(help="Name of the worker, unique among those alive.", show_default="host and process")
    ] = None,
) -> None:
    """Lend a hand: one more worker for a sweep that runs, here or on another machine that shares its disk.

    Example: calm sweep worker k4-sweet-spot-sample
    """
    import os
    import socket

    from sweeps.directory import find_sweep_directory
    from sweeps.work.worker import work

    directory, own = find_sweep_directory(place, work_dir), name or f"{socket.gethostname()}-{os.getpid()}"
    typer.echo(f"{own} works on {directory.name} until nothing is left to do; Ctrl-C saves its place")
    raise typer.Exit(work(directory, own))


@app.command()
def dashboard(
    place: Annotated[
        Path | None, typer.Argument(metavar="[SWEEP]", help="A sweep's directory or name; else the last one.")
    ] = None,
    work_dir: WorkDir = Path("runs"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1 is this machine only.")] = "127.0.0.1",
) -> None:
    """Serve optuna-dashboard on a sweep's storage until Ctrl-C.

    Example: calm sweep dashboard k4-sweet-spot-sample --port 8081
    """
    from sweeps.watch.optuna_dashboard import serve

    serve(_directory(place, work_dir), host, port, typer.echo)


def _directory(place: Path | None, work_dir: Path) -> Path:
    """Return the directory of the sweep that is meant: the one started last where none is named."""
    from calm_lightning.errors import SweepError
    from sweeps.directory import find_sweep_directory, find_sweeps

    if place is not None:
        return find_sweep_directory(place, work_dir)
    known = find_sweeps(work_dir)
    if not known:
        raise SweepError(f"there is no sweep in {work_dir}: run one (calm sweep run), or name its --work-dir")
    return known[0].resolve()


def start(sweep: SweepConfig, work_dir: Path, *, plain: bool = False, retry_failed: bool = False) -> None:
    """Run a sweep and say where its results are.

    Raises:
        SweepError: A package is not installed, or the sweep cannot go on.
    """
    _require_extra()
    from rich.console import Console

    from sweeps.run import run_sweep

    console = Console()
    result = run_sweep(sweep, work_dir, console, plain=plain, retry_failed=retry_failed)
    console.print()
    for path in result.files:
        console.print(str(path), soft_wrap=True, highlight=False)
    name = result.record.study
    console.print(f"more figures and tables: calm sweep report {name}", soft_wrap=True, highlight=False)
    if result.parent_run_id is not None:
        place = f"--uri {sweep.tracking.uri}" if sweep.tracking.uri else f"--work-dir {shlex.quote(str(work_dir))}"
        console.print(f"all runs in the browser: calm ui {place}", soft_wrap=True, highlight=False)


def list_trials(sweep: SweepConfig, work_dir: Path, as_json: bool, measure: bool = False) -> None:
    """Print what a sweep would train.

    Args:
        sweep: The sweep.
        work_dir: Directory that holds run directories.
        as_json: Print JSON and nothing else.
        measure: Time a few steps of every shape.
    """
    _require_extra()
    import json

    from rich.console import Console

    from sweeps.budget.rates import Clock
    from sweeps.corpus import corpus_dir, vocabulary_of
    from sweeps.report.plan import plan, show_plan, to_json
    from sweeps.space.points import PointMaker
    from sweeps.trials.planner import planned_trials
    from sweeps.validation import validate_sweep

    validate_sweep(sweep)
    corpus = corpus_dir(sweep, work_dir)
    vocabulary, step_seconds = vocabulary_of(sweep, corpus), None
    if measure and vocabulary is not None:
        from calm_lightning.programs import probe

        def step_seconds(config: RunConfig) -> float:
            return probe.step_seconds(config, vocabulary)

    maker = PointMaker(sweep, corpus, work_dir, vocabulary)
    trials, planned = plan(maker, Clock(work_dir, step_seconds)), planned_trials(maker)
    if as_json:
        typer.echo(json.dumps(to_json(trials, planned), indent=2))
    else:
        show_plan(Console(), sweep, trials, planned)


def _require_extra() -> None:
    """Check that the packages of the `sweeps` extra are there, before anything is trained.

    Raises:
        SweepError: One of them is not installed.
    """
    import importlib.util

    from calm_lightning.errors import SweepError

    for package in ("optuna", "plotly", "matplotlib", "simpleeval"):
        if importlib.util.find_spec(package) is None:
            raise SweepError(f"{package} is not installed: run pip install 'calm-lightning[sweeps,tracking]'")


for _command in (best, report, export, scaling, replay):  # what comes of a sweep is listed after what runs it
    app.command()(_command)

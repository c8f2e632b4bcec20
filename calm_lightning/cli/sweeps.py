"""`calm reproduce`: a whole sweep, from raw text to a Pareto front, in one command that can be interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sweeps.config import SweepConfig


def reproduce(
    name: Annotated[str, typer.Argument(help="The sweep, for example k4-sweet-spot.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes of the sweep, for example calm.trainer.max_steps=200."),
    ] = None,
    preset: Annotated[str, typer.Option(help="The sweep's budget: sample, mini, or a YAML file.")] = "sample",
    work_dir: Annotated[
        Path, typer.Option(help="Where runs go; the corpus and the MLflow store are made beside it.")
    ] = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the trials and train nothing.")] = False,
) -> None:
    """Train every model of a sweep and draw BrierLM against FLOPs with its Pareto front.

    Interrupted anywhere, the same command continues: finished stages and trials are not repeated. Changed numbers
    start a new study beside the old one.

    Example: calm reproduce k4-sweet-spot --preset sample "space.model.K=[2,4]"
    """
    from sweeps.config import find_sweep, load_sweep

    sweep = load_sweep(find_sweep(name, preset), overrides or [])
    if dry_run:
        _list_trials(sweep, work_dir)
        return
    _require_extra()
    from rich.console import Console

    from calm_lightning.run import execute
    from sweeps.reproduce import reproduce as run_sweep

    console = Console()
    result = run_sweep(sweep, work_dir, execute, console)
    console.print()
    for path in result.files:
        console.print(str(path), soft_wrap=True, highlight=False)
    if result.parent_run_id is not None:
        command = f"calm ui --uri {sweep.tracking.uri}" if sweep.tracking.uri else f"calm ui --work-dir {work_dir}"
        console.print(f"all runs in the browser: {command}", soft_wrap=True, highlight=False)


def _require_extra() -> None:
    """Check that the packages of the `sweeps` extra are there, before anything is trained.

    Raises:
        SweepError: One of them is not installed.
    """
    import importlib.util

    from calm_lightning.errors import SweepError

    for package in ("optuna", "plotly", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise SweepError(f"{package} is not installed: run pip install 'calm-lightning[sweeps,tracking]'")


def _list_trials(sweep: SweepConfig, work_dir: Path) -> None:
    """Print the trials of a sweep with their budgets in text tokens."""
    from rich.console import Console
    from rich.table import Table

    from calm_lightning.config import RunConfig
    from sweeps.report.tables import quantity
    from sweeps.reproduce import corpus_dir
    from sweeps.space.points import points

    def budget(config: RunConfig | None) -> str:
        if config is None:
            return "-"
        steps = int(config.trainer["max_steps"])
        tokens = steps * config.data.batch_tokens * int(config.trainer.get("accumulate_grad_batches", 1))
        return f"{steps} steps, {quantity(tokens)}"

    table = Table(title=f"{sweep.name}: {sweep.title}")
    for column in ("trial", "autoencoder (text tokens)", "language model (text tokens)", "shape"):
        table.add_column(column)
    for point in points(sweep, corpus_dir(sweep, work_dir), work_dir):
        model = point.model.model
        shape = f"d {model.d}, {model.layers} layers, {model.heads} heads"
        table.add_row(point.label, budget(point.autoencoder), budget(point.model), shape)
    Console().print(table)

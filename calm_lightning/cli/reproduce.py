"""`calm reproduce`: a sweep that comes with the package, from raw text to a Pareto front, in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    start a new study beside the old one. `calm sweep run` does the same with more to choose from.

    Example: calm reproduce k4-sweet-spot --preset sample "space.model.K=[2,4]"
    """
    from calm_lightning.cli.sweep import list_trials, start
    from sweeps.config import find_sweep, load_sweep

    sweep = load_sweep(find_sweep(name, preset), overrides or [])
    if dry_run:
        list_trials(sweep, work_dir, as_json=False)
    else:
        start(sweep, work_dir)

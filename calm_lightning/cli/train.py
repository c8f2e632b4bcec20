"""`calm train`: one run of one stage, and what to do next."""

from __future__ import annotations

import shlex
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from calm_lightning.config import RunConfig
    from calm_lightning.run import RunResult


class StageName(StrEnum):
    """The stages there are."""

    autoencoder = "autoencoder"
    calm = "calm"
    baseline = "baseline"


def train(
    stage: Annotated[StageName, typer.Argument(help="What to train.", show_choices=True)],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="PRESET|KEY=VALUE", help="Presets, composed left to right, then overrides."),
    ] = None,
) -> None:
    """Train and score one model, continue it, or show it again if it has finished.

    Stage calm needs a trained autoencoder with the same K, l and vocabulary: autoencoder_run=RUN_DIRECTORY.
    `calm config --presets` lists the presets.

    Example: calm train autoencoder sample-autoencoder model.K=3
    """
    from rich.console import Console

    from calm_lightning.config import load_config

    given = arguments or []
    config = load_config(given, stage=stage.value)
    from calm_lightning.run import execute

    console = Console()
    result = execute(config, progress=console.is_terminal)
    _show(console, result)
    console.print(_next_step(config, given, result), soft_wrap=True, highlight=False, markup=False)


def _show(console: Console, result: RunResult) -> None:
    """Print where the run is, its final metrics and its text."""
    from rich.table import Table

    from calm_lightning.metrics.names import UNITS

    console.print(f"run directory: {result.run_dir}", soft_wrap=True, highlight=False, markup=False)
    if result.reused:
        console.print("this run had finished before: nothing was trained now", highlight=False)
    table = Table(title=f"{result.name}, last evaluation", title_justify="left", box=None, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit", style="dim")
    for name, unit in UNITS.items():
        if name in result.metrics:
            table.add_row(name, _number(result.metrics[name]), unit)
    console.print(table)
    if result.text:
        console.print("\n" + result.text.rstrip(), highlight=False, markup=False)


def _number(value: float) -> str:
    """Return a number with five significant digits, whole numbers as they are."""
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.5g}"


def _next_step(config: RunConfig, given: Sequence[str], result: RunResult) -> str:
    """Return the command that follows this run."""
    if config.stage != "autoencoder":
        return f"all runs in the browser: calm ui --work-dir {config.work_dir}"
    from calm_lightning.config import list_presets

    known = {name.split("/")[-1] for name in list_presets()}
    partners = [argument.split("/")[-1].replace("autoencoder", "calm") for argument in given if "=" not in argument]
    presets = [name for name in partners if name in known] or ["[PRESET]..."]
    overrides = [argument for argument in given if argument.startswith(("model.", "data.", "work_dir=", "seed="))]
    quoted = map(shlex.quote, [*overrides, f"autoencoder_run={result.run_dir}"])
    return " ".join(["next: calm train calm", *presets, *quoted])

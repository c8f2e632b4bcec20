"""`calm config`: what a run would do, resolved, before anything is trained."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def config(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="PRESET|KEY=VALUE", help="Presets, composed left to right, then overrides."),
    ] = None,
    stage: Annotated[str, typer.Option(help="Resolve for this stage: autoencoder, calm or baseline.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of YAML.")] = False,
    presets: Annotated[bool, typer.Option("--presets", help="List the presets and print nothing else.")] = False,
) -> None:
    """Print the configuration that presets and overrides resolve to.

    The output is a configuration file: saved as FILE.yaml, it can be given wherever a preset can.

    Example: calm config sample-calm model.K=8 --stage calm
    """
    import json
    from dataclasses import asdict

    from calm_lightning.config import load_config, to_yaml

    if presets:
        _list_presets()
        return
    fixed: dict[str, Any] = {"stage": stage} if stage else {}
    resolved = load_config(arguments or [], **fixed)
    typer.echo(json.dumps(asdict(resolved), indent=2) if as_json else to_yaml(resolved).rstrip())


def _list_presets() -> None:
    """Print every preset of a run with the first line of its comment."""
    from rich.console import Console
    from rich.table import Table

    from calm_lightning.config import find_preset, list_presets

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name in list_presets():
        first = find_preset(name).read_text(encoding="utf-8").split("\n", 1)[0]
        table.add_row(name, first.removeprefix("#").strip())
    Console().print(table, highlight=False, markup=False)

"""`calm data mixture`: what of each domain a run would read, and how often."""

from __future__ import annotations

from typing import Annotated

import typer

Arguments = Annotated[
    list[str], typer.Argument(metavar="[PRESET|FILE|KEY=VALUE]...", help="A run's configuration, as for `calm train`.")
]


def mixture(
    arguments: Arguments,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show a run's share of each domain, and how many times it would read it.

    Example: calm data mixture sample-calm 'data.weights={Jane Austen Novels: 1, King James Bible: 3}'
    """
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from calm_lightning.config import load_config
    from calm_lightning.data.datamodule import PileDataModule

    config = load_config(arguments)
    run_tokens = (
        config.trainer["max_steps"] * config.trainer.get("accumulate_grad_batches", 1) * config.data.batch_tokens
    )
    portions = PileDataModule(config.data, config.seed).portions(run_tokens)
    if as_json:
        typer.echo(json.dumps({name: asdict(portion) for name, portion in portions.items()}, indent=2))
        return
    table = Table(title=f"what {run_tokens:,} training tokens are")
    table.add_column("domain")
    for heading in ("tokens in the corpus", "share of training", "tokens read", "epochs", "left over by cutting"):
        table.add_column(heading, justify="right")
    for name, portion in sorted(portions.items(), key=lambda item: -item[1].share):
        table.add_row(
            escape(name),
            f"{portion.tokens:,}",
            f"{portion.share:.2%}",
            f"{portion.read:,.0f}",
            f"{portion.epochs:.2f}",
            f"{portion.left_over / portion.tokens:.2%}" if portion.tokens else "",
        )
    Console().print(table)

"""`calm flops`: what presets cost, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from calm_lightning.config import RunConfig
    from calm_lightning.flops.cost import ModelCost
    from calm_lightning.flops.count import Convention


def flops(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="PRESET|KEY=VALUE", help="Presets to count, and overrides applied to each."),
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="Count as the paper does, to compare with its table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of rows and nothing else.")] = False,
) -> None:
    """Print parameters, training FLOPs and inference FLOPs per token of presets, by component.

    Without a preset, the paper's six models. A training cost covers the preset's whole token budget and, for
    CALM, the training of its autoencoder.

    Example: calm flops calm-m transformer-s --paper
    """
    from calm_lightning.flops.paper import PUBLISHED

    given = arguments or []
    overrides = [argument for argument in given if "=" in argument]
    presets = [argument for argument in given if "=" not in argument] or list(PUBLISHED)
    costs = [_cost(preset, overrides, paper) for preset in presets]
    if as_json:
        _print_json(costs)
        return
    from rich.console import Console

    console = Console()
    console.print(_summary(costs, compare=paper and not overrides))
    console.print(_by_component(costs))


def _cost(preset: str, overrides: Sequence[str], paper: bool) -> ModelCost:
    """Return the cost of one preset over its token budget (in the paper's convention: over the paper's)."""
    from calm_lightning.config import load_config
    from calm_lightning.errors import ConfigError
    from calm_lightning.flops import autoencoder_flops, for_stage
    from calm_lightning.flops.cost import model_cost
    from calm_lightning.flops.paper import AUTOENCODER_TOKENS, LANGUAGE_MODEL_TOKENS

    config = load_config([preset, *overrides])
    model, V, T = config.model, config.model.vocabulary, config.data.block_tokens
    if V is None:
        raise ConfigError(
            f"{preset}: model.vocabulary is not set and no corpus is read here; add model.vocabulary=1024"
        )
    convention: Convention = "paper" if paper else "exact"
    report = for_stage(config.stage, model, config.autoencoder, V, T, convention)
    if config.stage == "autoencoder":
        return model_cost(preset, report, AUTOENCODER_TOKENS if paper else _token_budget(config))
    tokens = LANGUAGE_MODEL_TOKENS if paper else _token_budget(config)
    if config.stage == "baseline":
        return model_cost(preset, report, tokens)
    autoencoder = autoencoder_flops(config.autoencoder, model.K, model.latent_width(), V, T, convention)
    autoencoder_tokens = AUTOENCODER_TOKENS if paper else _token_budget(load_config(["model/autoencoder"]))
    return model_cost(preset, report, tokens, autoencoder, autoencoder_tokens)


def _token_budget(config: RunConfig) -> float:
    """Return the text tokens that a configuration trains on."""
    trainer = config.trainer
    return float(trainer["max_steps"] * trainer["accumulate_grad_batches"] * config.data.batch_tokens)


def _print_json(costs: Sequence[ModelCost]) -> None:
    """Write the rows to standard output."""
    import json
    from dataclasses import asdict

    typer.echo(json.dumps([asdict(cost) for cost in costs], indent=2))


def _count(value: float) -> str:
    """Return a parameter count in thousands, millions or billions."""
    if value >= 1e9:
        return f"{value / 1e9:.3f}B"
    return f"{value / 1e6:.1f}M" if value >= 1e6 else f"{value / 1e3:.1f}k"


def _share(value: float, total: float) -> str:
    """Return a number and its share of a total, or nothing for 0."""
    return f"{value:.2e} {100 * value / total:3.0f} %" if value else ""


def _totals(cost: ModelCost, compare: bool) -> list[str]:
    """Return the cells of one model's totals."""
    from calm_lightning.flops.paper import PUBLISHED

    if not compare:
        return [_count(cost.parameters), f"{cost.training_flops:.2e}", f"{cost.inference_flops_per_token:.2e}"]
    published = PUBLISHED.get(cost.preset.split("/")[-1])
    cells = []
    for name, unit in (("parameters", 1e6), ("training_flops", 1e20), ("inference_flops_per_token", 1e8)):
        value = getattr(cost, name) / unit
        cell = f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.3g}"
        if published is not None:
            target = getattr(published, name) / unit
            cell += f" ({target:.4g}, {100 * (value / target - 1):+.1f} %)"
        cells.append(cell)
    return cells


def _summary(costs: Sequence[ModelCost], compare: bool) -> Table:
    """Return the table of totals; with `compare`, beside the published figures and the difference to them."""
    from rich import box
    from rich.table import Table

    title = f"Cost, {costs[0].convention} convention" + (" (in brackets: published, difference)" if compare else "")
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title_justify="left")
    table.add_column("preset", no_wrap=True)
    for heading, unit in (("parameters", "1e6"), ("training FLOPs", "1e20"), ("inference FLOPs/token", "1e8")):
        table.add_column(f"{heading}, {unit}" if compare else heading, justify="right")
    for cost in costs:
        table.add_row(cost.preset, *_totals(cost, compare))
    return table


def _by_component(costs: Sequence[ModelCost]) -> Table:
    """Return the table of components with their shares."""
    from rich import box
    from rich.table import Table

    table = Table(
        title="By component", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title_justify="left"
    )
    table.add_column("preset", no_wrap=True)
    table.add_column("component", no_wrap=True)
    for heading in ("parameters", "training FLOPs", "inference FLOPs/token"):
        table.add_column(heading, justify="right")
    for cost in costs:
        for row, (name, part) in enumerate(cost.components.items()):
            table.add_row(
                cost.preset if row == 0 else "",
                name,
                f"{part.parameters:,}" if part.parameters else "",
                _share(part.training_flops, cost.training_flops),
                _share(part.inference_flops_per_token, cost.inference_flops_per_token),
                end_section=row == len(cost.components) - 1,
            )
    return table

"""`--dry-run`: the trials of a sweep before anything is trained, what each will take, and whether they compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from calm_lightning.config import identity
from calm_lightning.errors import ConfigError
from sweeps.budget.fairness import differences
from sweeps.budget.rates import Clock
from sweeps.config import SweepConfig
from sweeps.report.tables import quantity, scientific
from sweeps.space.points import Point, PointMaker, flatten, grid
from sweeps.trials.planner import draw_point, fixed_points, seeds_of
from sweeps.trials.samplers import ADAPTIVE, GRID, mirror

_MOST = 2000
_FIRST_DRAWS = 10
"""Draws of an adaptive sampler that are listed: without results they are chance."""


@dataclass(frozen=True)
class PlannedTrial:
    """One line of a dry run.

    Attributes:
        point: The point.
        seed: Its seed.
        trains_autoencoder: Whether it is the first one that needs its autoencoder.
        seconds: How long training will take, None where that is not known.
    """

    point: Point
    seed: int
    trains_autoencoder: bool
    seconds: float | None


def list_points(maker: PointMaker) -> list[Point]:
    """Return the points that a sweep will try, refused ones included, as far as they are known before any result.

    A sampler that learns draws its first points without results; those are listed.

    Raises:
        ConfigError: A configuration contradicts itself, or the space has more than `_MOST` points.
    """
    sweep, found = maker.sweep, []
    found += fixed_points(maker)
    known = {point.slug for point in found}
    if sweep.sampler.name == GRID:
        combinations = list(islice(grid(maker), sweep.sampler.points))
        if len(combinations) > _MOST:
            raise ConfigError(
                f"{len(combinations)} points are too many to list: narrow the space, or set sampler.points"
            )
        return found + [point for values in combinations if (point := maker.make(values)).slug not in known]
    if not maker.parameters:
        return found
    past, asked = mirror(sweep.objectives, []), sweep.sampler.points or 0
    for number in range(min(asked, _FIRST_DRAWS) if sweep.sampler.name in ADAPTIVE else asked):
        drawn = draw_point(maker, past, number, known)
        if drawn is None:
            break
        known.add(drawn[0].slug)
        found.append(drawn[0])
    return found


def plan(maker: PointMaker, clock: Clock) -> list[PlannedTrial]:
    """Return the trials that a sweep will have, as far as they are known.

    Args:
        maker: Makes its points.
        clock: Tells how long training takes.
    """
    trained, trials = set[str](), []
    for point in list_points(maker):
        for asked in seeds_of(maker.sweep):
            seed = point.model.seed if asked is None else asked
            seeded = point.seeded(seed, maker.sweep.autoencoder_seed) if maker.varies_seeds else point
            name = identity(seeded.autoencoder) if seeded.autoencoder else ""
            first = bool(name) and name not in trained and not point.refused
            trained |= {name} if first else set()
            seconds = None
            if point.forecast and not point.refused:
                seconds = clock.of_point(seeded.model, seeded.autoencoder, point.forecast, first)
            trials.append(PlannedTrial(point, seed, first, seconds))
    return trials


def totals(trials: Sequence[PlannedTrial]) -> dict[str, float]:
    """Return what all trials take together: FLOPs with every autoencoder counted once, and seconds as far as known."""
    kept = [trial for trial in trials if not trial.point.refused and trial.point.forecast is not None]
    flops = sum(
        trial.point.forecast.stage_train_flops
        + (trial.point.forecast.autoencoder_flops if trial.trains_autoencoder else 0.0)
        for trial in kept
        if trial.point.forecast is not None
    )
    saved = sum(
        trial.point.forecast.autoencoder_flops
        for trial in kept
        if trial.point.forecast is not None and not trial.trains_autoencoder
    )
    known = [trial.seconds for trial in kept if trial.seconds is not None]
    seconds = sum(known) if known and len(known) == len(kept) else 0.0
    return {"trials": len(kept), "train_flops": flops, "saved_flops": saved, "seconds": seconds}


def show_plan(console: Console, sweep: SweepConfig, trials: Sequence[PlannedTrial], planned: int | None) -> None:
    """Print the trials, what they take together, what is left out and why, and in what models differ.

    Args:
        console: Where to print.
        sweep: The sweep.
        trials: Its trials.
        planned: Trials that it will have, None where there is no end.
    """
    table = Table(title=f"{sweep.name}: {sweep.title}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    several = len(seeds_of(sweep)) > 1
    table.add_column("trial", justify="right")
    table.add_column("model")
    if several:
        table.add_column("seed", justify="right")
    for name in ("params", "steps", "tokens", "FLOPs", "autoenc.", "memory", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.caption = (
        "params: the language model's. FLOPs: training, the autoencoder's included; its own share is in brackets where "
        "another trial trains it."
    )
    table.caption_justify = "left"
    kept = [trial for trial in trials if not trial.point.refused]
    for number, trial in enumerate(kept):
        table.add_row(str(number), *_cells(trial, several))
    console.print(table)
    for line in _notes(sweep, trials, kept, planned):
        console.print(line, highlight=False, soft_wrap=True)


def _cells(trial: PlannedTrial, several: bool) -> list[str]:
    model = [trial.point.label, str(trial.seed)] if several else [trial.point.label]
    costs = trial.point.forecast
    if costs is None:
        return [*model, *["?"] * 7]
    below = scientific(costs.autoencoder_flops) if costs.autoencoder_flops else "-"
    return [
        *model,
        quantity(costs.parameters),
        f"{costs.steps:,}",
        quantity(costs.tokens),
        scientific(costs.train_flops),
        below if trial.trains_autoencoder or not costs.autoencoder_flops else f"({below})",
        f"{costs.memory_bytes / 1e9:.1f} GB" if costs.memory_bytes > 1e8 else f"{costs.memory_bytes / 1e6:.0f} MB",
        duration(trial.seconds) if trial.seconds is not None else "?",
    ]


def _notes(
    sweep: SweepConfig, trials: Sequence[PlannedTrial], kept: Sequence[PlannedTrial], planned: int | None
) -> list[str]:
    """Return the sentences below the table."""
    sums, lines = totals(trials), []
    workers = sweep.launch.workers
    line = f"together {scientific(sums['train_flops'])} training FLOPs"
    if sums["saved_flops"]:
        line += f"; sharing autoencoders saves {scientific(sums['saved_flops'])}"
    if sums["seconds"]:
        line += (
            f"; about {duration(sums['seconds'] / workers)} of training with {workers} worker(s), evaluations on top"
        )
    else:
        line += "; time is known once a run of each stage has finished in this work directory, or with --measure"
    lines.append(line)
    if sweep.sampler.name in ADAPTIVE:
        lines.append(
            f"{sweep.sampler.name} learns: its further points (of {planned} trials in all) follow from results"
        )
    refused = {trial.point.label: trial.point.refused for trial in trials if trial.point.refused}
    lines += [f"left out: {label}: {why}" for label, why in refused.items()]
    swept = [parameter for parameter, _ in flatten(sweep.derived)] + [key for t in kept for key in t.point.values]
    for stage in ("calm", "baseline"):
        configs = [trial.point.model for trial in kept if trial.point.stage == stage]
        found = differences(configs, swept)
        lines += [f"differs between {stage} models, and is not swept: {key} {_listed(v)}" for key, v in found.items()]
    return lines


def _listed(values: Sequence[Any]) -> str:
    shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values[:6]]
    return ", ".join(shown) + (f" and {len(values) - 6} more" if len(values) > 6 else "")


def duration(seconds: float) -> str:
    """Return a time in words of at most two units: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def to_json(trials: Sequence[PlannedTrial], planned: int | None) -> dict[str, Any]:
    """Return a dry run as plain JSON values."""
    return {
        "planned": planned,
        "totals": totals(trials),
        "trials": [
            {
                "label": trial.point.label,
                "slug": trial.point.slug,
                "seed": trial.seed,
                "stage": trial.point.stage,
                "values": trial.point.values,
                "refused": trial.point.refused,
                "trains_autoencoder": trial.trains_autoencoder,
                "seconds": trial.seconds,
                **(trial.point.forecast.names() if trial.point.forecast else {}),
            }
            for trial in trials
        ],
    }

"""`calm sweep replay`: what the Pareto rule would have done to sweeps that are complete."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calm_lightning.cli import options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sweeps.pruning.config import PruningConfig
    from sweeps.pruning.replay import Trial


class Clock(StrEnum):
    """What time is measured in."""

    flops = "flops"
    seconds = "seconds"


def replay(
    places: Annotated[list[Path], typer.Argument(metavar="SWEEP...", help="Sweeps: directories or names.")],
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another setting of the rule, for example warmup=0.1."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Trials side by side.")] = 4,
    replays: Annotated[int, typer.Option(min=1, help="Orders of the trials, the first as recorded.")] = 100,
    clock: Annotated[Clock, typer.Option(help="flops: all workers equally fast; seconds: as recorded.")] = Clock.flops,
    seed: Annotated[int, typer.Option(help="Seed of the orders.")] = 0,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="Also change one setting at a time.")] = False,
    work_dir: Annotated[Path, typer.Option(help="Directory that holds run directories.")] = Path("runs"),
    as_json: options.AsJson = False,
) -> None:
    """Replay complete sweeps under the Pareto rule: false stops, FLOPs saved, and who would have been stopped.

    Nothing is trained and nothing is changed. Settings are those of the first sweep's `pruning` section.

    Example: calm sweep replay NAME --set warmup=0.1 --workers 8
    """
    import json

    from rich.console import Console

    from sweeps.pruning.evidence import VARIATIONS
    from sweeps.pruning.evidence import sensitivity as vary
    from sweeps.pruning.report import evidence_json, evidence_table, outcome_table, report

    sweeps, settings = _read(places, work_dir, setting or [])
    found = report(sweeps, settings, workers=workers, replays=replays, seed=seed, clock=clock.value)
    varied = []
    if sensitivity:
        varied = vary(list(sweeps.values()), settings, VARIATIONS, workers=workers, replays=replays)
    if as_json:
        rows = [{"key": key, "value": value, **evidence_json(one)} for key, value, one in varied]
        typer.echo(json.dumps(found.to_json() | ({"sensitivity": rows} if sensitivity else {}), indent=2))
        return
    console = Console()
    title = f"Replayed {replays} times with {workers} workers"
    console.print(evidence_table([(", ".join(sweeps), found.evidence)], title))
    if any(one.at is not None for one in found.outcomes):
        console.print(outcome_table(found.outcomes))
    if varied:
        table = [(f"{key}={value}", one) for key, value, one in varied]
        console.print(evidence_table(table, "One setting changed at a time", head="setting"))


def _read(
    places: Sequence[Path], work_dir: Path, changes: Sequence[str]
) -> tuple[Mapping[str, Sequence[Trial]], PruningConfig]:
    """Return the complete trials of sweeps by name, and the settings of the rule.

    Raises:
        SweepError: A directory holds no sweep, or fewer than two complete trials.
        ConfigError: An unknown or impossible setting.
    """
    from omegaconf import OmegaConf

    from calm_lightning.config import merge
    from calm_lightning.errors import SweepError
    from sweeps.config import INFERENCE_FLOPS
    from sweeps.directory import find_sweep_directory
    from sweeps.pruning.config import PruningConfig, validate_pruning
    from sweeps.pruning.replay import recorded
    from sweeps.trials.reading import read_sweep

    found: dict[str, Sequence[Trial]] = {}
    records = [read_sweep(find_sweep_directory(place, work_dir)) for place in places]
    for place, record in zip(places, records, strict=True):
        name = record.study if record.study not in found else str(place)
        try:
            found[name] = recorded(record.series, inference=INFERENCE_FLOPS in record.config.objectives)
        except SweepError as error:
            raise SweepError(f"{place} has {error}") from None
    first = OmegaConf.structured(records[0].config.pruning)
    settings = merge(PruningConfig, [(str(places[0]), first)], changes)
    validate_pruning(settings)
    return found, settings

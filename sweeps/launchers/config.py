"""LaunchConfig: where the workers of a sweep run, how many there are, and what each of them gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from omegaconf import OmegaConf

from calm_lightning.config import merge

Options = TypeVar("Options")


@dataclass
class LaunchConfig:
    """Where workers run.

    Attributes:
        launcher: "local" (processes on this machine), "ray" (a Ray cluster) or "slurm" (jobs of a Slurm cluster).
        workers: Trials that are worked on at the same time.
        cores: CPU cores of each worker; null shares out those of the machine or of the Ray cluster, and is 1 on Slurm.
        gpus: GPUs of each worker, for example 1, or 0.5 for two workers on each; null shares out those of the machine
            or of the Ray cluster, and is none on Slurm.
        beat_seconds: Seconds between two signs of life of a worker.
        dead_after_seconds: Seconds without one after which a worker on another machine counts as dead and its trial
            is given to the next; on its own machine that is known at once.
        options: Further settings of the launcher (`sweeps.launchers.ray`, `sweeps.launchers.slurm`); "local" has none
            and takes no notice of others', so that a cluster's sweep also runs on a laptop.
    """

    launcher: str = "local"
    workers: int = 1
    cores: int | None = None
    gpus: float | None = None
    beat_seconds: float = 5.0
    dead_after_seconds: float = 60.0
    options: dict[str, Any] = field(default_factory=dict)


def launch_problems(settings: LaunchConfig) -> list[str]:
    """Return what makes no sense, one clause each; whether the resources are there is found out when workers start."""
    problems = []
    if settings.workers < 1:
        problems.append(f"launch.workers={settings.workers} must be at least 1")
    if settings.cores is not None and settings.cores < 1:
        problems.append(f"launch.cores={settings.cores} must be at least 1, or null to share out those there are")
    if settings.gpus is not None and (settings.gpus < 0 or (settings.gpus > 1 and settings.gpus % 1)):
        problems.append(f"launch.gpus={settings.gpus:g} must be a whole number, or below 1 to share a GPU")
    if not 0 < 2 * settings.beat_seconds < settings.dead_after_seconds:
        problems.append(
            f"launch.dead_after_seconds={settings.dead_after_seconds:g} must be more than two beats of "
            f"launch.beat_seconds={settings.beat_seconds:g}"
        )
    return problems


def read_options(schema: type[Options], options: Mapping[str, Any]) -> Options:
    """Return a launcher's own settings.

    Args:
        schema: The dataclass of that launcher's settings.
        options: `launch.options` of the sweep.

    Raises:
        ConfigError: An unknown key or a value of the wrong type.
    """
    return merge(schema, [("launch.options", OmegaConf.create(dict(options)))])

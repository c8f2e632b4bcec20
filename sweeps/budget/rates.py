"""How fast runs are trained here: what a forecast needs to speak of time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from calm_lightning.config import RunConfig
from calm_lightning.metrics import names
from calm_lightning.stages.config import EvaluationConfig, OptimConfig
from sweeps.budget.forecast import Forecast

STAGES = ("autoencoder", "calm", "baseline")
_LEAST_SECONDS = 5.0
"""Shorter runs say more about starting up than about speed."""
_LATEST = 20


def measured_rates(work_dir: Path) -> dict[str, float]:
    """Return the median training FLOP/s of finished runs by stage; stages without one are left out.

    Args:
        work_dir: Directory that holds run directories.
    """
    found = {}
    for stage in STAGES:
        results = sorted((work_dir / stage).glob("*/result.json"), key=lambda path: path.stat().st_mtime)
        rates = [rate for path in results[-_LATEST:] if (rate := _rate(path)) is not None]
        if rates:
            found[stage] = median(rates)
    return found


def _rate(path: Path) -> float | None:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))["metrics"]
        seconds = float(metrics[names.SECONDS])
        return float(metrics[names.TRAIN_FLOPS]) / seconds if seconds > _LEAST_SECONDS else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not a run, or not one that tells


class Clock:
    """How long training takes: measured on a few steps where that is asked for, else at the rates of earlier runs.

    Args:
        work_dir: Directory that holds run directories.
        step_seconds: Measures a step of a run (`calm_lightning.programs.probe.step_seconds`); None measures nothing.
    """

    def __init__(self, work_dir: Path, step_seconds: Callable[[RunConfig], float] | None = None) -> None:
        self._rates = measured_rates(work_dir)
        self._step_seconds = step_seconds
        self._measured: dict[str, float] = {}

    def seconds(self, config: RunConfig, flops: float) -> float | None:
        """Return how long a run will train, None where nothing is known about it.

        Args:
            config: The run.
            flops: Its training FLOPs.
        """
        if self._step_seconds is None:
            rate = self._rates.get(config.stage)
            return flops / rate if rate else None
        shape = replace(config, name="", seed=0, trainer={**config.trainer, "max_steps": 1}, optim=OptimConfig())
        key = repr(replace(shape, evaluation=EvaluationConfig()))
        if key not in self._measured:
            self._measured[key] = self._step_seconds(config)
        return int(config.trainer["max_steps"]) * self._measured[key]

    def of_point(
        self, model: RunConfig, autoencoder: RunConfig | None, costs: Forecast, with_autoencoder: bool
    ) -> float | None:
        """Return how long a point will train, None where that is not known.

        Args:
            model: The language model's run.
            autoencoder: Its autoencoder's run; None for the baseline.
            costs: What the point will take.
            with_autoencoder: Whether its autoencoder has to be trained for it.
        """
        above = self.seconds(model, costs.stage_train_flops)
        if autoencoder is None or not with_autoencoder:
            return above
        below = self.seconds(autoencoder, costs.autoencoder_flops)
        return above + below if above is not None and below is not None else None

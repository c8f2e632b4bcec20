"""How fast this work directory's runs were trained: what a forecast needs to speak of time."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

from calm_lightning.metrics import names
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


def seconds_of(costs: Forecast, stage: str, rates: dict[str, float], with_autoencoder: bool) -> float | None:
    """Return how long training a point will take at measured rates, None where they are not known.

    Args:
        costs: What the point will take.
        stage: "calm" or "baseline".
        rates: See `measured_rates`.
        with_autoencoder: Whether its autoencoder has to be trained for it.
    """
    if stage not in rates or (with_autoencoder and costs.autoencoder_flops and "autoencoder" not in rates):
        return None
    below = costs.autoencoder_flops / rates["autoencoder"] if with_autoencoder and costs.autoencoder_flops else 0.0
    return below + costs.stage_train_flops / rates[stage]

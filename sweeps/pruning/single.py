"""Optuna's own pruners, for studies with BrierLM as their only objective.

They compare trials at the same step. Here a step is a per cent of a trial's own budget of training FLOPs, so that
models with different K, which take different numbers of optimiser steps, meet.
"""

from __future__ import annotations

from typing import Any

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, SuccessiveHalvingPruner

from calm_lightning.errors import ConfigError
from sweeps.pruning.config import PruningConfig

WHOLE = 100
"""Steps of a complete trial: per cent of its budget."""
_PRUNERS: dict[str, tuple[type[BasePruner], dict[str, Any]]] = {
    "asha": (SuccessiveHalvingPruner, {"min_resource": 10, "reduction_factor": 3}),
    "hyperband": (HyperbandPruner, {"min_resource": 10, "max_resource": WHOLE, "reduction_factor": 3}),
    "median": (MedianPruner, {"n_startup_trials": 5, "n_warmup_steps": 25}),
}


def make_pruner(settings: PruningConfig) -> BasePruner:
    """Return Optuna's pruner of a single-objective rule.

    Raises:
        ConfigError: `pruning.options` are not the pruner's.
    """
    kind, options = _PRUNERS[settings.rule]
    try:
        return kind(**{**options, **settings.options})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"pruning.options={settings.options} do not suit {settings.rule}: {error}") from None


def share(train_flops: float, final_flops: float) -> int:
    """Return the step at which Optuna's pruners see an evaluation: per cent of the trial's budget, 1 to 100."""
    return max(1, min(WHOLE, round(WHOLE * train_flops / final_flops)))

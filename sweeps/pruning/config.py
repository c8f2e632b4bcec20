"""PruningConfig: whether and when a trial is stopped early."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from calm_lightning.errors import ConfigError

PARETO, NONE = "pareto", "none"
SINGLE = ("asha", "hyperband", "median")
"""Optuna's pruners, for studies with one objective."""
RULES = (PARETO, NONE, *SINGLE)


@dataclass
class PruningConfig:
    """The rule by which trials are stopped early, and how careful it is.

    All but `rule` and `options` are settings of the rule "pareto" (`sweeps.pruning.rule`).

    Attributes:
        rule: "none", "pareto", or with BrierLM as the only objective "asha", "hyperband" or "median".
        min_finished: Trials that must be finished before anything is stopped.
        min_evaluations: Evaluations after the warm-up that a trial must have.
        warmup: Fraction of a trial's own training before which its evaluations are not judged.
        confidence: Confidence of its intervals, each of which holds for all evaluations at once.
        training_noise: Fluctuation of a model's BrierLM from one evaluation to the next that is not growth and that its
            standard error does not see, as a fraction of BrierLM.
        noise_floor: BrierLM, percent, below which a score is taken to be this.
        optimism: Factor of the growth that a trial has shown, for its extrapolation; 1 takes it as it is.
        least_growth: Exponent of BrierLM in training FLOPs with which every trial is assumed to grow at least.
        steepest_growth: Exponent with which no trial is assumed to grow faster.
        options: Further arguments of Optuna's pruner.
    """

    rule: str = NONE
    min_finished: int = 3
    min_evaluations: int = 3
    warmup: float = 0.25
    confidence: float = 0.95
    training_noise: float = 0.03
    noise_floor: float = 0.2
    optimism: float = 1.25
    least_growth: float = 0.5
    steepest_growth: float = 8.0
    options: dict[str, Any] = field(default_factory=dict)


def validate_pruning(settings: PruningConfig) -> None:
    """Check that every setting makes sense.

    Raises:
        ConfigError: One does not; the message names its key.
    """
    if settings.rule not in RULES:
        raise ConfigError(f"pruning.rule={settings.rule} must be one of {', '.join(RULES)}")
    if not 0.5 <= settings.confidence < 1:
        raise ConfigError(
            f"pruning.confidence={settings.confidence} must be at least 0.5 and below 1, for example 0.95"
        )
    if not 0 <= settings.warmup < 1:
        raise ConfigError(
            f"pruning.warmup={settings.warmup} must be a fraction of a trial's training: 0 or more, below 1"
        )
    for key, least in (("min_finished", 1), ("min_evaluations", 1), ("optimism", 1.0), ("noise_floor", 0.0)):
        if not getattr(settings, key) >= least:
            raise ConfigError(f"pruning.{key}={getattr(settings, key)} must be at least {least:g}")
    for key in ("training_noise", "least_growth"):
        if not getattr(settings, key) >= 0:
            raise ConfigError(f"pruning.{key}={getattr(settings, key)} must not be negative")
    if not settings.steepest_growth >= settings.least_growth:
        raise ConfigError(
            f"pruning.steepest_growth={settings.steepest_growth} must not be below "
            f"pruning.least_growth={settings.least_growth}"
        )

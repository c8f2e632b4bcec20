"""The budget rule: from a number of text tokens or FLOPs to the optimiser steps of each model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from calm_lightning.config import RunConfig
from calm_lightning.errors import ConfigError
from calm_lightning.flops.count import for_stage
from calm_lightning.flops.report import FlopsReport
from sweeps.config import BudgetConfig

STEPS, TOKENS, FLOPS = "steps", "tokens", "flops"
RULES = (STEPS, TOKENS, FLOPS)


def check_budget(budget: BudgetConfig) -> None:
    """Check a budget by itself.

    Raises:
        ConfigError: The rule is unknown, or lacks its number.
    """
    problems = []
    if budget.rule not in RULES:
        problems.append(f"budget.rule={budget.rule} must be one of {', '.join(RULES)}")
    for rule, key in ((TOKENS, "tokens"), (FLOPS, "flops")):
        amount = getattr(budget, key)
        if budget.rule == rule and amount is None:
            problems.append(f"budget.rule={rule} needs budget.{key}")
        if budget.rule != rule and amount is not None:
            problems.append(f"budget.{key}={amount:g} is used with budget.rule={rule} only")
    for key in ("tokens", "flops", "autoencoder_tokens"):
        amount = getattr(budget, key)
        if amount is not None and not (amount > 0 and math.isfinite(amount)):
            problems.append(f"budget.{key}={amount} must be above 0")
    if budget.evaluations is not None and budget.evaluations < 1:
        problems.append(f"budget.evaluations={budget.evaluations} must be at least 1")
    if budget.warmup_fraction is not None and not 0 <= budget.warmup_fraction < 1:
        problems.append(f"budget.warmup_fraction={budget.warmup_fraction} must lie in [0, 1)")
    if problems:
        raise ConfigError("; ".join(problems))


def report_of(config: RunConfig, vocabulary: int) -> FlopsReport:
    """Return the FLOPs of what a run trains.

    Args:
        config: The run; of a language model with the shape of its autoencoder in section `autoencoder`.
        vocabulary: Vocabulary size V of the corpus, where the run sets none.
    """
    V = config.model.vocabulary or vocabulary
    return for_stage(config.stage, config.model, config.autoencoder, V, config.data.block_tokens)


def step_tokens(config: RunConfig) -> int:
    """Return the text tokens of one optimiser step."""
    return config.data.batch_tokens * int(config.trainer.get("accumulate_grad_batches", 1))


def step_flops(config: RunConfig, vocabulary: int) -> float:
    """Return the training FLOPs of one optimiser step of this stage alone."""
    return step_tokens(config) * report_of(config, vocabulary).training_per_token_total


def train_flops(config: RunConfig, vocabulary: int) -> float:
    """Return the training FLOPs of a whole run of this stage alone."""
    return int(config.trainer["max_steps"]) * step_flops(config, vocabulary)


def apply_budget(
    budget: BudgetConfig, model: RunConfig, autoencoder: RunConfig | None, vocabulary: int
) -> tuple[RunConfig, RunConfig | None]:
    """Return the configurations of a point with the steps that the budget gives them.

    Args:
        budget: The budget.
        model: The language model's run, with the shape of its autoencoder in section `autoencoder`.
        autoencoder: Its autoencoder's run; None for the baseline.
        vocabulary: Vocabulary size V of the corpus.

    Raises:
        ConfigError: The budget does not pay for a single step.
    """
    if autoencoder is not None and budget.autoencoder_tokens is not None:
        steps = max(1, math.ceil(budget.autoencoder_tokens / step_tokens(autoencoder)))
        autoencoder = replace(autoencoder, trainer=_with(autoencoder.trainer, max_steps=steps))
    if budget.rule == TOKENS:
        assert budget.tokens is not None
        steps = max(1, math.ceil(budget.tokens / step_tokens(model)))
        model = replace(model, trainer=_with(model.trainer, max_steps=steps))
    elif budget.rule == FLOPS:
        assert budget.flops is not None
        below = train_flops(autoencoder, vocabulary) if autoencoder and budget.include_autoencoder else 0.0
        steps = math.floor((budget.flops - below) / step_flops(model, vocabulary) + 1e-9)
        if steps < 1:
            raise ConfigError(
                f"budget.flops={budget.flops:g} does not pay for a step of the language model "
                f"({step_flops(model, vocabulary):.3g}"
                + (f", after the autoencoder's {below:.3g}" if below else "")
                + "): raise it, or lower budget.autoencoder_tokens"
            )
        model = replace(model, trainer=_with(model.trainer, max_steps=steps))
    return _cadence(budget, model), autoencoder


def _cadence(budget: BudgetConfig, model: RunConfig) -> RunConfig:
    """Return the run with evaluations and warm-up spread over its steps."""
    steps = int(model.trainer["max_steps"])
    if budget.evaluations is not None:
        every = max(1, math.ceil(steps / budget.evaluations))
        model = replace(model, evaluation=replace(model.evaluation, every_steps=every))
    if budget.warmup_fraction is not None:
        model = replace(model, optim=replace(model.optim, warmup_steps=round(budget.warmup_fraction * steps)))
    return model


def _with(trainer: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    return {**trainer, **changes}

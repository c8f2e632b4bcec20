"""AdamW and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn
from torch.optim import AdamW

from calm_lightning.stages.config import OptimConfig


def make_optimizer(module: nn.Module, config: OptimConfig) -> AdamW:
    """Return fused AdamW over the trainable parameters; matrices decay, norms and biases do not."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), eps=config.eps, fused=True)


def schedule(config: OptimConfig, max_steps: int) -> Callable[[int], float]:
    """Return the learning rate at a step, as a fraction of the peak.

    Linear warm-up over `warmup_steps`, then constant, or linear or cosine decay to `final_lr_ratio` at `max_steps`.
    """

    def ratio(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        progress = min(1.0, (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps))
        if config.schedule == "linear":
            return 1 - (1 - config.final_lr_ratio) * progress
        if config.schedule == "cosine":
            return config.final_lr_ratio + (1 - config.final_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2
        return 1.0

    return ratio

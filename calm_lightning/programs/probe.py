"""How fast a configuration would be trained here, measured on a few steps with random tokens.

What is left out: reading data, logging, checkpoints and evaluations. The steps are real ones otherwise, forward and
backward pass and optimiser, at the run's precision and batch size.
"""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median

import torch

from calm_lightning.assembly import build_stage, resolve_precision
from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.config import RunConfig
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.programs.arithmetic import BF16, best_device
from calm_lightning.stages.allocator import keep_freed_memory
from calm_lightning.stages.base import Stage
from calm_lightning.stages.calm import CalmStage
from calm_lightning.stages.optim import make_optimizer

_STEPS = 3


def step_seconds(config: RunConfig, vocabulary: int, steps: int = _STEPS) -> float:
    """Return the median seconds of one optimiser step, after one that is not counted.

    Args:
        config: The run; of a language model with the shape of its autoencoder, which is made anew.
        vocabulary: Vocabulary size V of its corpus, where the run sets none.
        steps: Steps to measure.
    """
    V = config.model.vocabulary or vocabulary
    config = replace(config, model=replace(config.model, vocabulary=V, l=config.model.latent_width()))
    keep_freed_memory()
    device = best_device()
    stage = _stage(config, V).to(device).train()
    optimizer = make_optimizer(stage, config.optim)
    T = config.data.block_tokens
    tokens_BT = torch.randint(V, (config.data.batch_tokens // T, T), device=device)
    documents_BT = torch.zeros_like(tokens_BT)
    precision = resolve_precision(config.trainer.get("precision", "auto"), config.trainer.get("accelerator", "auto"))
    seconds = []
    for _ in range(steps + 1):
        begun = time.perf_counter()
        for _ in range(int(config.trainer.get("accumulate_grad_batches", 1))):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == BF16):
                stage.loss(tokens_BT, documents_BT).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return median(seconds[1:])


def _stage(config: RunConfig, V: int) -> Stage:
    if config.stage != "calm":
        return build_stage(config, None)
    model = config.model
    below = ChunkAutoencoder(config.autoencoder, model.K, model.latent_width(), V)
    return CalmStage(ContinuousLM(model, V), below, config.optim, config.evaluation)

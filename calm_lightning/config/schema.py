"""RunConfig: everything that one run depends on, as one typed value made of the rooms' own configurations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.data.config import DataConfig
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.stages.config import EvaluationConfig, OptimConfig
from calm_lightning.tracking.config import TrackingConfig


def _default_trainer() -> dict[str, Any]:
    return {"max_steps": 1000, "precision": "auto", "accumulate_grad_batches": 1, "gradient_clip_val": 1.0}


@dataclass
class RunConfig:
    """Everything that one run of one stage depends on.

    Attributes:
        stage: "autoencoder", "calm" or "baseline"; `calm train STAGE` sets it.
        seed: The one seed: initial weights, data order, dropout, noise and evaluation draws.
        name: Readable name of the run; empty means one made from stage and shape.
        work_dir: Directory that holds run directories.
        autoencoder_run: Run directory of the trained autoencoder (stage "calm").
        checkpoint_steps: Optimiser steps between checkpoints; evaluations write one too.
        data: The token stream.
        model: The language model; `model.K` and `model.l` shape the autoencoder too.
        autoencoder: The chunk autoencoder.
        optim: Optimiser and schedule.
        evaluation: When and how to score.
        tracking: Where to record.
        trainer: Passed through to `lightning.Trainer`; "auto" precision means bf16-mixed where the hardware has it.
    """

    stage: str = "calm"
    seed: int = 0
    name: str = ""
    work_dir: str = "runs"
    autoencoder_run: str = ""
    checkpoint_steps: int = 200
    data: DataConfig = field(default_factory=DataConfig)
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    trainer: dict[str, Any] = field(default_factory=_default_trainer)

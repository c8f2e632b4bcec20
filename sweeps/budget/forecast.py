"""What a point will take, before anything is trained: FLOPs and parameters counted, memory estimated.

FLOPs and parameters are exact counts. Memory is an estimate of what tensors need at once: weights, gradients and the
two moments of AdamW in fp32, the activations that one micro-batch keeps for the backward pass, and the logits.
"""

from __future__ import annotations

from dataclasses import dataclass

from calm_lightning.config import RunConfig
from sweeps.budget.rule import report_of, step_tokens, train_flops

COST_NAMES = (
    *("steps", "tokens", "parameters", "train_flops", "stage_train_flops", "autoencoder_flops"),
    *("inference_flops", "memory_gb"),
)
"""What constraints may speak of beside keys."""
_STATE_BYTES = 16
"""Bytes per trained parameter: weight, gradient, two moments, all fp32."""
_KEPT_PER_LAYER = 14
"""Activations of width d that a Transformer layer keeps: norms, queries, keys, values, context, residuals, casts."""
_KEPT_PER_UNIT = 4
"""Activations of the feed-forward width that a SwiGLU keeps: gate, up, their product, a cast."""
_LOGIT_BYTES = 12
"""Bytes per logit: bf16 product, fp32 log-softmax, gradient."""
_ACTIVATION_BYTES = 4


@dataclass(frozen=True)
class Forecast:
    """What a point will take.

    Attributes:
        steps: Optimiser steps of the language model.
        tokens: Text tokens of the language model.
        parameters: Trained parameters of the language model, its autoencoder left out.
        stage_train_flops: Training FLOPs of the language model alone.
        autoencoder_flops: Training FLOPs of its autoencoder.
        inference_flops: FLOPs per generated text token.
        memory_bytes: Estimated peak of tensors, the larger one of the two stages.
    """

    steps: int
    tokens: float
    parameters: int
    stage_train_flops: float
    autoencoder_flops: float
    inference_flops: float
    memory_bytes: float

    @property
    def train_flops(self) -> float:
        """Training FLOPs, the autoencoder's included: the x-axis of a front."""
        return self.stage_train_flops + self.autoencoder_flops

    def names(self) -> dict[str, float]:
        """Return what constraints may speak of."""
        return {name: getattr(self, name) for name in COST_NAMES}

    @property
    def memory_gb(self) -> float:
        """Estimated peak of tensors in 10^9 bytes."""
        return self.memory_bytes / 1e9


def forecast(model: RunConfig, autoencoder: RunConfig | None, vocabulary: int) -> Forecast:
    """Return what a point will take.

    Args:
        model: The language model's run, with the shape of its autoencoder in section `autoencoder`.
        autoencoder: Its autoencoder's run; None for the baseline.
        vocabulary: Vocabulary size V of the corpus.
    """
    report, steps = report_of(model, vocabulary), int(model.trainer["max_steps"])
    memory = [memory_bytes(run, vocabulary) for run in (model, autoencoder) if run is not None]
    return Forecast(
        steps=steps,
        tokens=float(steps * step_tokens(model)),
        parameters=report.parameters_total,
        stage_train_flops=train_flops(model, vocabulary),
        autoencoder_flops=train_flops(autoencoder, vocabulary) if autoencoder is not None else 0.0,
        inference_flops=report.inference_per_token_total,
        memory_bytes=max(memory),
    )


def memory_bytes(config: RunConfig, vocabulary: int) -> float:
    """Return an estimate of the tensors that one training step of a run holds at once, in bytes."""
    V, tokens = config.model.vocabulary or vocabulary, config.data.batch_tokens
    state = _STATE_BYTES * report_of(config, vocabulary).parameters_total
    model, auto = config.model, config.autoencoder
    if config.stage == "autoencoder":
        layers = auto.encoder_layers + auto.decoder_layers
        width = layers * (_KEPT_PER_LAYER // 2 * auto.d + _KEPT_PER_UNIT * auto.intermediate)
        return state + tokens * (_ACTIVATION_BYTES * width + _LOGIT_BYTES * V)
    width = model.layers * (_KEPT_PER_LAYER * model.d + _KEPT_PER_UNIT * model.intermediate)
    if config.stage == "baseline":
        return state + tokens * (_ACTIVATION_BYTES * width + _LOGIT_BYTES * V)
    draws = model.N * (8 * model.d * model.head_blocks + 6 * model.latent_width() + 4 * model.M)
    return state + tokens / model.K * _ACTIVATION_BYTES * (width + draws + model.M * model.latent_width())

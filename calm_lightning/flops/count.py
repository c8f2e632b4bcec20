"""Closed-form FLOPs of the three stages, in the platform's own convention and in the paper's.

"exact" counts the matrix products this implementation does: causal attention, the positions a block really
has, the head's shared work once per position, no gradient where none flows. It leaves out what a
kernel may do beyond the mathematics (recomputed attention scores, the masked half of a causal product).
"paper" reproduces the published figures and serves to compare with them.
"""

from __future__ import annotations

from typing import Literal

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.errors import ConfigError
from calm_lightning.flops import layers
from calm_lightning.flops.heads import HeadSize, head_size
from calm_lightning.flops.paper import paper_autoencoder, paper_baseline, paper_calm
from calm_lightning.flops.parameters import autoencoder_parameters, baseline_parameters, calm_parameters
from calm_lightning.flops.report import FlopsReport
from calm_lightning.language_model.config import LanguageModelConfig

Convention = Literal["exact", "paper"]
Attention = Literal["causal", "full"]

CONVENTIONS = {
    "exact": "matrix products as this implementation does them: causal attention, mean over a block's positions",
    "paper": "the convention that reproduces the published table: full attention over 2048 positions, "
    "backward = 2 x forward everywhere",
}
"""The two conventions and what they count; biases, norms and lookups cost nothing in either."""

TRAINING = 3.0
"""Forward plus backward of a matrix product, in forward passes: one product per operand's gradient."""
TRAINING_WITHOUT_INPUT_GRADIENT = 2.0
"""The same where only the weight or only one operand takes a gradient."""


def _attention_per_position(model: LanguageModelConfig, positions: int, attention: Attention) -> float:
    """Return the FLOPs of scores and weighted values in all layers, mean over `positions` positions."""
    context = (positions + 1) / 2 if attention == "causal" else positions
    return 4.0 * model.layers * model.d * context


def autoencoder_flops(
    auto: AutoencoderConfig, K: int, l: int, V: int, T: int, convention: Convention = "exact"
) -> FlopsReport:
    """Count the chunk autoencoder.

    Args:
        auto: Its shape.
        K: Tokens per chunk.
        l: Latent dimension.
        V: Vocabulary size.
        T: Text tokens per block.
        convention: "exact" or "paper".
    """
    if convention == "paper":
        return paper_autoencoder(auto, K, l, V, T)
    size = layers.autoencoder(auto, K, l, V)
    chunk = {
        "encoder": K * size.encoder_token.forward + size.encoder_chunk.forward,
        "decoder": K * size.decoder_token.forward + size.decoder_chunk.forward,
        "logits": K * size.logits.forward,
    }
    forward = {name: T // K * flops for name, flops in chunk.items()}
    return FlopsReport(
        stage="autoencoder",
        convention="exact",
        block_tokens=T,
        parameters=autoencoder_parameters(auto, K, l, V),
        forward_per_block=forward,
        training_per_block={name: TRAINING * flops for name, flops in forward.items()},
        inference_per_token={name: flops / K for name, flops in chunk.items()},
    )


def _calm_position(
    model: LanguageModelConfig,
    head: HeadSize,
    frozen: layers.AutoencoderSize,
    positions: int,
    attention: Attention,
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the FLOPs of one position in training: of the forward pass, and of forward and backward."""
    K, l, N = model.K, model.latent_width(), model.N
    # Every chunk but the first is a target; where latents are read, the first is encoded, too.
    encoded = 1.0 if model.input == "discrete" else 1 + 1 / positions
    forward = {
        "input": layers.input_compression(model).forward,
        "backbone": layers.backbone(model.backbone()).forward,
        "attention": _attention_per_position(model, positions, attention),
        "head": head.position.forward + N * (head.draw.forward + head.source.forward),
        "encoder": encoded * (K * frozen.encoder_token.forward + frozen.encoder_chunk.forward),
    }
    training = {name: TRAINING * forward[name] for name in ("input", "backbone", "attention")}
    if model.input == "latent":  # nothing below the first Linear is trained
        training["input"] -= layers.linear(model.input_width(), 2 * model.d).forward
    training["head"] = (
        TRAINING * (head.position.forward + N * head.draw.forward)
        + TRAINING_WITHOUT_INPUT_GRADIENT * N * head.source.forward
    )
    training["encoder"] = forward["encoder"]
    to_targets, among_samples = (2.0 * products * l for products in head.loss_products)
    if to_targets:
        forward["energy_loss"] = to_targets + among_samples
        training["energy_loss"] = TRAINING_WITHOUT_INPUT_GRADIENT * to_targets + TRAINING * among_samples
    return forward, training


def calm_flops(
    model: LanguageModelConfig,
    auto: AutoencoderConfig,
    V: int,
    T: int,
    convention: Convention = "exact",
    attention: Attention = "causal",
) -> FlopsReport:
    """Count CALM with any of its heads; the frozen autoencoder's work is included, its parameters are not.

    A block of T tokens has T/K - 1 positions: each but the last chunk predicts the next. Training encodes
    the target chunks with the frozen encoder; inference draws once per chunk, in as many network calls as the head's
    steps and solver need, and decodes the draw.

    Args:
        model: Shape of the language model.
        auto: Shape of the frozen autoencoder.
        V: Vocabulary size.
        T: Text tokens per block.
        convention: "exact" or "paper".
        attention: "full" counts the masked half too, as a counter that sees only shapes does.
    """
    if convention == "paper":
        return paper_calm(model, auto, V, T)
    K = model.K
    positions = T // K - 1
    head, frozen = head_size(model), layers.autoencoder(auto, K, model.latent_width(), V)
    forward, training = _calm_position(model, head, frozen, positions, attention)
    step = {name: forward[name] for name in ("input", "backbone", "attention")}
    step |= {
        "head": head.generation,
        "decoder": K * frozen.decoder_token.forward + frozen.decoder_chunk.forward,
        "logits": K * frozen.logits.forward,
    }
    return FlopsReport(
        stage="calm",
        convention="exact",
        block_tokens=T,
        parameters=calm_parameters(model, V),
        forward_per_block={name: positions * flops for name, flops in forward.items()},
        training_per_block={name: positions * flops for name, flops in training.items()},
        inference_per_token={name: flops / K for name, flops in step.items()},
    )


def baseline_flops(
    model: LanguageModelConfig,
    V: int,
    T: int,
    convention: Convention = "exact",
    attention: Attention = "causal",
) -> FlopsReport:
    """Count the token Transformer; a block of T tokens has T - 1 positions.

    Args:
        model: Shape of the backbone.
        V: Vocabulary size.
        T: Text tokens per block.
        convention: "exact" or "paper".
        attention: "full" counts the masked half too, as a counter that sees only shapes does.
    """
    if convention == "paper":
        return paper_baseline(model, V, T)
    positions = T - 1
    step = {
        "backbone": layers.backbone(model.backbone()).forward,
        "attention": _attention_per_position(model, positions, attention),
        "lm_head": layers.linear(model.d, V, bias=False).forward,
    }
    return FlopsReport(
        stage="baseline",
        convention="exact",
        block_tokens=T,
        parameters=baseline_parameters(model, V),
        forward_per_block={name: positions * flops for name, flops in step.items()},
        training_per_block={name: TRAINING * positions * flops for name, flops in step.items()},
        inference_per_token=step,
    )


def for_stage(
    stage: str,
    model: LanguageModelConfig,
    autoencoder: AutoencoderConfig,
    vocabulary: int,
    block_tokens: int,
    convention: Convention = "exact",
) -> FlopsReport:
    """Count what one stage trains.

    Args:
        stage: "autoencoder", "calm" or "baseline".
        model: Shape of the language model; K and l shape the autoencoder too.
        autoencoder: Shape of the autoencoder.
        vocabulary: Vocabulary size V.
        block_tokens: Text tokens per block T.
        convention: "exact" or "paper".

    Raises:
        ConfigError: There is no such stage.
    """
    if stage == "autoencoder":
        return autoencoder_flops(autoencoder, model.K, model.latent_width(), vocabulary, block_tokens, convention)
    if stage == "calm":
        return calm_flops(model, autoencoder, vocabulary, block_tokens, convention)
    if stage == "baseline":
        return baseline_flops(model, vocabulary, block_tokens, convention)
    raise ConfigError(f"stage={stage} must be one of autoencoder, calm, baseline")

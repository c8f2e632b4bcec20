"""Translates weights of the authors' released checkpoints into this project's modules.

The released code keeps q, k, v and gate, up as matrices of their own; ours are one matrix each, so
translation is renaming and concatenation, and loses no bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from calm_lightning.errors import CheckpointError

Weights = Mapping[str, Tensor]


def _take(weights: Weights, *names: str) -> Tensor:
    """Return the named tensors, concatenated along their rows.

    Raises:
        CheckpointError: One of them is not in the checkpoint.
    """
    missing = [name for name in names if name not in weights]
    if missing:
        raise CheckpointError(f"the checkpoint has no tensor {', '.join(missing)}; is it of the kind asked for?")
    return torch.cat([weights[name] for name in names]) if len(names) > 1 else weights[names[0]]


def _swiglu(weights: Weights, source: str, target: str) -> dict[str, Tensor]:
    return {
        f"{target}.gate_up.weight": _take(weights, f"{source}.gate_proj.weight", f"{source}.up_proj.weight"),
        f"{target}.down.weight": _take(weights, f"{source}.down_proj.weight"),
    }


def _linear(weights: Weights, source: str, target: str) -> dict[str, Tensor]:
    return {f"{target}.{part}": _take(weights, f"{source}.{part}") for part in ("weight", "bias")}


def autoencoder_weights(weights: Weights, encoder_layers: int, decoder_layers: int) -> dict[str, Tensor]:
    """Return the state dict of `ChunkAutoencoder` from released autoencoder weights.

    Args:
        weights: Released tensors by the names the authors' code gives them.
        encoder_layers: Residual blocks of the encoder; the first half acts on tokens.
        decoder_layers: Residual blocks of the decoder; the first half acts on chunks.

    Raises:
        CheckpointError: A tensor is missing.
    """
    ours = {"embedding.weight": _take(weights, "encoder.embed_tokens.weight")}
    for side, layers, halves in (
        ("encoder", encoder_layers, ("token_blocks", "chunk_blocks")),
        ("decoder", decoder_layers, ("chunk_blocks", "token_blocks")),
    ):
        for index in range(layers):
            half, position = divmod(index, layers // 2)
            source, target = f"{side}.{side}_layers.{index}", f"{side}.{halves[half]}.{position}"
            ours[f"{target}.norm.weight"] = _take(weights, f"{source}.layernorm.weight")
            ours |= _swiglu(weights, f"{source}.mlp", f"{target}.mlp")
        ours[f"{side}.norm.weight"] = _take(weights, f"{side}.norm.weight")
    ours |= _linear(weights, "encoder.squeeze_layer", "encoder.squeeze")
    ours |= _linear(weights, "encoder.hidden_to_latent", "encoder.to_latent")
    ours |= _linear(weights, "decoder.latent_to_hidden", "decoder.from_latent")
    ours |= _linear(weights, "decoder.expand_layer", "decoder.expand")
    return ours


def backbone_weights(weights: Weights, layers: int, source: str, target: str = "backbone") -> dict[str, Tensor]:
    """Return the state dict of `Transformer` below the prefix `target` from Llama weights below `source`.

    Raises:
        CheckpointError: A tensor is missing.
    """
    ours = {f"{target}.norm.weight": _take(weights, f"{source}.norm.weight")}
    for index in range(layers):
        theirs, block = f"{source}.layers.{index}", f"{target}.blocks.{index}"
        attention = [f"{theirs}.self_attn.{name}_proj.weight" for name in "qkv"]
        ours[f"{block}.attention.qkv.weight"] = _take(weights, *attention)
        ours[f"{block}.attention.out.weight"] = _take(weights, f"{theirs}.self_attn.o_proj.weight")
        ours[f"{block}.attention_norm.weight"] = _take(weights, f"{theirs}.input_layernorm.weight")
        ours[f"{block}.mlp_norm.weight"] = _take(weights, f"{theirs}.post_attention_layernorm.weight")
        ours |= _swiglu(weights, f"{theirs}.mlp", f"{block}.mlp")
    return ours


def energy_head_weights(weights: Weights, blocks: int, source: str, target: str = "head") -> dict[str, Tensor]:
    """Return the state dict of `EnergyHead` below the prefix `target` from released weights below `source`.

    Raises:
        CheckpointError: A tensor is missing.
    """
    names = {
        "noise_embd": "noise_embedding",
        "norm_noise": "noise_norm",
        "hidden_embd": "hidden_embedding",
        "norm_hidden": "hidden_norm",
        "final_layer.in_ln": "final_norm",
        "final_layer.linears.0": "final_hidden",
        "final_layer.linears.2": "to_latent",
    }
    parts = {"in_ln": "norm", "linears.0": "mix", "linears.2": "middle", "linears.4": "gate_up", "down_proj": "down"}
    for index in range(blocks):
        names |= {f"mlp_blocks.{index}.{theirs}": f"blocks.{index}.{ours}" for theirs, ours in parts.items()}
    ours: dict[str, Tensor] = {}
    for theirs, name in names.items():
        ours |= _linear(weights, f"{source}.{theirs}", f"{target}.{name}")
    return ours


def calm_weights(weights: Weights, layers: int, head_blocks: int) -> dict[str, Tensor]:
    """Return the state dict of `ContinuousLM` from a released energy language model.

    Raises:
        CheckpointError: A tensor is missing.
    """
    ours = {"input.embedding.weight": _take(weights, "transformer.embed_tokens.weight")}
    for index in (0, 2, 3):
        ours |= _linear(weights, f"embed_proj.{index}", f"input.compress.{index}")
    ours |= backbone_weights(weights, layers, "transformer")
    return ours | energy_head_weights(weights, head_blocks, "mlp_generator")


def baseline_weights(weights: Weights, layers: int) -> dict[str, Tensor]:
    """Return the state dict of `TokenLM` from a Hugging Face Llama checkpoint.

    Raises:
        CheckpointError: A tensor is missing.
    """
    ours = {
        "embedding.weight": _take(weights, "model.embed_tokens.weight"),
        "lm_head.weight": _take(weights, "lm_head.weight"),
    }
    return ours | backbone_weights(weights, layers, "model")

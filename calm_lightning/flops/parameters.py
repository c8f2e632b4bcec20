"""Parameters by component, equal to the sum over the real modules; the same in every convention."""

from __future__ import annotations

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.flops import layers
from calm_lightning.flops.heads import head_size
from calm_lightning.language_model.config import LanguageModelConfig


def autoencoder_parameters(auto: AutoencoderConfig, K: int, l: int, V: int) -> dict[str, int]:
    """Return the autoencoder's parameters; an embedding that doubles as the output matrix counts once."""
    size = layers.autoencoder(auto, K, l, V)
    return {
        "embedding": V * auto.d * (1 if auto.tied else 2),
        "encoder": size.encoder.parameters,
        "decoder": size.decoder.parameters,
    }


def calm_parameters(model: LanguageModelConfig, V: int) -> dict[str, int]:
    """Return CALM's parameters without its autoencoder."""
    return {
        "embedding": 0 if model.input == "latent" else V * model.d,
        "input": layers.input_compression(model).parameters,
        "backbone": layers.backbone(model.backbone()).parameters,
        "head": head_size(model).whole.parameters,
    }


def baseline_parameters(model: LanguageModelConfig, V: int) -> dict[str, int]:
    """Return the token Transformer's parameters; its output matrix is not tied to the embedding."""
    return {
        "embedding": V * model.d,
        "backbone": layers.backbone(model.backbone()).parameters,
        "lm_head": layers.linear(model.d, V, bias=False).parameters,
    }

"""config.json of released checkpoints, from and to the configurations of our models.

One mapping of keys per kind serves both directions. What the released format can say and our models cannot do (and the
reverse) is refused by name, all of it at once, because a model that loads but computes something else is worse than
none. Keys that do not change what a model computes are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.errors import CheckpointError
from calm_lightning.language_model.config import LanguageModelConfig

AUTOENCODER = "Autoencoder"
HEAD_ARCHITECTURES = {"EnergyTransformer": "energy", "FlowTransformer": "flow", "DiffusionTransformer": "diffusion"}
BASELINE = "LlamaForCausalLM"
RELEASED_M = 100
"""Posterior targets per position in the energy loss: fixed in the released code, no key says it."""

_LATENT_KEYS = {"patch_size": "K", "latent_size": "l", "vocab_size": "vocabulary"}
_AUTOENCODER_KEYS = {
    "hidden_size": "d",
    "intermediate_size": "intermediate",
    "num_encoder_layers": "encoder_layers",
    "num_decoder_layers": "decoder_layers",
    "kl_weight": "beta",
    "kl_clamp": "kl_clip",
    "ae_dropout": "drop_latent",
    "rms_norm_eps": "norm_eps",
}
_BACKBONE_KEYS = {
    "vocab_size": "vocabulary",
    "hidden_size": "d",
    "intermediate_size": "intermediate",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "norm_eps",
}
_HEAD_KEYS = {"num_mlp_layers": "head_blocks", "num_samples": "N", "noise_size": "noise_size", "beta": "alpha"}
_OPTIONAL = {
    "autoencoder": ("kl_weight", "kl_clamp", "ae_dropout", "rms_norm_eps"),
    "energy": ("rope_theta", "rms_norm_eps", "num_samples", "beta"),
    "flow": ("rope_theta", "rms_norm_eps", "num_samples", "noise_size", "beta"),
    "diffusion": ("rope_theta", "rms_norm_eps", "num_samples", "noise_size", "beta"),
    "baseline": ("rope_theta", "rms_norm_eps"),
}
"""Keys that may be absent: our defaults are those of the released code."""
_WHOLE = tuple(
    field.name
    for schema in (AutoencoderConfig, LanguageModelConfig)
    for field in fields(schema)
    if field.type in (int, int | None)
)
_USUAL = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "max_position_embeddings": 2048,
    "pretraining_tp": 1,
    "transformers_version": "4.43.0",
}
"""Keys that the released code reads and that are the same for every model of ours."""
_FOREIGN = (
    "attention_dropout",
    "initializer_range",
    "max_position_embeddings",
    "pretraining_tp",
    "transformers_version",
    "use_cache",
)
"""Keys that do not change what a model computes: an imported one keeps its own values."""
_LARGEST = 2**24
_POSITIVE = ("norm_eps", "rope_theta", "alpha")
_MOST_LAYERS = 4096


class _Reader:
    """Takes values out of one config.json and collects what is wrong with it."""

    def __init__(self, config: Mapping[str, Any], origin: str) -> None:
        self.config, self.origin = config, origin
        self.problems: list[str] = []

    def values(self, keys: Mapping[str, str], optional: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return the values of keys by our names, checked; optional ones that are absent are left out."""
        found = {}
        for key, ours in keys.items():
            value = self.config.get(key)
            if value is None:
                if key not in optional:
                    self.problems.append(f"{key} is missing")
                continue
            whole = ours in _WHOLE
            largest = _MOST_LAYERS if "layers" in ours or ours == "head_blocks" else _LARGEST
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            positive = number and (value > 0 or ours not in _POSITIVE)
            if not positive or (whole and not (isinstance(value, int) and 1 <= value <= largest)):
                kind = "positive whole " if whole else "positive " if ours in _POSITIVE else ""
                self.problems.append(f"{key}={value!r} must be a {kind}number")
            else:
                found[ours] = value if whole else float(value)
        return found

    def expect(self, key: str, *allowed: object, why: str) -> None:
        """Note a problem where a key is there with a value that our models do not have."""
        value = self.config.get(key)
        if value is not None and value not in allowed:
            self.problems.append(f"{key}={value!r} ({why})")

    def finish(self) -> None:
        """Raise what was found wrong."""
        if self.problems:
            raise CheckpointError(f"{self.origin} cannot be imported: {'; '.join(self.problems)}")


def architecture(config: Mapping[str, Any], origin: str) -> str:
    """Return the one architecture that config.json names.

    Raises:
        CheckpointError: It names none, or one that is not known here.
    """
    known = (AUTOENCODER, *HEAD_ARCHITECTURES, BASELINE)
    named = config.get("architectures")
    if isinstance(named, list) and len(named) == 1 and named[0] in known:
        return str(named[0])
    raise CheckpointError(f"{origin} has architectures={named!r}: known are {', '.join(known)}, one of them")


def read_autoencoder_config(config: Mapping[str, Any], origin: str) -> tuple[AutoencoderConfig, int, int, int]:
    """Return an autoencoder's configuration, K, l and V from its config.json.

    Raises:
        CheckpointError: Keys are missing, of another type, or ask for what our autoencoder lacks.
    """
    reader = _Reader(config, origin)
    shape = reader.values(_LATENT_KEYS)
    values = reader.values(_AUTOENCODER_KEYS, _OPTIONAL["autoencoder"])
    for key, ours in (("num_encoder_layers", "encoder_layers"), ("num_decoder_layers", "decoder_layers")):
        if values.get(ours, 2) % 2:
            reader.problems.append(f"{key}={values[ours]} (half of the layers act on tokens, so it must be even)")
    reader.expect("hidden_act", "silu", why="only silu is known")
    reader.expect("mlp_bias", False, why="biases in the feed-forward are not known")
    reader.finish()
    # One released rate serves DropToken and DropLatent.
    drop = {"drop_token": values["drop_latent"]} if "drop_latent" in values else {}
    return AutoencoderConfig(**values, **drop), shape["K"], shape["l"], shape["vocabulary"]


def read_language_model_config(config: Mapping[str, Any], origin: str) -> tuple[str, LanguageModelConfig]:
    """Return the stage ("calm" or "baseline") and configuration of a language model from its config.json.

    Raises:
        CheckpointError: Keys are missing, of another type, or ask for what our models lack.
    """
    named = architecture(config, origin)
    head = HEAD_ARCHITECTURES.get(named)
    reader = _Reader({**config, **_rope(config)}, origin)
    values = reader.values(_BACKBONE_KEYS, _OPTIONAL[head or "baseline"])
    if head:
        values |= reader.values(_LATENT_KEYS) | reader.values(_HEAD_KEYS, _OPTIONAL[head])
        values |= {"head": head, "M": RELEASED_M}
    d, heads = values.get("d", 2), values.get("heads", 1)
    if d % heads or d // heads % 2:
        reader.problems.append(f"num_attention_heads={heads} (must divide hidden_size={d} into heads of even width)")
    reader.expect("num_key_value_heads", heads, why="grouped queries are not known: it must be num_attention_heads")
    reader.expect("head_dim", d // heads, why="heads of a width of their own are not known")
    reader.expect("hidden_act", "silu", why="only silu is known")
    reader.expect("rope_scaling", why="scaled rotary positions are not known")
    for key in ("attention_bias", "mlp_bias"):
        reader.expect(key, False, why="biases in the backbone are not known")
    reader.finish()
    return "calm" if head else "baseline", LanguageModelConfig(**values)


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return rope_theta and rope_scaling from the one key that newer writers put both into."""
    newer = config.get("rope_parameters")
    if not isinstance(newer, dict):
        return {}
    plain = newer.get("rope_type", "default") == "default"
    return {"rope_theta": newer.get("rope_theta"), "rope_scaling": None if plain else newer}


def write_autoencoder_config(config: AutoencoderConfig, K: int, l: int, vocabulary: int) -> dict[str, Any]:
    """Return config.json of an autoencoder, without the dtype of its weights."""
    shape = {"K": K, "l": l, "vocabulary": vocabulary}
    return {
        "architectures": [AUTOENCODER],
        **{key: shape[ours] for key, ours in _LATENT_KEYS.items()},
        **{key: getattr(config, ours) for key, ours in _AUTOENCODER_KEYS.items()},
        **_USUAL,
    }


def write_language_model_config(stage: str, config: LanguageModelConfig) -> dict[str, Any]:
    """Return config.json of a language model whose configuration is resolved, without the dtype of its weights.

    Raises:
        CheckpointError: The released code has no such model.
    """
    keys = dict(_BACKBONE_KEYS)
    values: dict[str, Any] = {"architectures": [BASELINE], "model_type": "llama"}
    _refuse_unsayable(stage, config)
    if stage == "calm":
        (named,) = (name for name, head in HEAD_ARCHITECTURES.items() if head == config.head)
        keys |= _LATENT_KEYS | _HEAD_KEYS
        values = {"architectures": [named], "ae_path": "./autoencoder"}
    return {
        **values,
        **{key: getattr(config, ours) for key, ours in keys.items()},
        "num_key_value_heads": config.heads,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_cache": True,
        **_USUAL,
    }


def _refuse_unsayable(stage: str, config: LanguageModelConfig) -> None:
    problems = []
    if stage == "calm" and config.input != "discrete":
        problems.append(f"model.input={config.input} (it reads tokens only)")
    if stage == "calm" and config.head == "energy" and config.noise != "uniform":
        problems.append(f"model.noise={config.noise} (its energy head draws uniform noise only)")
    if not config.cross_document_attention:
        problems.append("model.cross_document_attention=false (its positions see all of a block)")
    if problems:
        raise CheckpointError(f"the released format cannot say {' and '.join(problems)}: this run cannot be exported")


def keep_foreign_keys(ours: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json with what the one it was imported from said beyond what our models know."""
    return {**ours, **{key: value for key, value in source.items() if key not in ours or key in _FOREIGN}}

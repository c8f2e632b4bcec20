"""Presets and overrides become one resolved, validated RunConfig.

Presets are composed left to right, then `key=value` overrides apply; `validate` reports every contradiction at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from calm_lightning.config.presets import expand, find_preset
from calm_lightning.config.schema import RunConfig
from calm_lightning.config.validation import validate
from calm_lightning.errors import ConfigError

Schema = TypeVar("Schema")


def _one_sentence(error: Exception) -> str:
    """Return an OmegaConf error as one clause that names the key."""
    key = getattr(error, "full_key", None) or ""
    message = str(error).split("\n")[0].strip().rstrip(".")
    if isinstance(error, ConfigKeyError):
        parent = getattr(error, "parent_node", None)
        known = [str(k) for k in parent] if isinstance(parent, DictConfig) else []
        close = difflib.get_close_matches(key.split(".")[-1], known, n=1)
        prefix = key.rpartition(".")[0]
        hint = (
            f"did you mean {prefix + '.' if prefix else ''}{close[0]}?" if close else f"known here: {', '.join(known)}"
        )
        return f"unknown key {key}; {hint}"
    return f"{key}: {message}" if key else message


def merge(schema: type[Schema], layers: Sequence[tuple[str, DictConfig]], overrides: Sequence[str] = ()) -> Schema:
    """Merge mappings and `key=value` overrides into an instance of a dataclass schema.

    Args:
        schema: The dataclass whose defaults everything else differs from.
        layers: (where it comes from, mapping) pairs, applied left to right.
        overrides: "key=value" strings, applied last.

    Raises:
        ConfigError: An unknown key, a value of the wrong type, or an override without "=".
    """
    merged = OmegaConf.structured(schema)
    for source, layer in layers:
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{source}: {_one_sentence(error)}") from None
    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"override {override!r} must read key=value, for example model.K=4")
        try:
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([override]))
        except (OmegaConfBaseException, YAMLError) as error:
            raise ConfigError(f"override {override}: {_one_sentence(error)}") from None
    try:
        resolved = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(_one_sentence(error)) from None
    assert isinstance(resolved, schema)
    return resolved


def _is_preset(argument: str) -> bool:
    """Return whether an argument names a preset; a path to a YAML file may hold "="."""
    return "=" not in argument or (argument.endswith((".yaml", ".yml")) and Path(argument).is_file())


def load_config(arguments: Sequence[str] = (), **fixed: Any) -> RunConfig:
    """Compose presets and overrides into a validated RunConfig.

    Args:
        arguments: Preset names or YAML paths and "key=value" overrides, in any order; presets are composed
            left to right, overrides apply after all of them.
        fixed: Top-level values that win over everything, for example ``stage="calm"``.

    Raises:
        ConfigError: As `merge`, or the result contradicts itself (`validate`).
    """
    layers: list[tuple[str, DictConfig]] = []
    for argument in arguments:
        if _is_preset(argument):
            layers += expand(find_preset(argument))
    if fixed:
        layers.append(("command", OmegaConf.create(fixed)))
    config = merge(RunConfig, layers, [argument for argument in arguments if not _is_preset(argument)])
    for key, value in fixed.items():
        if getattr(config, key) != value:
            raise ConfigError(f"{key}={getattr(config, key)} contradicts the command, which fixes {key}={value}")
    validate(config)
    return config

"""Configuration: schema, presets and overrides, validation, identity. Knows no torch: `calm config` is quick."""

from calm_lightning.config.compose import load_config, merge
from calm_lightning.config.fingerprint import essentials, identity, to_yaml
from calm_lightning.config.presets import conf_dir, find_preset, list_presets, read_yaml
from calm_lightning.config.schema import RunConfig
from calm_lightning.config.validation import STAGES, validate

__all__ = [
    "STAGES",
    "RunConfig",
    "conf_dir",
    "essentials",
    "find_preset",
    "identity",
    "list_presets",
    "load_config",
    "merge",
    "read_yaml",
    "to_yaml",
    "validate",
]

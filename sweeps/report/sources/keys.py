"""Keys of a configuration, and which of them make a difference."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from calm_lightning.config import RunConfig, identity


def flat_keys(config: RunConfig) -> dict[str, Any]:
    """Return every key of a configuration and its value."""
    found: dict[str, Any] = {}
    for section, value in asdict(config).items():
        if isinstance(value, dict):
            found |= {f"{section}.{name}": leaf for name, leaf in value.items()}
        else:
            found[section] = value
    return found


def _with(config: RunConfig, key: str, value: Any) -> RunConfig:
    """Return a configuration with another value of one key."""
    section, _, name = key.partition(".")
    changed: dict[str, Any] = {section: value}
    if name:
        before: Any = getattr(config, section)
        changed[section] = {**before, name: value} if isinstance(before, dict) else replace(before, **{name: value})
    return replace(config, **changed)


def matters(config: RunConfig, key: str, other: Any) -> bool:
    """Return whether another value of a key would make another run."""
    return identity(_with(config, key, other)) != identity(config)

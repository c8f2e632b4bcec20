"""A few keys of a configuration changed, fast: a sweep makes thousands of configurations that differ in a key or two.

Merging through OmegaConf checks and converts everything and takes tens of milliseconds; this takes microseconds,
and refuses whatever is not plainly of its field's type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


@cache
def _types(schema: Any) -> dict[str, frozenset[type]]:
    """Return the plain types that each field of a dataclass may have; none where it is not one of these."""
    hints = get_type_hints(schema)
    plain = {int, float, str, bool, type(None)}
    found = {}
    for field in fields(schema):
        hint = hints[field.name]
        members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        found[field.name] = frozenset(members) if set(members) <= plain else frozenset()
    return found


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a configuration with some keys changed.

    Args:
        config: A dataclass of dataclasses and dictionaries.
        changes: Dotted keys and their values.

    Raises:
        TypeError: A key is unknown, or its value is not of the field's type; `calm_lightning.config.merge` says more.
    """
    sections: dict[str, dict[str, Any]] = {}
    own: dict[str, Any] = {}
    for key, value in changes.items():
        section, _, rest = key.partition(".")
        if rest:
            sections.setdefault(section, {})[rest] = value
        else:
            own[section] = _plain(config, section, value)
    for section, values in sections.items():
        part = getattr(config, section, None)
        if isinstance(part, dict) and not any("." in key for key in values):
            own[section] = {**part, **values}
        elif is_dataclass(part) and not isinstance(part, type):
            own[section] = changed(part, values)
        else:
            raise TypeError(f"{section} has no parts")
    return replace(config, **own)  # type: ignore[type-var]


def _plain(config: object, name: str, value: Any) -> Any:
    schema: Any = type(config)
    allowed = _types(schema).get(name, frozenset())
    if type(value) in allowed:
        return value
    if float in allowed and type(value) is int:
        return float(value)
    raise TypeError(f"{name}={value!r}")

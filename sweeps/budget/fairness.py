"""Fairness: compared models see the same data in the same order and are scored alike, unless that is what is swept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from calm_lightning.config import RunConfig
from calm_lightning.errors import ConfigError

SCORED_ALIKE = (
    *("data.eval_split", "data.block_tokens", "data.eval_max_blocks"),
    *("evaluation.start_stride", "evaluation.samples"),
)
"""What a score depends on beside the model: scores that differ in one of these do not compare."""
SAME_DATA = (
    *("data.corpus", "data.train_split", "data.shuffle_shards", "data.weights", "data.epochs", "data.held_out"),
    "model.vocabulary",
)
"""What decides which text a model sees, and in which order."""
_NEVER_THE_SAME = ("name", "stage", "autoencoder_run", "seed")


def common(config: RunConfig, keys: Iterable[str] = (*SCORED_ALIKE, *SAME_DATA)) -> dict[str, Any]:
    """Return the values that all language models of a sweep must share."""
    values = asdict(config)
    return {key: values[key.split(".")[0]][key.split(".")[1]] for key in keys}


def check_alike(first: Mapping[str, Any], config: RunConfig, label: str, swept: Iterable[str]) -> None:
    """Check that a language model is trained on and scored by the same as another one.

    Args:
        first: `common` of the other one.
        config: The language model's run.
        label: How tables call it.
        swept: Keys that differ on purpose.

    Raises:
        ConfigError: They differ in something that is not swept.
    """
    free = set(swept)
    for key, value in common(config).items():
        if key not in free and value != first[key]:
            raise ConfigError(
                f"sweep, {label}: {key}={value} but another model has {first[key]}, so the two would not compare: "
                f"set it in section all, or sweep it (space.{key})"
            )


def differences(configs: Sequence[RunConfig], swept: Iterable[str]) -> dict[str, list[Any]]:
    """Return the keys in which some language models differ although nobody swept them, with their values.

    A budget rule gives models different steps, for example, and exceptions for single values change what they name:
    whoever reads the results should know.

    Args:
        configs: Runs of language models.
        swept: Swept and derived keys.
    """
    ignored = {*swept, *_NEVER_THE_SAME}
    found: dict[str, list[Any]] = {}
    for config in configs:
        for key, value in _flat(asdict(config)):
            if key not in ignored and value not in found.setdefault(key, []):
                found[key].append(value)
    return {key: values for key, values in found.items() if len(values) > 1}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

"""A configuration is a value: written out, it is read back alike; hashed, it names a run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from omegaconf import OmegaConf

from calm_lightning.config.schema import RunConfig
from calm_lightning.stages.trainer_keys import NOT_IN_IDENTITY

RECIPE_VERSION = 2
"""Part of every identity; raised when a change of the code changes the numbers a configuration gives."""

_NOT_IN_IDENTITY = ("work_dir", "name", "autoencoder_run", "tracking", "checkpoint_steps")
# Corpus and tokenizer are in the lineage by their hashes. A run that a bad shard stopped may go on without that shard:
# how many blocks were replaced is part of its result.
_DATA_NOT_IN_IDENTITY = (
    *("corpus", "tokenizer", "shards_at", "workers", "record_batches", "on_bad_shard"),
    *("cache_dir", "cache_gb", "retries", "timeout"),
)


def to_yaml(config: RunConfig) -> str:
    """Return the resolved configuration as YAML that `load_config` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def identity(config: RunConfig, **lineage: str) -> str:
    """Return the SHA-256 that names a run: same identity, same artifact.

    What changes the numbers is in it (shape, data order, seed, schedule, recipe version and the hashes in
    `lineage`); paths, tracking, worker counts and progress bars are not.

    Args:
        config: A resolved configuration ("auto" precision already replaced).
        lineage: Hashes of what the run is made from, for example ``corpus=...``, ``autoencoder=...``.
    """
    value = essentials(config)
    if config.stage == "calm":
        del value["autoencoder"]  # its identity is in the lineage
    value["recipe"] = RECIPE_VERSION
    value["lineage"] = dict(sorted(lineage.items()))
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def essentials(config: RunConfig) -> dict[str, Any]:
    """Return what changes a run's numbers, as nested mappings: no paths, and no settings that its stage does not read.

    Args:
        config: A resolved configuration ("auto" precision already replaced).
    """
    value = asdict(config)
    for key in _NOT_IN_IDENTITY:
        del value[key]
    for key in _DATA_NOT_IN_IDENTITY:
        del value["data"][key]
    value["trainer"] = {k: v for k, v in value["trainer"].items() if k not in NOT_IN_IDENTITY}
    if config.stage == "autoencoder":
        # An autoencoder knows K, l and V of the language model it serves, and nothing else of it.
        value["model"] = {key: value["model"][key] for key in ("K", "l", "vocabulary")}
        del value["evaluation"]["start_stride"]
    elif config.stage == "baseline":
        del value["autoencoder"]
        backbone = ("vocabulary", "d", "intermediate", "layers", "heads", "rope_theta", "norm_eps")
        value["model"] = {key: value["model"][key] for key in (*backbone, "cross_document_attention")}
    return value

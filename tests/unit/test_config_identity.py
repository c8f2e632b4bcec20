"""What is in the identity of a run, key by key: an artifact is reused exactly when its numbers would be the same."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
from omegaconf import OmegaConf

from calm_lightning.config import RunConfig, fingerprint, identity, load_config, merge
from calm_lightning.config.validation import STAGES

NOWHERE = {
    *("work_dir", "name", "autoencoder_run", "checkpoint_steps"),
    *("data.corpus", "data.tokenizer", "data.shards_at", "data.workers", "data.record_batches", "data.on_bad_shard"),
    *("data.cache_dir", "data.cache_gb", "data.retries", "data.timeout"),
}
OF_ONE_STAGE = {
    "autoencoder": {"evaluation.start_stride"},
    "calm": set(),
    "baseline": set(),
}
MODEL_KEYS = {
    "autoencoder": {"K", "l", "vocabulary"},
    "calm": None,
    "baseline": {
        *("vocabulary", "d", "intermediate", "layers", "heads", "rope_theta", "norm_eps"),
        "cross_document_attention",
    },
}
"""None means every key."""


def leaves(value: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, below in value.items():
        if isinstance(below, dict) and below:
            yield from leaves(below, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def changed(value: Any) -> Any:
    if value is None:
        return 7
    if isinstance(value, bool):
        return not value
    if isinstance(value, dict):
        return {"Books": 2.0}
    if isinstance(value, list):
        return [0.5 * item for item in value] or ["Books"]
    return value + "x" if isinstance(value, str) else value * 2 + 1


def with_change(config: RunConfig, key: str) -> RunConfig:
    value: Any = asdict(config)
    *path, last = key.split(".")
    place = value
    for part in path:
        place = place[part]
    place[last] = changed(place[last])
    return merge(RunConfig, [("test", OmegaConf.create(value))])


def counts(stage: str, key: str) -> bool:
    """Return whether a key changes the numbers of a stage."""
    section, _, name = key.partition(".")
    if key in NOWHERE | OF_ONE_STAGE[stage] or section == "tracking" or key == "stage":
        return False
    if section == "autoencoder":
        return stage == "autoencoder"  # the other stages have their autoencoder's identity in the lineage, or none
    allowed = MODEL_KEYS[stage]
    return section != "model" or allowed is None or name in allowed


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("key", list(leaves(asdict(RunConfig()))))
def test_each_key_is_in_the_identity_if_it_changes_the_numbers(stage: str, key: str) -> None:
    if key == "stage":
        return
    config = load_config(stage=stage)
    assert (identity(with_change(config, key)) != identity(config)) == counts(stage, key)


def test_stages_differ() -> None:
    assert len({identity(load_config(stage=stage)) for stage in STAGES}) == 3


def test_lineage_counts_in_any_order() -> None:
    config = load_config()
    assert identity(config, corpus="a", autoencoder="b") == identity(config, autoencoder="b", corpus="a")
    assert len({identity(config, corpus=c, autoencoder=a) for c in "ab" for a in "ab"}) == 4


def test_recipe_version_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(load_config())
    monkeypatch.setattr(fingerprint, "RECIPE_VERSION", fingerprint.RECIPE_VERSION + 1)
    assert identity(load_config()) != before


@pytest.mark.parametrize("key", ["enable_progress_bar", "accelerator", "devices", "log_every_n_steps"])
def test_how_lightning_runs_it_does_not_count(key: str) -> None:
    config = load_config()
    other = replace(config, trainer={**config.trainer, key: 1})
    assert identity(other) == identity(config)


def test_identity_leaves_the_configuration_alone_and_is_a_sha256() -> None:
    config = load_config(stage="autoencoder")
    before = copy.deepcopy(config)
    assert len(bytes.fromhex(identity(config))) == 32
    assert config == before

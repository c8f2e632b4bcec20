"""The on-disk contract: manifests and token arrays."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calm_lightning.data.shards import (
    Counts,
    Manifest,
    Settings,
    ShardRecord,
    SourceRecord,
    SplitRecord,
    TokenizerRecord,
    decode_tokens,
    encode_tokens,
    token_dtype,
)
from calm_lightning.errors import DataError


def make_manifest() -> Manifest:
    shards = (
        ShardRecord("train-000000.tar", 2, 100, 90, 4096, "a" * 64),
        ShardRecord("train-000001.tar", 1, 33, 30, 2048, "b" * 64),
    )
    return Manifest(
        tokenizer=TokenizerRecord("bytes", None, 257, 256, "c" * 64),
        dtype="uint16",
        splits={"train": SplitRecord(shards, {"Books": Counts(2, 103, 95), "Règles": Counts(1, 30, 25)})},
        sources=(SourceRecord("train.jsonl", "train", 150, "d" * 64),),
        settings=Settings("bytes", 64, 0.02, 0.02, None),
    )


def test_a_saved_manifest_loads_as_it_was(tmp_path: Path) -> None:
    manifest = make_manifest()
    manifest.save(tmp_path)
    loaded = Manifest.load(tmp_path)
    assert loaded == manifest
    assert loaded.corpus_hash == manifest.corpus_hash
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_corpus_hash_changes_with_any_content() -> None:
    manifest = make_manifest()
    other_tokenizer = replace(manifest, tokenizer=replace(manifest.tokenizer, fingerprint="e" * 64))
    other_settings = replace(manifest, settings=replace(manifest.settings, shard_tokens=65))
    assert len({m.corpus_hash for m in (manifest, other_tokenizer, other_settings)}) == 3


def test_blocks_and_left_over_tokens_add_up() -> None:
    split = make_manifest().splits["train"]
    assert split.totals == Counts(3, 133, 120)
    assert split.blocks(32) == [3, 1]
    assert split.dropped_tokens(32) == 4 + 1


def test_a_missing_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="calm data prepare"):
        Manifest.load(tmp_path / "nowhere")


def test_a_manifest_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="JSON"):
        Manifest.load(tmp_path)


def edited(tmp_path: Path, edit: Any) -> Path:
    value = json.loads(make_manifest().to_json())
    edit(value)
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    return tmp_path


def test_another_schema_version_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"version 7.*version 1"):
        Manifest.load(edited(tmp_path, lambda value: value.update(schema_version=7)))


@pytest.mark.parametrize(
    "edit",
    [
        lambda value: value.pop("tokenizer"),
        lambda value: value["tokenizer"].update(vocabulary="257"),
        lambda value: value["tokenizer"].update(colour="red"),
        lambda value: value.update(dtype="float32"),
        lambda value: value.update(splits=[]),
        lambda value: value["splits"]["train"]["shards"].pop(),
        lambda value: value["splits"]["train"]["domains"]["Books"].update(tokens=1),
        lambda value: value["splits"]["train"]["shards"][0].update(file="../train-000000.tar"),
    ],
)
def test_an_incomplete_or_inconsistent_manifest_is_refused(tmp_path: Path, edit: Any) -> None:
    with pytest.raises(DataError, match="damaged"):
        Manifest.load(edited(tmp_path, edit))


def test_an_unknown_split_names_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'dev'.*train"):
        make_manifest().split("dev")


@given(st.lists(st.integers(0, 65_535)), st.sampled_from(["uint16", "uint32"]))
def test_token_arrays_round_trip(ids: list[int], dtype: str) -> None:
    decoded = decode_tokens(encode_tokens(ids, dtype), dtype)
    assert decoded.tolist() == ids
    assert decoded.dtype == np.dtype(dtype)


def test_a_token_array_of_another_type_or_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="uint32"):
        decode_tokens(encode_tokens([1, 2], "uint32"), "uint16")
    with pytest.raises(ValueError, match="shape"):
        decode_tokens(encode_tokens(np.zeros((2, 2), dtype=np.uint16), "uint16"), "uint16")


def test_dtype_is_the_narrowest_that_holds_every_id() -> None:
    assert token_dtype(65_536) == "uint16"
    assert token_dtype(65_537) == "uint32"

"""Manifests: what a corpus says of itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calm_lightning.data.shards.manifest import (
    TEXT,
    TOKENS,
    Counts,
    Manifest,
    Provenance,
    ShardRecord,
    SourceRecord,
    SplitRecord,
    TokenizerRecord,
)
from calm_lightning.errors import DataError


def make_manifest() -> Manifest:
    shards = (
        ShardRecord("train-000000.tar", 4096, "a" * 64, {"Books": Counts(2, 100, 90)}),
        ShardRecord("train-000001.tar", 2048, "b" * 64, {"Books": Counts(0, 3, 5), "Règles": Counts(1, 30, 25)}),
    )
    return Manifest(
        kind=TOKENS,
        tokenizer=TokenizerRecord("bytes", None, 257, 256, "c" * 64),
        dtype="uint16",
        splits={"train": SplitRecord(shards)},
        provenance=Provenance(
            (SourceRecord("train.jsonl", "train", 150, "d" * 64),),
            {"tokenizer": "bytes", "shard_tokens": 64},
            {"too short": 3},
            {"calm-lightning": "0.1.0"},
        ),
    )


def test_a_saved_manifest_loads_as_it_was(tmp_path: Path) -> None:
    manifest = make_manifest()
    manifest.save(tmp_path)
    loaded = Manifest.load(tmp_path)
    assert loaded == manifest
    assert loaded.corpus_hash == manifest.corpus_hash
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_the_hash_of_a_corpus_changes_with_its_content() -> None:
    manifest = make_manifest()
    other_tokenizer = replace(manifest, tokenizer=replace(manifest.tokenizer, fingerprint="e" * 64))
    shards = manifest.splits["train"].shards
    other_order = replace(manifest, splits={"train": SplitRecord(shards[::-1])})
    assert len({m.corpus_hash for m in (manifest, other_tokenizer, other_order)}) == 3


def test_where_a_corpus_comes_from_is_no_part_of_its_name() -> None:
    manifest = make_manifest()
    assert replace(manifest, provenance=Provenance()).corpus_hash == manifest.corpus_hash


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


def test_a_manifest_nested_without_end_is_refused() -> None:
    with pytest.raises(DataError, match="JSON"):
        Manifest.parse("[" * 100_000, "manifest.json")


def edited(tmp_path: Path, edit: Any) -> Path:
    value = json.loads(make_manifest().to_json())
    edit(value)
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    return tmp_path


def test_another_schema_version_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"version 7.*version 2"):
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
        lambda value: value["splits"]["train"]["shards"][0]["domains"]["Books"].update(tokens=1),
        lambda value: value["splits"]["train"]["shards"][0]["domains"]["Books"].update(tokens=-103, documents=0),
        lambda value: value["splits"]["train"]["shards"][0].update(sha256="../../etc/passwd"),
        lambda value: value["splits"]["train"]["shards"][0].update(bytes="4096"),
        lambda value: value["tokenizer"].update(file="../tokenizer.json"),
        lambda value: value.pop("provenance"),
        lambda value: value["splits"]["train"]["shards"][0]["domains"]["Books"].update(tokens=10**15),
        lambda value: value["splits"]["train"]["shards"][0].update(bytes=2**70),
        lambda value: value["splits"]["train"]["shards"][0].update(bytes=True),
        lambda value: value["splits"]["train"]["shards"][0].update(file="../train-000000.tar"),
    ],
)
def test_an_incomplete_or_inconsistent_manifest_is_refused(tmp_path: Path, edit: Any) -> None:
    with pytest.raises(DataError, match="damaged"):
        Manifest.load(edited(tmp_path, edit))


def test_an_unknown_split_names_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'dev'.*train"):
        make_manifest().split("dev")


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="'val' of the corpus is empty"):
        replace(make_manifest(), splits={"val": SplitRecord(())}).split("val")


def test_a_corpus_of_text_has_no_tokenizer(tmp_path: Path) -> None:
    text = replace(make_manifest(), kind=TEXT, tokenizer=None, dtype="")
    text.save(tmp_path)
    assert Manifest.load(tmp_path) == text
    assert text.corpus_hash != make_manifest().corpus_hash

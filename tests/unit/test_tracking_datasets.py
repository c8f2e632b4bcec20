"""What runs were trained and scored on, as MLflow's datasets: described while the corpus is there, logged once."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow")

import mlflow.data

from calm_lightning.data.config import DataConfig
from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.models.datasets import describe_datasets, describe_split, describe_text, log_datasets
from calm_lightning.tracking.store import open_store

ROWS = {
    "train": [("a long text", "prose"), ("a verse", "poems"), ("one more long text", "prose")],
    "val": [("another", "prose")],
}


@pytest.fixture(scope="module")
def corpus(make_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("datasets") / "small"
    make_corpus(folder, ROWS, 2)
    return folder


def described(corpus: Path | str, **more: Any) -> list[dict[str, Any]]:
    config = DataConfig(corpus=str(corpus), block_tokens=8, **more)
    return describe_datasets({"data": asdict(config)})


def test_both_splits_are_described_as_plain_json(corpus: Path) -> None:
    train, val = found = described(corpus)
    assert json.loads(json.dumps(found)) == found
    assert (train["name"], val["name"]) == ("small/train", "small/val")
    assert [one["tags"]["mlflow.data.context"] for one in found] == ["training", "validation"]
    assert train["digest"] != val["digest"] and len(train["digest"]) <= 36
    profile = json.loads(train["profile"])
    texts = [text for text, _ in ROWS["train"]]
    assert (profile["documents"], profile["text_bytes"]) == (3, sum(map(len, texts)))
    assert profile["tokens"] == sum(len(text) + 1 for text in texts)
    assert profile["vocabulary"] == 257
    assert profile["domains"]["poems"] == {"documents": 1, "tokens": 8, "text_bytes": 7}
    source = json.loads(train["source"])
    assert (source["corpus"], source["split"], source["shards"]) == ("small", "train", 2)
    assert len(source["manifest_sha256"]) == 64


def test_the_same_split_elsewhere_is_the_same_dataset(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "small")
    here, there = described(corpus), described(tmp_path / "small")
    assert [one["digest"] for one in here] == [one["digest"] for one in there]
    assert [one["name"] for one in here] == [one["name"] for one in there]


def test_other_text_and_other_mixtures_are_other_datasets(corpus: Path, make_corpus: Any, tmp_path: Path) -> None:
    make_corpus(tmp_path / "small", {**ROWS, "train": ROWS["train"][:2]}, 2)
    plain, other = described(corpus)[0], described(tmp_path / "small")[0]
    mixed, again = (described(corpus, weights={"prose": 1, "poems": 3})[0] for _ in range(2))
    assert len({plain["digest"], other["digest"], mixed["digest"]}) == 3
    assert mixed == again
    shares = {name: part["share"] for name, part in json.loads(mixed["profile"])["domains"].items()}
    assert shares == {"prose": 0.25, "poems": 0.75}
    assert described(corpus)[1] == described(corpus, weights={"prose": 1, "poems": 3})[1], "scored on the same split"


def test_addresses_are_shown_without_what_is_secret(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calm_lightning.data import corpus as corpus_module

    class Remote(corpus_module.Corpus):
        def __init__(self, config: DataConfig) -> None:
            super().__init__(replace(config, corpus=str(corpus)))

    monkeypatch.setattr(corpus_module, "Corpus", Remote)
    address = "https://user:password@example.org/corpora/small?signature=abc"
    (found,) = describe_split(DataConfig(corpus=address), "val", "evaluation")
    assert "password" not in str(found) and "signature" not in str(found)
    assert found["source_type"] == "http"
    assert json.loads(found["source"])["url"] == "https://example.org/corpora/small"


@pytest.mark.parametrize("config", [{"corpus": ""}, {"corpus": "/nowhere"}])
def test_without_the_corpus_there_is_nothing_to_describe(config: dict[str, str]) -> None:
    assert describe_datasets({"data": asdict(DataConfig(**config))}) == []


def test_a_command_for_shards_is_not_run(corpus: Path, tmp_path: Path) -> None:
    found = described(corpus, shards_at=f"pipe:touch {tmp_path}/ran")
    assert len(found) == 2 and not (tmp_path / "ran").exists()


def test_a_run_has_each_dataset_once_and_mlflow_reads_it(corpus: Path, tmp_path: Path) -> None:
    store = open_store(TrackingConfig(), tmp_path / "runs")
    run_id = store.client.create_run(store.experiment_id).info.run_id
    one, two = described(corpus)
    log_datasets(store.client, run_id, [one])
    for _ in range(2):
        log_datasets(store.client, run_id, [one, two, describe_text("page.txt", "0" * 64, 12)])
    inputs = store.client.get_run(run_id).inputs
    assert inputs is not None
    datasets = inputs.dataset_inputs
    assert sorted(one.dataset.name for one in datasets) == ["page.txt", "small/train", "small/val"]
    (train,) = [one.dataset for one in datasets if one.dataset.name == "small/train"]
    assert mlflow.data.get_source(train).load() == str(corpus)

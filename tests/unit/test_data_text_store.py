"""Text shards tokenised on the fly: the blocks of prepared shards, made once, and found again."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import pickle
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calm_lightning.data.files.fetch import Access, CorpusFiles
from calm_lightning.data.shards.manifest import Manifest
from calm_lightning.data.shards.tokens import TokenShard, file_sha256
from calm_lightning.data.stores.text import TextStore, text_tokenizer
from calm_lightning.data.tokenizers import make_tokenizer
from calm_lightning.errors import DataError, ShardError
from data_pipelines.indexing.index import index

Documents = Sequence[tuple[str, str]]

SHARDS: list[Documents] = [
    [
        (f"shard {shard} document {number}: the sea, the wind and the sky {number * shard}", "BA"[number % 2])
        for number in range(7)
    ]
    for shard in range(4)
]


def write_tar(path: Path, documents: Documents) -> None:
    with tarfile.open(path, "w") as archive:
        for number, (text, domain) in enumerate(documents):
            content = json.dumps({"text": text, "meta": {"pile_set_name": domain}}).encode()
            info = tarfile.TarInfo(f"{number:06d}.json")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def make_corpus(directory: Path, shards: Sequence[Documents] = SHARDS) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for number, documents in enumerate(shards):
        write_tar(directory / f"{number:03d}.tar", documents)
    index([str(directory)], directory, val_shards=1)


def open_files(corpus: Path, cache: Path) -> tuple[CorpusFiles, Manifest]:
    files = CorpusFiles(str(corpus), Access(cache_dir=str(cache)))
    return files, files.manifest()


def open_store(corpus: Path, cache: Path, spec: str = "bytes") -> TextStore:
    files, manifest = open_files(corpus, cache)
    return TextStore(files, manifest, text_tokenizer(files, manifest, spec))


def cached(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.cached"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    make_corpus(tmp_path / "corpus")
    return tmp_path / "corpus"


@pytest.mark.parametrize("spec", ["bytes", "bpe:280"])
def test_blocks_are_those_of_the_documents_with_separators_in_front(corpus: Path, tmp_path: Path, spec: str) -> None:
    store = open_store(corpus, tmp_path / "cache", spec)
    tokenizer = make_tokenizer(spec, [text for documents in SHARDS[:3] for text, _ in documents])
    assert (store.vocabulary, store.separator_id) == (tokenizer.vocabulary, tokenizer.separator_id)
    for number, documents in enumerate(SHARDS[:3]):
        shard = store.open("train", number)
        encoded = [[tokenizer.separator_id, *tokenizer.encode(text)] for text, _ in documents]
        assert shard.tokens.tolist() == [token for ids in encoded for token in ids]
        assert shard.tokens.dtype == np.uint16
        assert shard.ends.tolist() == np.cumsum([len(ids) for ids in encoded]).tolist()
        assert [shard.names[domain] for domain in shard.domains] == [domain for _, domain in documents]
        assert shard.text_bytes.tolist() == [len(text.encode()) for text, _ in documents]
        by_domain = {
            name: sum(len(i) for i, (_, d) in zip(encoded, documents, strict=True) if d == name) for name in "AB"
        }
        assert store.tokens("train", number) == by_domain


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=30))
def test_any_documents_are_encoded_in_order(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("any")
    make_corpus(place / "corpus", [[(text, "D") for text in texts], SHARDS[0]])
    shard = open_store(place / "corpus", place / "cache").open("train", 0)
    assert shard.tokens.tolist() == [token for text in texts for token in (256, *text.encode())]


def test_more_documents_than_a_batch_stay_in_order(tmp_path: Path) -> None:
    texts = [f"{number} " * (number % 5) for number in range(3000)] + ["x" * (3 << 20)] + ["last"]
    make_corpus(tmp_path / "corpus", [[(text, "D") for text in texts], SHARDS[0]])
    shard = open_store(tmp_path / "corpus", tmp_path / "cache").open("train", 0)
    expected = np.concatenate([np.frombuffer(text.encode(), np.uint8).astype(np.uint16) for text in texts])
    assert (shard.tokens[shard.tokens != 256] == expected).all()
    assert np.diff(shard.ends, prepend=0).tolist() == [len(text) + 1 for text in texts]


def test_a_shard_is_tokenised_once_for_all_later_runs(corpus: Path, tmp_path: Path) -> None:
    first = open_store(corpus, tmp_path / "cache").open("train", 0).tokens.tolist()
    (made,) = cached(tmp_path / "cache")
    inode = made.stat().st_ino
    assert open_store(corpus, tmp_path / "cache").open("train", 0).tokens.tolist() == first
    assert made.stat().st_ino == inode
    open_store(corpus, tmp_path / "cache", "bpe:270").open("train", 0)
    assert len(cached(tmp_path / "cache")) == 3  # the bytes, the BPE and its ids


def test_counts_outlive_eviction_so_skipped_shards_are_not_read(corpus: Path, tmp_path: Path) -> None:
    store = open_store(corpus, tmp_path / "cache")
    counts = [dict(store.tokens("train", shard)) for shard in range(3)]
    for path in (*cached(tmp_path / "cache"), *corpus.glob("*.tar")):
        path.unlink()
    again = open_store(corpus, tmp_path / "cache")
    assert [again.tokens("train", shard) for shard in range(3)] == counts
    with pytest.raises(ShardError, match=r"000\.tar is missing"):
        again.open("train", 0)


def test_an_open_shard_outlives_its_file_and_its_text(corpus: Path, tmp_path: Path) -> None:
    store = open_store(corpus, tmp_path / "cache")
    before = store.open("train", 1).tokens.tolist()
    for path in (*cached(tmp_path / "cache"), corpus / "001.tar"):
        path.unlink()
    assert store.open("train", 1).tokens.tolist() == before


def test_prefetched_shards_are_there_and_errors_wait_for_open(corpus: Path, tmp_path: Path) -> None:
    (corpus / "001.tar").write_bytes(b"other")
    store = open_store(corpus, tmp_path / "cache")
    store.prefetch("train", [0, 1, 2])
    deadline = time.monotonic() + 20
    while len(cached(tmp_path / "cache")) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(cached(tmp_path / "cache")) == 2
    with pytest.raises(ShardError, match=r"001\.tar"):
        store.open("train", 1)
    assert isinstance(store.open("train", 2), TokenShard)


def test_a_manifest_that_counts_wrong_is_noticed(corpus: Path, tmp_path: Path) -> None:
    path = corpus / "manifest.json"
    value = json.loads(path.read_text())
    train = value["splits"]["train"]
    for place in (train["shards"][0]["domains"]["B"], train["domains"]["B"], train["totals"]):
        place["documents"] += 1
    path.write_text(json.dumps(value))
    with pytest.raises(ShardError, match=r"000\.tar holds 4 documents .* its manifest says 5"):
        open_store(corpus, tmp_path / "cache").open("train", 0)


def test_a_tokenizer_is_trained_once_on_the_train_split(corpus: Path, tmp_path: Path) -> None:
    files, manifest = open_files(corpus, tmp_path / "cache")
    trained = text_tokenizer(files, manifest, "bpe:285")
    texts = [text for documents in SHARDS[:3] for text, _ in documents]
    assert trained.fingerprint == make_tokenizer("bpe:285", texts).fingerprint
    for path in corpus.glob("*.tar"):
        path.unlink()
    again = text_tokenizer(files, manifest, "bpe:285")
    assert again.fingerprint == trained.fingerprint
    assert again.encode("the sea<|endoftext|>") == trained.encode("the sea<|endoftext|>")
    with pytest.raises(ShardError, match="missing"):
        text_tokenizer(files, manifest, "bpe:286")


def test_specs_that_do_not_work_are_one_sentence(corpus: Path, tmp_path: Path) -> None:
    files, manifest = open_files(corpus, tmp_path / "cache")
    for spec, message in (
        ("", r"corpus of text: name its tokenizer with data\.tokenizer"),
        ("wordpiece", "unknown tokenizer 'wordpiece'"),
        ("bpe:99999", "so small that it gives only"),
        ("file:nowhere.json", r"nowhere\.json cannot be read"),
    ):
        with pytest.raises(DataError, match=message):
            text_tokenizer(files, manifest, spec)
    assert not list((tmp_path / "cache").rglob("*.partial"))


def read_in_child(store: TextStore, barrier: Any, shard: int, answer: Any) -> None:
    barrier.wait()
    shown = store.open("train", shard)
    answer.put(f"{os.getpid()} {shown.tokens.tolist()[:50]}")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_the_work(corpus: Path, tmp_path: Path, method: str) -> None:
    store = open_store(corpus, tmp_path / "cache", "bpe:270")
    forged = "a text<|endoftext|>with a forged border"
    assert store.separator_id not in pickle.loads(pickle.dumps(store))._tokenizer.encode(forged)
    store.open("train", 2)
    store.prefetch("train", [2])
    context: Any = multiprocessing.get_context(method)
    barrier, answer = context.Barrier(2), context.Queue()
    children = [context.Process(target=read_in_child, args=(store, barrier, 0, answer)) for _ in range(2)]
    for child in children:
        child.start()
    answers = [answer.get(timeout=60).split(" ", 1) for _ in children]
    for child in children:
        child.join()
    assert answers[0][0] != answers[1][0] and answers[0][1] == answers[1][1]
    assert answers[0][1] == str(store.open("train", 0).tokens.tolist()[:50])
    assert len(cached(tmp_path / "cache")) == 3


def test_a_damaged_copy_is_made_again(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = open_store(corpus, tmp_path / "cache").open("train", 0).tokens.tolist()
    (made,) = cached(tmp_path / "cache")
    whole, digest = made.read_bytes(), file_sha256(made)
    flipped = bytearray(whole)
    flipped[700] ^= 1
    for damage in (b"", whole[:900], bytes(flipped)):
        made.unlink()
        made.write_bytes(damage)
        with caplog.at_level(logging.WARNING):
            assert open_store(corpus, tmp_path / "cache").open("train", 0).tokens.tolist() == expected
        assert "the copy in the cache is damaged and is made again" in caplog.text
        assert file_sha256(made) == digest
        caplog.clear()


def test_tokens_that_come_out_differently_are_refused(corpus: Path, tmp_path: Path) -> None:
    store = open_store(corpus, tmp_path / "cache")
    store.open("train", 0)
    (made,) = cached(tmp_path / "cache")
    made.unlink()
    (note,) = (tmp_path / "cache").rglob("notes/*.json")
    value = json.loads(note.read_text())
    note.write_text(json.dumps(value | {"sha256": "0" * 64}))
    with pytest.raises(ShardError, match=r"000\.tar: the data differ from what they were before"):
        open_store(corpus, tmp_path / "cache").open("train", 0)
    note.write_text("{torn")
    assert open_store(corpus, tmp_path / "cache").tokens("train", 0) == value["tokens"]

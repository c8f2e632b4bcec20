"""Statistics of a corpus against what is known of it, and the report made of them."""

from __future__ import annotations

import json
import random
import re
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_lightning.data.shards.manifest import TEXT, Counts, Manifest, Provenance, ShardRecord, SplitRecord
from calm_lightning.data.shards.tokens import add_member, file_sha256
from calm_lightning.data.tokenizers import BytesTokenizer
from calm_lightning.errors import DataError
from data_pipelines.inspecting.batches import BatchReader
from data_pipelines.inspecting.lengths import Lengths, log_edges
from data_pipelines.inspecting.repeats import Group, RepeatCounter, Repeats, content_hash
from data_pipelines.inspecting.stats import Statistics, measure
from data_pipelines.inspecting.stats_report import can_draw, histogram, tables, write_report

WORDS = [f"word{i}" for i in range(400)]


def prose(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


ROWS = {
    "train": [(prose(i, 5 + 7 * i), ("Books", "Règles <b>$x$")[i % 2]) for i in range(12)]
    + [(prose(3, 26), "Web")] * 2,
    "val": [(prose(100), "Books"), (prose(3, 26), "Web"), ("日本語", "Règles <b>$x$")],
    "test": [("", "Web")],
}


def make_text_corpus(out: Path, data: Mapping[str, Sequence[tuple[str, str]]], per_shard: int) -> None:
    out.mkdir(parents=True)
    splits = {}
    for split, rows in data.items():
        records = []
        for first in range(0, len(rows), per_shard):
            path, domains = out / f"{split}-{first // per_shard:06d}.tar", dict[str, Counts]()
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
                for number, (text, domain) in enumerate(rows[first : first + per_shard]):
                    value = {"text": text, "meta": {"pile_set_name": domain}}
                    add_member(archive, f"{number:06d}.json", json.dumps(value).encode())
                    domains[domain] = domains.get(domain, Counts()) + Counts(1, 0, len(text.encode()))
            records.append(ShardRecord(path.name, path.stat().st_size, file_sha256(path), domains))
        splits[split] = SplitRecord(tuple(records))
    Manifest(TEXT, None, "", splits, Provenance()).save(out)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory, make_corpus: Any) -> tuple[Path, Path]:
    """The same documents as tokens and as text."""
    place = tmp_path_factory.mktemp("corpora")
    make_corpus(place / "tokens", ROWS, 5)
    make_text_corpus(place / "text", ROWS, 4)
    return place / "tokens", place / "text"


@pytest.fixture(scope="module")
def of_tokens(corpora: tuple[Path, Path]) -> Statistics:
    return measure(corpora[0], block_tokens=64)


lengths_of_documents = st.lists(st.integers(0, 3_000) | st.integers(0, 1 << 40), min_size=1, max_size=200)


@given(values=lengths_of_documents, cuts=st.lists(st.integers(0, 200), max_size=4))
def test_lengths_are_counted_however_they_are_batched(values: list[int], cuts: list[int]) -> None:
    found, row = Lengths(), np.array(values, dtype=np.int64)
    for part in np.split(row, sorted(min(cut, len(row)) for cut in cuts)):
        found.add(part)
    assert (found.count, found.total) == (len(values), sum(values))
    assert (found.smallest, found.largest) == (min(values), max(values))
    for percent in (0, 5, 50, 95, 99, 100):
        exact = int(np.percentile(row, percent, method="inverted_cdf"))
        close = found.percentile(percent)
        assert close == exact if exact < 512 else abs(close - exact) <= exact / 256


@given(values=lengths_of_documents, per_doubling=st.integers(1, 3))
def test_a_histogram_holds_every_document_once(values: list[int], per_doubling: int) -> None:
    found = Lengths()
    found.add(np.array(values, dtype=np.int64))
    edges = log_edges(found.largest, per_doubling)
    assert edges[0] == 0 and edges == sorted(set(edges)) and edges[-2] <= found.largest < edges[-1]
    documents, total = found.histogram(edges)
    assert sum(documents) == len(values)
    assert abs(sum(total) - found.total) <= found.total / 256
    if per_doubling == 1:
        assert documents == np.histogram(values, edges)[0].tolist()


def counted(data: Mapping[str, Sequence[int]], held: int) -> Repeats:
    with RepeatCounter(list(data), held) as counter:
        for split, texts in data.items():
            for first in range(0, len(texts), 3):
                counter.add(split, [content_hash(bytes([text])) for text in texts[first : first + 3]])
        return counter.finish()


texts = st.lists(st.integers(0, 12), max_size=25)


@settings(deadline=None, max_examples=30)
@given(train=texts, val=texts, held=st.sampled_from([5, 1 << 19]))
def test_repeats_are_those_of_a_plain_count_in_memory_or_in_files(train: list[int], val: list[int], held: int) -> None:
    data = {"train": train, "val": val}
    found = counted(data, held)
    assert found.documents == {split: len(own) for split, own in data.items()}
    assert found.distinct == {split: len(set(own)) for split, own in data.items()}
    assert found.also_in == {
        ("train", "val"): sum(text in val for text in train),
        ("val", "train"): sum(text in train for text in val),
    }
    copies = {text: number for text, number in Counter(train + val).items() if number > 1}
    assert found.groups == Counter(copies.values())
    first = {text: ("train", train.index(text)) if text in train else ("val", val.index(text)) for text in copies}
    expected = [Group(number, first[text][0], first[text][1] + 1) for text, number in copies.items()]
    order = ["train", "val"].index
    assert found.largest == sorted(expected, key=lambda one: (-one.copies, order(one.split), one.document))[:10]


def test_temporary_files_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with RepeatCounter(["train"], 2) as counter:
        counter.add("train", [content_hash(b"a"), content_hash(b"b")])
        assert len(list(tmp_path.iterdir())) == 1
        counter.finish()
    assert list(tmp_path.iterdir()) == []


def test_counts_are_the_manifests(corpora: tuple[Path, Path], of_tokens: Statistics) -> None:
    for corpus, found in ((corpora[0], of_tokens), (corpora[1], measure(corpora[1]))):
        manifest = Manifest.load(corpus)
        for name, split in found.splits.items():
            assert split.counts == manifest.splits[name].totals
            assert {domain: one.counts for domain, one in split.domains.items()} == manifest.splits[name].domains


def test_lengths_and_blocks_are_those_of_the_documents(corpora: tuple[Path, Path], of_tokens: Statistics) -> None:
    train = of_tokens.splits["train"]
    assert of_tokens.units == ["tokens", "bytes", "characters"]
    assert train.lengths["tokens"].largest == max(len(text.encode()) + 1 for text, _ in ROWS["train"])
    assert of_tokens.splits["val"].lengths["characters"].smallest == 3
    assert of_tokens.splits["val"].lengths["bytes"].smallest == 9
    manifest = Manifest.load(corpora[0]).splits["train"]
    assert train.blocks is not None and train.blocks.blocks == sum(manifest.blocks(64))
    assert train.blocks.left_over == manifest.dropped_tokens(64)
    assert train.blocks.whole_documents == sum(len(text.encode()) + 1 >= 64 for text, _ in ROWS["train"])


def test_both_kinds_of_corpora_tell_the_same(corpora: tuple[Path, Path], of_tokens: Statistics) -> None:
    of_text = measure(corpora[1])
    assert of_text.repeats == of_tokens.repeats
    for name, split in of_text.splits.items():
        for unit in ("characters", "bytes"):
            assert split.lengths[unit].to_dict() == of_tokens.splits[name].lengths[unit].to_dict()
        assert split.blocks is None


def test_copies_are_found_within_and_across_splits(of_tokens: Statistics) -> None:
    repeats = of_tokens.repeats
    assert repeats.documents["train"] - repeats.distinct["train"] == 2
    assert repeats.also_in["val", "train"] == 1 and repeats.also_in["train", "val"] == 3
    assert repeats.also_in["test", "train"] == 0
    assert repeats.groups == {4: 1} and repeats.largest == [Group(4, "train", 4)]


def test_near_copies_are_found_across_splits(tmp_path: Path, make_corpus: Any) -> None:
    base = prose(1, 300)
    near = base.replace("word7 ", "other ", 1)
    assert near != base
    rows = {"train": [(near, "a"), (prose(2, 300), "a"), (prose(4, 300), "a")], "test": [(base, "a")]}
    make_corpus(tmp_path / "c", rows, 2)
    found = measure(tmp_path / "c", near_threshold=0.8)
    assert found.near is not None and found.near.documents == {"test": 0, "train": 1}
    assert found.repeats.groups == {}
    assert ("train", "1", "33.3 %") in next(table for table in tables(found) if table.title == "near duplicates").rows
    with pytest.raises(DataError, match="between"):
        measure(tmp_path / "c", near_threshold=1.5)


def test_without_characters_nothing_is_decoded(corpora: tuple[Path, Path]) -> None:
    found = measure(corpora[0], characters=False)
    assert found.units == ["tokens", "bytes"]
    assert [table.title for table in tables(found)][1:3] == [
        "length of documents in tokens",
        "length of documents in bytes of UTF-8",
    ]


@pytest.mark.parametrize("kind", [0, 1])
def test_batches_are_bounded(tmp_path: Path, make_corpus: Any, monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    monkeypatch.setattr("data_pipelines.inspecting.batches._TOKENS", 500)
    monkeypatch.setattr("data_pipelines.inspecting.batches._CHARACTERS", 500)
    rows = {"train": [("x" * 2_000, "a"), ("y" * 400, "a"), *[("", "a") for _ in range(1_200)], ("z" * 900, "a")]}
    if kind:
        make_text_corpus(tmp_path / "c", rows, 5_000)
    else:
        make_corpus(tmp_path / "c", rows, 5_000)
    manifest = Manifest.load(tmp_path / "c")
    reader = BatchReader(tmp_path / "c", manifest, None if kind else BytesTokenizer(), keep_texts=True)
    batches = list(reader.batches(manifest.splits["train"].shards[0]))
    assert [text for batch in batches for text in batch.texts] == [text for text, _ in rows["train"]]
    for batch in batches:
        assert len(batch.domains) <= 1_024
        assert sum(len(text) for text in batch.texts[:-1]) <= 500
        assert len(batch.hashes) == len(batch.texts) == len(batch.lengths["bytes"])


def test_a_damaged_shard_is_named(tmp_path: Path, make_corpus: Any) -> None:
    make_corpus(tmp_path / "c", ROWS, 5)
    (tmp_path / "c" / "val-000000.tar").write_bytes(b"none")
    with pytest.raises(DataError, match=r"val-000000\.tar cannot be read .* `calm data verify`"):
        measure(tmp_path / "c")


def test_a_corpus_without_documents_is_refused(tmp_path: Path, make_corpus: Any) -> None:
    make_corpus(tmp_path / "c", {"train": []}, 5)
    with pytest.raises(DataError, match="has no document"):
        measure(tmp_path / "c")


def test_the_histogram_for_terminals_counts_every_document(of_tokens: Statistics) -> None:
    bins, counts = histogram(of_tokens)
    assert {name: sum(own) for name, own in counts.items()} == {"train": 14, "val": 3, "test": 1}
    assert all(low <= high for low, high in bins) and len(bins) == len(counts["train"])


def test_tables_are_rectangles(of_tokens: Statistics) -> None:
    shown = tables(of_tokens)
    assert all(len(row) == len(table.head) for table in shown for row in table.rows)
    titles = [table.title for table in shown]
    assert titles[0] == "splits" and "exact duplicates" in titles and "domains of val" in titles


@pytest.mark.skipif(not can_draw(), reason="matplotlib is not installed")
def test_the_report_is_whole_and_needs_nothing_else(of_tokens: Statistics, tmp_path: Path) -> None:
    out = tmp_path / "report"
    written = write_report(out, of_tokens)
    assert sorted(path.name for path in written) == sorted(path.name for path in out.iterdir())
    assert {path.suffix for path in written} == {".json", ".html", ".png"} and len(written) == 5
    value = json.loads((out / "stats.json").read_text(encoding="utf-8"))
    assert value["splits"]["train"]["documents"] == 14
    assert value["exact_duplicates"]["groups"] == [{"copies": 4, "texts": 1}]
    page = (out / "stats.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3 and not re.search(r'(src|href)="(?!data:)', page)
    assert "Règles &lt;b&gt;$x$" in page and "<b>" not in page
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written if path.suffix == ".png")


@pytest.mark.skipif(not can_draw(), reason="matplotlib is not installed")
def test_figures_of_an_earlier_corpus_do_not_stay(of_tokens: Statistics, tmp_path: Path, make_corpus: Any) -> None:
    write_report(tmp_path / "report", of_tokens)
    assert (tmp_path / "report" / "duplicates.png").exists()
    make_corpus(tmp_path / "c", {"train": [("alone", "a")]}, 5)
    written = write_report(tmp_path / "report", measure(tmp_path / "c"))
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == sorted(path.name for path in written)
    assert not (tmp_path / "report" / "duplicates.png").exists()


@pytest.mark.skipif(not can_draw(), reason="matplotlib is not installed")
def test_near_copies_alone_are_drawn_too(tmp_path: Path, make_corpus: Any) -> None:
    text = prose(1, 300)
    make_corpus(
        tmp_path / "c", {"日本": [(text, "$"), (text.replace("word7 ", "other ", 1), "\x00" + "long " * 20)]}, 5
    )
    found = measure(tmp_path / "c", near_threshold=0.8)
    assert not found.repeats.groups
    assert tmp_path / "duplicates.png" in write_report(tmp_path, found)

"""The second reader: what it reads, and every way in which a corpus can disagree with its manifest."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calm_lightning.data.shards.manifest import TEXT, Counts, Manifest, Provenance, ShardRecord, SplitRecord
from calm_lightning.data.shards.tokens import add_member, file_sha256
from calm_lightning.data.tokenizers import BPETokenizer, record_of, train_bpe
from calm_lightning.errors import DataError
from data_pipelines.inspecting.verify import find_problems, find_strangers, read_shard

ROWS = {
    "train": [("the first text", "Books"), ("Règles, 2ème édition", "Web"), ("", "Web"), ("a third one", "Books")],
    "val": [("held out", "Web")],
}
FIRST = "train-000000.tar"
Members = dict[str, Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, make_corpus: Any) -> Path:
    out = tmp_path_factory.mktemp("corpora") / "good"
    make_corpus(out, ROWS, 3)
    return out


@pytest.fixture
def corpus(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "corpus"))


def make_text_corpus(out: Path) -> Path:
    out.mkdir(parents=True)
    splits = {}
    for split, rows in ROWS.items():
        path, domains = out / f"{split}-000000.tar", dict[str, Counts]()
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for number, (text, domain) in enumerate(rows):
                value = {"text": text, "meta": {"pile_set_name": domain}}
                add_member(archive, f"{split}-{number:06d}.json", json.dumps(value).encode())
                domains[domain] = domains.get(domain, Counts()) + Counts(1, 0, len(text.encode()))
        splits[split] = SplitRecord((ShardRecord(path.name, path.stat().st_size, file_sha256(path), domains),))
    Manifest(TEXT, None, "", splits, Provenance()).save(out)
    return out


def change_record(corpus: Path, change: Callable[[ShardRecord], ShardRecord]) -> None:
    """Change what the manifest says of the first shard of train."""
    manifest = Manifest.load(corpus)
    train = manifest.splits["train"]
    record = SplitRecord((change(train.shards[0]), *train.shards[1:]))
    replace(manifest, splits={**manifest.splits, "train": record}).save(corpus)


def npy(array: np.ndarray[Any, Any], pickled: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


def rewrite(corpus: Path, edit: Callable[[Members], Any]) -> None:
    """Edit the members of the first shard of train, and let the manifest know the new file."""
    path = corpus / FIRST
    with tarfile.open(path) as archive:
        members: Members = {}
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            data = content.read()
            members[member.name.partition(".")[2]] = data if member.name.endswith("json") else np.load(io.BytesIO(data))
    edit(members)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, value in members.items():
            if isinstance(value, tarfile.TarInfo):
                archive.addfile(value)
            else:
                add_member(archive, f"train-000000.{name}", value if isinstance(value, bytes) else npy(value))
    size, digest = path.stat().st_size, file_sha256(path)
    change_record(corpus, lambda shard: replace(shard, bytes=size, sha256=digest))


def test_a_good_corpus_has_no_problem(good: Path) -> None:
    seen: list[int] = []
    assert find_problems(good, deep=True, progress=seen.append) == []
    assert sum(seen) == sum(path.stat().st_size for path in good.glob("*.tar"))


def test_the_second_reader_reads_what_was_written(good: Path) -> None:
    documents = [document for part in (0, 1) for document in read_shard(good / f"train-{part:06d}.tar", "uint16")]
    texts = [bytes(document.tokens[1:].tolist()).decode() for document in documents]
    assert [(text, document.domain) for text, document in zip(texts, documents, strict=True)] == ROWS["train"]
    assert [document.number for document in documents] == [1, 2, 3, 1]
    assert all(document.tokens[0] == 256 for document in documents)
    assert [document.text_bytes for document in documents] == [len(text.encode()) for text in texts]


def _set(name: str, place: int, value: int) -> Callable[[Members], None]:
    return lambda members: members[name].__setitem__(place, value)


def _put(name: str, value: Callable[[Any], Any]) -> Callable[[Members], None]:
    return lambda members: members.__setitem__(name, value(members[name]))


def _rename(members: Members) -> None:
    for name in list(members):
        members["ids.npy" if name == "tokens.npy" else name] = members.pop(name)


def _link(members: Members) -> None:
    link = tarfile.TarInfo("train-000000.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members["json"] = link


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_set("tokens.npy", 0, 65), r"1 document\(s\) without the separator in front, the first is document 1"),
        (_set("tokens.npy", 20, 256), r"1 separator\(s\) within documents, the first in document 2"),
        (_set("tokens.npy", 20, 300), "holds id 300 in document 2, the tokenizer has 257"),
        (_set("domains.npy", 0, 1), "domain 'Books': it holds 0 documents"),
        (_set("domains.npy", 0, 2), "document 1 has the impossible domain 2"),
        (_set("text_bytes.npy", 1, -1), "document 2 has the impossible text_bytes -1"),
        (_set("text_bytes.npy", 1, 5), "domain 'Web': it holds 2 documents"),
        (_set("lengths.npy", 0, 14), "add up to"),
        (_put("lengths.npy", lambda row: row[:-1]), "different lengths"),
        (_put("tokens.npy", lambda row: row.astype(np.int64)), "not a row of uint16"),
        (_put("tokens.npy", lambda row: row.reshape(1, -1)), "not a row of uint16"),
        (_put("domains.npy", lambda row: npy(row.astype(object), pickled=True)), "allow_pickle=False"),
        (_put("tokens.npy", lambda row: npy(row)[:-4]), "not a readable token shard"),
        (_put("json", lambda _: b"{}"), "does not name its domains"),
        (_put("json", lambda _: b'{"domains": ["Web", "Web"]}'), "names a domain twice"),
        (_put("json", lambda _: b"\xff"), "not a readable token shard"),
        (lambda members: members.pop("text_bytes.npy"), "its members are"),
        (lambda members: members.update({"cls": b"1"}), "its members are"),
        (_rename, r"train-000000\.ids\.npy"),
        (_link, "is no file, or is there twice"),
    ],
)
def test_what_a_shard_holds_is_held_to_the_contract(corpus: Path, edit: Callable[[Members], Any], message: str) -> None:
    rewrite(corpus, edit)
    problems = find_problems(corpus)
    assert problems and all(FIRST in problem for problem in problems)
    assert re.search(message, "\n".join(problems))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10_239), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(good: Path, tmp_path_factory: pytest.TempPathFactory, place: int, bit: int) -> None:
    broken = Path(shutil.copytree(good, tmp_path_factory.mktemp("flip") / "c"))
    data = bytearray((broken / FIRST).read_bytes())
    data[place % len(data)] ^= 1 << bit
    (broken / FIRST).write_bytes(data)
    assert find_problems(broken) == [f"shard {broken / FIRST} is damaged: its SHA-256 is not the manifest's"]


def test_every_problem_is_listed(corpus: Path) -> None:
    (corpus / FIRST).unlink()
    (corpus / "train-000001.tar").write_bytes(b"short")
    (corpus / "val-000000.tar").unlink()
    (corpus / "val-000000.tar").mkdir()
    problems = find_problems(corpus)
    assert [problem.partition("tar")[2] for problem in problems] == [
        " is missing",
        " is damaged: it has 5 bytes, not 10,240",
        " is missing",
    ]


def test_counts_of_the_manifest_are_compared_by_domain(corpus: Path) -> None:
    change_record(
        corpus, lambda shard: replace(shard, domains={"Books": shard.domains["Web"], "Web": shard.domains["Books"]})
    )
    problems = find_problems(corpus)
    assert [problem.partition("domain ")[2][:6] for problem in problems] == ["'Books", "'Web':"]


def test_a_shard_named_twice_is_a_problem(corpus: Path) -> None:
    manifest = Manifest.load(corpus)
    split = SplitRecord(manifest.splits["train"].shards * 2)
    replace(manifest, splits={"train": split}).save(corpus)
    assert find_problems(corpus) == [
        "the manifest names shard train-000000.tar twice",
        "the manifest names shard train-000001.tar twice",
    ]


def test_only_deep_sees_a_wrong_length_that_shard_and_manifest_share(corpus: Path) -> None:
    def longer(shard: ShardRecord) -> ShardRecord:
        return replace(shard, domains={**shard.domains, "Books": shard.domains["Books"] + Counts(0, 0, 1)})

    rewrite(corpus, _set("text_bytes.npy", 0, 15))
    change_record(corpus, longer)
    assert find_problems(corpus) == []
    (problem,) = find_problems(corpus, deep=True)
    assert problem.endswith(f"{FIRST}, document 1: its tokens are 14 bytes of text, it says 15")


def with_tokenizer(corpus: Path, tokenizer: BPETokenizer) -> None:
    manifest = Manifest.load(corpus)
    replace(manifest, tokenizer=record_of(tokenizer, tokenizer.save(corpus))).save(corpus)


def test_a_replaced_tokenizer_is_a_problem(corpus: Path) -> None:
    with_tokenizer(corpus, train_bpe(["some text"], 257))
    train_bpe(["other words, many more of them"], 258).save(corpus)
    assert "does not match its shards" in find_problems(corpus)[0]


def test_a_tokenizer_that_loses_something_proves_nothing(corpus: Path) -> None:
    train_bpe(["some text"], 257).save(corpus)
    value = json.loads((corpus / "tokenizer.json").read_text())
    value["normalizer"] = {"type": "Lowercase"}
    with_tokenizer(corpus, BPETokenizer(json.dumps(value).encode(), "test"))
    with pytest.raises(DataError, match="does not give back texts as they were"):
        find_problems(corpus, deep=True)


def test_strangers_are_named_and_are_no_problem(corpus: Path) -> None:
    (corpus / "notes.txt").write_text("mine")
    (corpus / ".train-000000.tar.partial").touch()
    assert find_strangers(corpus) == [".train-000000.tar.partial", "notes.txt"]
    assert find_problems(corpus) == []


def test_shards_may_lie_elsewhere(corpus: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "other.txt").touch()
    for shard in corpus.glob("*.tar"):
        shard.rename(elsewhere / shard.name)
    assert find_problems(corpus, elsewhere) == []
    assert find_strangers(corpus, elsewhere) == []
    assert len(find_problems(corpus)) == 3


def test_a_corpus_of_text_is_reread(tmp_path: Path) -> None:
    corpus = make_text_corpus(tmp_path / "text")
    assert find_problems(corpus, deep=True) == [] and find_strangers(corpus) == []
    change_record(corpus, lambda shard: replace(shard, domains={"Books": shard.totals}))
    problems = find_problems(corpus)
    assert len(problems) == 2 and "domain 'Books': it holds 2 documents" in problems[0]


def test_a_damaged_tar_of_text_is_named(tmp_path: Path) -> None:
    corpus = make_text_corpus(tmp_path / "text")
    path = corpus / FIRST
    path.write_bytes(path.read_bytes()[:700])
    size, digest = path.stat().st_size, file_sha256(path)
    change_record(corpus, lambda shard: replace(shard, bytes=size, sha256=digest))
    (problem,) = find_problems(corpus)
    assert problem.startswith(f"shard {path}")


def test_a_directory_without_a_manifest_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a prepared corpus"):
        find_problems(tmp_path)

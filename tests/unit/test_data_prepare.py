"""`prepare` and `verify`: reproducible, idempotent, whole or absent."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from calm_lightning.data.shards import Manifest, encode_tokens, file_sha256
from calm_lightning.data.tokenizers import load_tokenizer, train_bpe
from calm_lightning.errors import DataError
from data_pipelines.prepare import Progress, prepare
from data_pipelines.split import hash_split
from data_pipelines.verify import find_problems, read_shard

TEXTS = [f"Document number {i}. " + "It tells of rivers, mountains and the sea. " * (i % 5) for i in range(3000)]


def write_source(path: Path, texts: list[str]) -> Path:
    rows = [{"text": text, "meta": {"pile_set_name": f"D{i % 3}"}} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "texts.jsonl", TEXTS)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def stored_texts(corpus: Path, split: str) -> list[str]:
    manifest = Manifest.load(corpus)
    tokenizer = load_tokenizer(corpus, manifest.tokenizer)
    shards = manifest.split(split).shards
    documents = [d for shard in shards for d in read_shard(corpus / shard.file, manifest.dtype)]
    assert all(d.tokens[0] == manifest.tokenizer.separator_id for d in documents)
    return [tokenizer.decode(d.tokens[1:].tolist()) for d in documents]


@pytest.mark.parametrize("spec", ["bpe:400", "bytes"])
def test_every_text_comes_back_from_the_split_its_hash_chose(source: Path, tmp_path: Path, spec: str) -> None:
    manifest = prepare([source], tmp_path / "c", spec, shard_tokens=20_000, val_fraction=0.1, test_fraction=0.1)
    for split in ("train", "val", "test"):
        assert stored_texts(tmp_path / "c", split) == [t for t in TEXTS if hash_split(t, 0.1, 0.1) == split]
    total = sum(record.totals.text_bytes for record in manifest.splits.values())
    assert total == sum(len(text.encode()) for text in TEXTS)
    assert set(manifest.splits["train"].domains) == {"D0", "D1", "D2"}
    assert len(manifest.splits["train"].shards) > 2
    assert all(shard.tokens >= 20_000 for shard in manifest.splits["train"].shards[:-1])
    assert find_problems(tmp_path / "c") == []


def test_laid_out_splits_are_kept(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for split in ("train", "val"):
        write_source(raw / f"{split}.jsonl", [f"{split} {i}" for i in range(5)])
    manifest = prepare([raw], tmp_path / "c", "bytes")
    assert list(manifest.splits) == ["train", "val"]
    assert stored_texts(tmp_path / "c", "val") == [f"val {i}" for i in range(5)]


def test_the_tokenizer_is_trained_on_the_train_split_alone(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    write_source(raw / "train.jsonl", TEXTS[:200])
    write_source(raw / "val.jsonl", ["zzqx zzqx zzqx"] * 500)
    manifest = prepare([raw], tmp_path / "c", "bpe:300")
    assert manifest.tokenizer.fingerprint == train_bpe(TEXTS[:200], 300).fingerprint


def test_the_same_sources_give_the_same_bytes_anywhere(source: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "deeper" / "place"
    elsewhere.mkdir(parents=True)
    copy = elsewhere / source.name
    copy.write_bytes(source.read_bytes())
    prepare([source], tmp_path / "a", "bpe:300", shard_tokens=30_000)
    prepare([copy], elsewhere / "b", "bpe:300", shard_tokens=30_000)
    assert contents(tmp_path / "a") == contents(elsewhere / "b")


def test_a_finished_corpus_is_left_alone(source: Path, tmp_path: Path) -> None:
    reports: list[Progress] = []
    first = prepare([source], tmp_path / "c", "bytes", progress=reports.append)
    assert reports[-1].counts.documents == len(TEXTS)
    assert reports[-1].bytes_read == reports[-1].bytes_total == source.stat().st_size
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()}
    reports.clear()
    assert prepare([source], tmp_path / "c", "bytes", progress=reports.append) == first
    assert reports == []
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()}


def test_another_corpus_at_the_same_place_is_replaced_only_by_force(source: Path, tmp_path: Path) -> None:
    prepare([source], tmp_path / "c", "bytes")
    before = contents(tmp_path / "c")
    with pytest.raises(DataError, match=r"other sources or settings.*--force"):
        prepare([source], tmp_path / "c", "bytes", shard_tokens=1000)
    source.write_text(source.read_text() + '{"text": "one more"}\n')
    with pytest.raises(DataError, match=r"other sources or settings.*--force"):
        prepare([source], tmp_path / "c", "bytes")
    assert contents(tmp_path / "c") == before
    assert prepare([source], tmp_path / "c", "bpe:300", force=True).tokenizer.vocabulary == 300
    assert find_problems(tmp_path / "c") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "texts.jsonl"]


def test_force_deletes_nothing_that_is_not_the_corpus(source: Path, tmp_path: Path) -> None:
    prepare([source], tmp_path / "c", "bytes")
    (tmp_path / "c" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"notes\.txt"):
        prepare([source], tmp_path / "c", "bpe:300", force=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="is not a corpus"):
        prepare([source], tmp_path / "other", "bytes", force=True)


def test_a_damaged_corpus_is_noticed_on_a_rerun(source: Path, tmp_path: Path) -> None:
    prepare([source], tmp_path / "c", "bytes")
    (tmp_path / "c" / "train-000000.tar").write_bytes(b"short")
    with pytest.raises(DataError, match=r"damaged corpus.*--force"):
        prepare([source], tmp_path / "c", "bytes")
    prepare([source], tmp_path / "c", "bytes", force=True)
    assert find_problems(tmp_path / "c") == []


def test_a_bad_line_late_in_the_sources_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    source.write_text(source.read_text() + "not json\n")
    with pytest.raises(DataError, match="line 3001 is not JSON"):
        prepare([source], tmp_path / "c", "bytes", shard_tokens=1000)
    assert [path.name for path in tmp_path.iterdir()] == ["texts.jsonl"]


def test_sources_without_a_document_are_refused(tmp_path: Path) -> None:
    empty = write_source(tmp_path / "texts.jsonl", [])
    with pytest.raises(DataError, match=r"no document \(texts\.jsonl\)"):
        prepare([empty], tmp_path / "c", "bpe:300")
    assert not (tmp_path / "c").exists()


def test_at_most_so_many_documents_of_every_split(source: Path, tmp_path: Path) -> None:
    manifest = prepare([source], tmp_path / "c", "bytes", max_documents=7, val_fraction=0.1, test_fraction=0.0)
    assert {name: split.totals.documents for name, split in manifest.splits.items()} == {"train": 7, "val": 7}


@pytest.mark.parametrize("option", ["shard_tokens", "max_documents"])
def test_sizes_below_one_are_refused(source: Path, tmp_path: Path, option: str) -> None:
    with pytest.raises(DataError, match=option.replace("_", "-")):
        prepare([source], tmp_path / "c", "bytes", **{option: 0})  # type: ignore[arg-type]


KILLED = """
import os, signal, sys
from data_pipelines.prepare import prepare
reports = []
def kill_at_the_second_batch(progress):
    reports.append(progress.phase)
    if reports.count("shards") == 2:
        os.kill(os.getpid(), signal.SIGKILL)
prepare([sys.argv[1]], sys.argv[2], "bpe:300", shard_tokens=5000, progress=kill_at_the_second_batch)
"""


def test_after_kill_9_the_same_call_gives_the_bytes_of_an_uninterrupted_run(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "c"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(source), str(out)], cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    assert list((tmp_path / ".c.partial").glob("*.tar"))  # it was in the middle
    prepare([source], out, "bpe:300", shard_tokens=5000)
    prepare([source], tmp_path / "whole", "bpe:300", shard_tokens=5000)
    assert contents(out) == contents(tmp_path / "whole")
    assert not (tmp_path / ".c.partial").exists()


def test_two_preparations_of_one_corpus_do_not_mix(source: Path, tmp_path: Path) -> None:
    (tmp_path / ".c.partial").mkdir()
    handle = os.open(tmp_path / ".c.partial", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(DataError, match="another process is preparing"):
        prepare([source], tmp_path / "c", "bytes")
    os.close(handle)
    prepare([source], tmp_path / "c", "bytes")


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """Let writing fail beyond 100 kB, as a full disk does (the errno differs)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_leaves_nothing_behind(source: Path, tmp_path: Path, small_files_only: None) -> None:
    with pytest.raises(DataError, match=r"could not be written.*free space"):
        prepare([source], tmp_path / "c", "bytes")
    assert [path.name for path in tmp_path.iterdir()] == ["texts.jsonl"]


class TestVerify:
    @pytest.fixture
    def corpus(self, source: Path, tmp_path: Path) -> Path:
        prepare([source], tmp_path / "c", "bytes", shard_tokens=50_000)
        return tmp_path / "c"

    def test_damaged_and_missing_shards_are_all_named(self, corpus: Path) -> None:
        shard = corpus / "train-000000.tar"
        data = bytearray(shard.read_bytes())
        data[5000] ^= 1
        shard.write_bytes(data)
        (corpus / "train-000001.tar").unlink()
        problems = find_problems(corpus)
        assert problems == [
            f"shard {shard} is damaged: its SHA-256 is not the manifest's",
            f"shard {corpus / 'train-000001.tar'} is missing",
        ]

    def edited(self, corpus: Path, old: bytes, new: bytes) -> list[str]:
        """Replace bytes of the first shard, make its checksum agree, and verify."""
        path = corpus / "train-000000.tar"
        data = path.read_bytes()
        assert old in data and len(old) == len(new)
        path.write_bytes(data.replace(old, new, 1))
        manifest = json.loads((corpus / "manifest.json").read_text())
        manifest["splits"]["train"]["shards"][0]["sha256"] = file_sha256(path)
        (corpus / "manifest.json").write_text(json.dumps(manifest))
        return find_problems(corpus)

    def test_a_forged_separator_inside_a_document_is_found(self, corpus: Path) -> None:
        old = encode_tokens([*b"rivers"], "uint16")[-12:]
        (problem,) = self.edited(corpus, old, encode_tokens([256, *b"ivers"], "uint16")[-12:])
        assert "one separator" in problem

    def test_an_id_beyond_the_vocabulary_is_found(self, corpus: Path) -> None:
        old = encode_tokens([*b"rivers"], "uint16")[-12:]
        (problem,) = self.edited(corpus, old, encode_tokens([257, *b"ivers"], "uint16")[-12:])
        assert "holds id 257" in problem

    def test_a_changed_domain_is_found(self, corpus: Path) -> None:
        problems = self.edited(corpus, b'{"domain": "D1"', b'{"domain": "D2"')
        assert len(problems) == 2 and all("split train, domain D" in problem for problem in problems)

    def test_changed_text_bytes_are_found(self, corpus: Path) -> None:
        (problem,) = self.edited(corpus, b'"text_bytes": 6', b'"text_bytes": 7')
        assert "its manifest says" in problem

    def test_a_replaced_tokenizer_is_found(self, source: Path, tmp_path: Path) -> None:
        prepare([source], tmp_path / "b", "bpe:300")
        train_bpe(TEXTS, 290).save(tmp_path / "b")
        (problem,) = find_problems(tmp_path / "b")
        assert "does not match its shards" in problem

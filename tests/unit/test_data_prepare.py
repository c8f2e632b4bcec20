"""`prepare`: reproducible for any number of processes, idempotent, restartable."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from calm_lightning.data.shards.manifest import Manifest
from calm_lightning.data.shards.text import read_text_shard
from calm_lightning.data.tokenizers import load_tokenizer, train_bpe
from calm_lightning.errors import DataError
from data_pipelines.cleaning.clean import Cleaning
from data_pipelines.cleaning.split import hash_split
from data_pipelines.inspecting.verify import find_problems, read_shard
from data_pipelines.prepare import prepare
from data_pipelines.writing.passage import Progress
from data_pipelines.writing.settings import read_cleaning

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
    assert manifest.tokenizer is not None
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
    assert all(shard.totals.tokens >= 20_000 for shard in manifest.splits["train"].shards[:-1])
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
    assert manifest.tokenizer is not None
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
    assert {report.phase for report in reports} == {"checking"}
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()}


def test_what_a_run_killed_at_its_very_end_left_is_cleared_away(source: Path, tmp_path: Path) -> None:
    prepare([source], tmp_path / "c", "bytes")
    for leftover in (".c.partial/pieces", ".c.old"):
        (tmp_path / leftover).mkdir(parents=True)
    prepare([source], tmp_path / "c", "bytes")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "texts.jsonl"]


def test_another_corpus_at_the_same_place_is_replaced_only_by_force(source: Path, tmp_path: Path) -> None:
    prepare([source], tmp_path / "c", "bytes")
    before = contents(tmp_path / "c")
    with pytest.raises(DataError, match=r"other sources or settings.*--force"):
        prepare([source], tmp_path / "c", "bytes", shard_tokens=1000)
    source.write_text(source.read_text() + '{"text": "one more"}\n')
    with pytest.raises(DataError, match=r"other sources or settings.*--force"):
        prepare([source], tmp_path / "c", "bytes")
    assert contents(tmp_path / "c") == before
    assert prepare([source], tmp_path / "c", "bpe:300", force=True).dtype == "uint16"
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


def test_a_bad_line_stops_and_once_skipping_is_asked_for_the_work_goes_on(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = source.read_bytes()
    source.write_bytes(good + b'not json\n{"text": "\xff"}\n' + b'{"text": "the last one"}\n')
    with pytest.raises(DataError, match=r"line 3001 is not JSON.*what is done is kept"):
        prepare([source], tmp_path / "c", "bytes", shard_tokens=1000, piece_bytes=20_000)
    assert not (tmp_path / "c").exists()
    shard = tmp_path / ".c.partial" / "corpus" / "train-000000.tar"
    inode = shard.stat().st_ino
    manifest = prepare([source], tmp_path / "c", "bytes", shard_tokens=1000, piece_bytes=20_000, skip_bad=True)
    assert (tmp_path / "c" / shard.name).stat().st_ino == inode
    assert manifest.provenance.dropped == {"unreadable": 2}
    assert [record.getMessage().split(" is not ")[0][-9:] for record in caplog.records] == ["line 3001", "line 3002"]
    assert sum(split.totals.documents for split in manifest.splits.values()) == 3001


def test_work_that_skipped_bad_records_is_not_continued_without_skipping(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "broken.jsonl"
    other.write_text("not json\n")
    with other.with_suffix(".jsonl.gz").open("wb") as file:
        file.write(b"not gzip")
    given = [source, other, other.with_suffix(".jsonl.gz")]
    with pytest.raises(DataError, match=r"broken\.jsonl\.gz is damaged"):
        prepare(given, tmp_path / "c", "bytes", skip_bad=True)
    with pytest.raises(DataError, match=r"unfinished work on other settings \(skip_bad\).*--force to begin anew$"):
        prepare(given, tmp_path / "c", "bytes")
    assert (tmp_path / ".c.partial" / "pieces").is_dir(), "work is not lost by mistake"
    with pytest.raises(DataError, match=r"broken\.jsonl, line 1 is not JSON"):
        prepare(given, tmp_path / "c", "bytes", force=True)


def test_an_unusable_first_source_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("not json\n")
    with pytest.raises(DataError, match=r"line 1 is not JSON[^;]*$"):
        prepare([tmp_path / "texts.jsonl"], tmp_path / "c", "bytes")
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


@pytest.mark.parametrize("shards", ["tokens", "text"])
def test_the_number_of_processes_and_the_size_of_pieces_change_nothing(
    source: Path, tmp_path: Path, shards: str
) -> None:
    cleaning = Cleaning(min_chars=40, duplicates="exact")
    settings = {"shard_tokens": 7000, "shard_mb": 0.01, "shards": shards, "cleaning": cleaning, "max_documents": 1500}
    other = write_source(tmp_path / "more.jsonl", [*TEXTS[:500], *(f"{text} And more." for text in TEXTS[:900])])
    for out, workers, piece_bytes in (("a", 1, 1 << 20), ("b", 2, 10_000), ("c", 1, 3333), ("d", 3, 50_000)):
        prepare([source, other], tmp_path / out, "bytes", workers=workers, piece_bytes=piece_bytes, **settings)  # type: ignore[arg-type]
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c") == contents(tmp_path / "d")


def test_shards_of_text_hold_every_document_and_its_domain(source: Path, tmp_path: Path) -> None:
    manifest = prepare([source], tmp_path / "c", shards="text", shard_mb=0.05, val_fraction=0.1, workers=2)
    assert manifest.tokenizer is None and manifest.kind == "text"
    for split, record in manifest.splits.items():
        documents = [d for shard in record.shards for d in read_text_shard(tmp_path / "c" / shard.file, shard.file)]
        assert [(d.text, d.domain) for d in documents] == [
            (text, f"D{i % 3}") for i, text in enumerate(TEXTS) if hash_split(text, 0.1, 0.02) == split
        ]
        assert all(shard.totals.text_bytes >= 50_000 for shard in record.shards[:-1])
    assert len(manifest.splits["train"].shards) > 2
    assert manifest.splits["train"].totals.tokens == 0
    assert find_problems(tmp_path / "c") == []


def test_cleaning_is_counted_by_rule_and_recorded(tmp_path: Path) -> None:
    texts = ["short", "cafe\u0301 " * 10, "caf\u00e9 " * 10, "", "x" * 500, "a text that stays " * 3]
    cleaning = Cleaning(min_chars=6, max_chars=400, normalise="NFC", duplicates="exact")
    source = write_source(tmp_path / "texts.jsonl", texts)
    manifest = prepare([source], tmp_path / "c", "bytes", cleaning=cleaning, val_fraction=0, test_fraction=0)
    assert stored_texts(tmp_path / "c", "train") == ["caf\u00e9 " * 10, "a text that stays " * 3]
    dropped = {"empty": 1, "exact duplicate": 1, "too long": 1, "too short": 1}
    assert manifest.provenance.dropped == dropped
    assert manifest.provenance.settings["normalise"] == "NFC"
    with pytest.raises(DataError, match=r"no document that cleaning leaves \(6 were dropped\)"):
        prepare([source], tmp_path / "d", "bytes", cleaning=Cleaning(min_chars=1000))


def test_what_is_like_held_out_text_leaves_the_training_split(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    poem = [f"line {i} of a poem about the number {i * i} and its friends" for i in range(60)]
    write_source(raw / "train.jsonl", [" ".join(poem[:-1]), "something else entirely " * 20])
    write_source(raw / "val.jsonl", [" ".join(poem)])
    write_source(raw / "test.jsonl", [" ".join([*poem, "the end"])])
    manifest = prepare([raw], tmp_path / "c", "bytes", cleaning=Cleaning(duplicates="near"))
    assert {name: split.totals.documents for name, split in manifest.splits.items()} == {"train": 1, "test": 1}
    assert manifest.provenance.dropped == {"near duplicate": 2}
    assert "rensa" in manifest.provenance.versions


def test_the_tokenizer_is_trained_on_what_cleaning_leaves(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    write_source(raw / "train.jsonl", [*TEXTS[:200], *TEXTS[:200], *(["zzqx"] * 50)])
    write_source(raw / "val.jsonl", ["a text to measure on"])
    cleaning = Cleaning(min_chars=5, duplicates="exact")
    manifest = prepare([raw], tmp_path / "c", "bpe:300", cleaning=cleaning)
    assert manifest.tokenizer is not None
    assert manifest.tokenizer.fingerprint == train_bpe(TEXTS[:200], 300).fingerprint


def test_of_a_large_source_no_more_is_read_than_is_needed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_pipelines.writing.passage.HASHED_ANYWAY", 1000)
    reports: list[Progress] = []
    first, second = source, write_source(tmp_path / "second.jsonl", TEXTS)
    first.write_text(first.read_text() * 20)
    corpora = {}
    for workers in (1, 3):
        out = tmp_path / str(workers)
        manifest = prepare(
            [first, second], out, "bytes", max_documents=10, val_fraction=0, test_fraction=0, piece_bytes=5000,
            workers=workers, progress=reports.append,
        )  # fmt: skip
        corpora[workers] = contents(out)
        assert reports[-1].bytes_read < first.stat().st_size
        assert [one.sha256 for one in manifest.provenance.sources] == ["", ""]
    assert corpora[1] == corpora[3]


def test_cleaning_rules_come_from_a_file_and_options_win(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "conf" / "cleaning" / "pile.yaml"
    rules = read_cleaning(example, {"min_chars": 7, "duplicates": None})
    assert rules == Cleaning(7, 1_000_000, "NFC", "near", 0.8)
    assert read_cleaning(None, {}) == Cleaning()
    for content, message in (
        ("min_words: 3", "has min_words, known are min_chars"),
        ("min_chars: many", "min_chars cannot be 'many'"),
        ("- min_chars", "must hold lines"),
        ("a: [", "cannot be read"),
        ("normalise: NFD", "--normalise NFD"),
    ):
        (tmp_path / "rules.yaml").write_text(content)
        with pytest.raises(DataError, match=message):
            read_cleaning(tmp_path / "rules.yaml", {})


def test_two_preparations_of_one_corpus_do_not_mix(source: Path, tmp_path: Path) -> None:
    (tmp_path / ".c.partial").mkdir()
    handle = os.open(tmp_path / ".c.partial", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(DataError, match="another process is preparing"):
        prepare([source], tmp_path / "c", "bytes")
    os.close(handle)
    prepare([source], tmp_path / "c", "bytes")


def test_a_full_disk_stops_with_a_sentence_and_the_work_goes_on(source: Path, tmp_path: Path) -> None:
    """Files beyond 100 kB fail, as on a full disk (the errno differs)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DataError, match=r"could not be written.*free space.*the same command continues"):
            prepare([source], tmp_path / "c", "bytes", piece_bytes=20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "c").exists()
    prepare([source], tmp_path / "c", "bytes", piece_bytes=20_000)
    prepare([source], tmp_path / "whole", "bytes")
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")
    assert not (tmp_path / ".c.partial").exists()


def test_a_source_that_changes_between_two_passes_is_noticed(source: Path, tmp_path: Path) -> None:
    def change(report: Progress) -> None:
        if report.phase == "judging":
            times = source.stat().st_mtime_ns
            source.write_text(source.read_text().replace("Document number 5.", "Document number 6."))
            os.utime(source, ns=(times, times))

    with pytest.raises(DataError, match=r"texts\.jsonl changed while it was prepared"):
        prepare([source], tmp_path / "c", "bytes", cleaning=Cleaning(duplicates="exact"), progress=change)


def test_pieces_go_as_soon_as_shards_hold_them(source: Path, tmp_path: Path) -> None:
    sizes: list[int] = []

    def measure(report: Progress) -> None:
        sizes.append(sum(path.stat().st_size for path in (tmp_path / ".c.partial" / "pieces").iterdir()))

    prepare([source], tmp_path / "c", "bytes", shard_tokens=10_000, piece_bytes=5000, progress=measure)
    assert len(sizes) > 50
    assert max(sizes) < 0.25 * sum(path.stat().st_size for path in (tmp_path / "c").iterdir())


def test_a_script_without_a_main_guard_may_use_several_processes(source: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"from data_pipelines.prepare import prepare\nprint('once')\n"
        f"prepare([{str(source)!r}], {str(tmp_path / 'c')!r}, 'bytes', workers=2, piece_bytes=20000)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("once\n", "")
    assert find_problems(tmp_path / "c") == []


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_a_source_behind_an_address_gives_the_same_corpus(source: Path, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{source.name}"
        prepare([address], tmp_path / "remote", "bytes", workers=2, piece_bytes=50_000)
        reports: list[Progress] = []
        prepare([address], tmp_path / "remote", "bytes", progress=reports.append)
        assert {report.phase for report in reports} == {"checking"}
        server.shutdown()
    prepare([source], tmp_path / "local", "bytes")
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")


MEMORY = """
import sys
from data_pipelines.prepare import prepare
prepare([sys.argv[1]], sys.argv[2], "bytes", workers=1, val_fraction=0, test_fraction=0)
# not getrusage: its peak begins with that of the process that started this one
print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""


@pytest.mark.slow
def test_a_document_of_100_mb_takes_a_few_times_its_size(tmp_path: Path) -> None:
    texts = ["before", "A line of an endless log. " * 4_000_000, "after"]
    source = write_source(tmp_path / "texts.jsonl", texts)
    command = [sys.executable, "-c", MEMORY, str(source), str(tmp_path / "c")]
    run = subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True, check=True)
    assert int(run.stdout) * 1024 < 12 * source.stat().st_size
    shards = Manifest.load(tmp_path / "c").split("train").shards
    documents = [d for shard in shards for d in read_shard(tmp_path / "c" / shard.file, "uint16")]
    assert [d.tokens[1:].astype("uint8").tobytes().decode() for d in documents] == texts


@pytest.mark.parametrize("duplicates", ["keep", "exact"])
def test_two_versions_of_a_source_are_never_mixed(tmp_path: Path, duplicates: str) -> None:
    """Size and time are the same, as they may be for a remote file."""
    source, out = tmp_path / "texts.jsonl", tmp_path / "corpus"
    lines = [json.dumps({"text": f"document {i} " + "word " * 50}) for i in range(40)]
    source.write_text("\n".join([*lines, "x" * len(lines[0])]))
    times = (source.stat().st_atime_ns, source.stat().st_mtime_ns)
    cleaning = Cleaning(duplicates=duplicates)
    with pytest.raises(DataError, match="what is done is kept"):
        prepare([source], out, "bytes", piece_bytes=1000, cleaning=cleaning)
    others = [line.replace("document", "DOCUMENT") for line in lines]
    source.write_text("\n".join([*others, others[0]]))
    os.utime(source, ns=times)
    with pytest.raises(DataError, match=r"source texts\.jsonl changed while it was prepared.*begins anew$"):
        prepare([source], out, "bytes", piece_bytes=1000, cleaning=cleaning)
    manifest = prepare([source], out, "bytes", piece_bytes=1000, cleaning=cleaning)
    assert manifest.provenance.sources[0].sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    whole = prepare([source], tmp_path / "whole", "bytes", piece_bytes=1000, cleaning=cleaning)
    assert manifest.corpus_hash == whole.corpus_hash

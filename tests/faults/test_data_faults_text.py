"""Text corpora when things go wrong: killed processes, damaged, hostile and missing tars, servers that fail."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from calm_lightning.data.files.fetch import Access, CorpusFiles
from calm_lightning.data.shards.manifest import TEXT, Counts, Manifest, Provenance, ShardRecord, SplitRecord
from calm_lightning.data.shards.tokens import file_sha256
from calm_lightning.data.stores.text import TextStore
from calm_lightning.data.tokenizers import BytesTokenizer
from calm_lightning.errors import DataError, ShardError
from data_pipelines.indexing.index import WORK_FILE, Progress, index


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_tars(directory: Path, number: int, documents: int = 5) -> None:
    directory.mkdir(parents=True)
    for shard in range(number):
        texts = {f"{n}.txt": f"text {n} of shard {shard}".encode() * 20 for n in range(documents)}
        write_tar(directory / f"{shard:03d}.tar", texts)


def open_store(corpus: Path, cache: Path, shards_at: str = "") -> TextStore:
    files = CorpusFiles(str(corpus), Access(shards_at, cache_dir=str(cache), retries=1, pause=0.01))
    return TextStore(files, files.manifest(), BytesTokenizer())


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_tars(tmp_path / "corpus", 4)
    index([str(tmp_path / "corpus")], tmp_path / "corpus")
    return tmp_path / "corpus"


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[600] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [(Path.unlink, "missing"), (truncate, r"bytes of 10,240"), (flip_a_bit, "SHA-256"), (Path.touch, "")],
)
def test_a_damaged_text_shard_is_named(corpus: Path, tmp_path: Path, damage: Any, message: str) -> None:
    damage(corpus / "001.tar")
    store = open_store(corpus, tmp_path / "cache")
    store.open("train", 0)
    if message:
        with pytest.raises(ShardError, match=rf"001\.tar.*{message}"):
            store.open("train", 1)
        with pytest.raises(ShardError, match=r"001\.tar"):
            store.tokens("train", 1)
    else:
        assert len(store.open("train", 1).ends) == 5
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_a_text_shard_replaced_under_a_running_job_is_noticed_before_it_is_read(corpus: Path, tmp_path: Path) -> None:
    store = open_store(corpus, tmp_path / "cache")
    before = store.open("train", 0).tokens.tolist()
    for shard in range(3):
        write_tar(corpus / "new", {"0.txt": b"other text"})
        os.replace(corpus / "new", corpus / f"{shard:03d}.tar")
    assert store.open("train", 0).tokens.tolist() == before
    with pytest.raises(ShardError, match=r"001\.tar"):
        store.open("train", 1)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"../../0.txt": b"x"}, r"hostile\.tar, member '\.\./\.\./0\.txt'"),
        ({"0.txt": b"\xff\xfe"}, r"hostile\.tar, member '0\.txt': it is not UTF-8"),
        ({"0.jpg": b"x"}, r"hostile\.tar, member '0': no text"),
    ],
)
def test_a_hostile_tar_is_refused_even_if_its_manifest_vouches_for_it(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    tar = corpus / "hostile.tar"
    write_tar(tar, members)
    record = ShardRecord(tar.name, tar.stat().st_size, file_sha256(tar), {"unlabelled": Counts(1, 0, 1)})
    Manifest(TEXT, None, "", {"train": SplitRecord((record,))}, Provenance()).save(corpus)
    with pytest.raises(ShardError, match=message):
        open_store(corpus, tmp_path / "cache").open("train", 0)
    with pytest.raises(ShardError, match=message):
        index([str(corpus)], tmp_path / "indexed")
    assert not list((tmp_path / "cache").rglob("*.partial")) and not (tmp_path / "indexed" / "manifest.json").exists()


def tokenise(corpus: Path, cache: Path) -> None:
    open_store(corpus, cache).open("train", 0)


def test_killed_while_tokenising_it_is_made_by_the_next_process(tmp_path: Path) -> None:
    write_tars(tmp_path / "corpus", 1, documents=20_000)
    index([str(tmp_path / "corpus")], tmp_path / "corpus")
    cache = tmp_path / "cache"
    for _ in range(2):
        process = multiprocessing.get_context("fork").Process(target=tokenise, args=(tmp_path / "corpus", cache))
        process.start()
        deadline = time.monotonic() + 30
        while not list(cache.rglob("*.partial")) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not list(cache.rglob("*.cached"))
    shard = open_store(tmp_path / "corpus", cache).open("train", 0)
    assert len(shard.ends) == 20_000
    assert not list(cache.rglob("*.partial"))


def index_and_die(corpus: Path, out: Path, at: int) -> None:
    """Index, and be killed when `at` tars are finished."""

    def die(progress: Progress) -> None:
        if progress.tars == at:
            os.kill(os.getpid(), signal.SIGKILL)

    index([str(corpus)], out, val_shards=2, progress=die)


def test_an_index_killed_anywhere_continues_and_ends_the_same(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", 6)
    whole = index([str(tmp_path / "tars")], tmp_path / "whole", val_shards=2)
    out = tmp_path / "out"
    for at in (0, 2, 5):
        process = multiprocessing.get_context("fork").Process(target=index_and_die, args=(tmp_path / "tars", out, at))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL and not (out / "manifest.json").exists()
    with (out / WORK_FILE).open("a") as file:
        file.write('{"address": "half a li')  # as if killed within a write
    reports: list[Progress] = []
    indexed = index([str(tmp_path / "tars")], out, val_shards=2, progress=reports.append)
    assert reports[-1].bytes_read == reports[-1].bytes_total == (tmp_path / "tars" / "005.tar").stat().st_size
    assert indexed.manifest == whole.manifest
    assert (out / "manifest.json").read_bytes() == (tmp_path / "whole" / "manifest.json").read_bytes()


@contextmanager
def server(directory: Path, failures: dict[str, list[int]]) -> Iterator[str]:
    """Serve a directory; a number popped from `failures` is answered as status, -1 cuts the body in half."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            status = failures[name].pop(0) if failures.get(name) else 200
            if status == 200 and not (directory / name).exists():
                status = 404
            if status > 200:
                self.send_error(status)
                return
            content = (directory / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content if status > 0 else content[: len(content) // 2])

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def test_remote_tars_are_indexed_through_failures_and_trained_on(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", 3)
    local = index([str(tmp_path / "tars")], tmp_path / "local").manifest
    failures = {"001.tar": [500, -1]}
    with server(tmp_path / "tars", failures) as address:
        indexed = index([address + "/{000..002}.tar"], tmp_path / "out", pause=0.01)
        assert indexed.shards_at == address and indexed.manifest.corpus_hash == local.corpus_hash
        assert failures == {"001.tar": []}
        expected = open_store(tmp_path / "local", tmp_path / "cache 1", str(tmp_path / "tars")).open("train", 1)
        remote = open_store(tmp_path / "out", tmp_path / "cache 2", address).open("train", 1)
        assert remote.tokens.tolist() == expected.tokens.tolist()
        with pytest.raises(ShardError, match=r"003\.tar cannot be had: .*(404|does not exist).* \(after 1 attempts\)"):
            index([address + "/{002..003}.tar"], tmp_path / "more")
        failures["000.tar"] = [500] * 9
        with pytest.raises(ShardError, match=r"000\.tar cannot be had: HTTP status 500 .* \(after 3 attempts\)"):
            index([address + "/000.tar"], tmp_path / "failing", retries=2, pause=0.01)
        assert len(failures["000.tar"]) == 6


def test_a_tar_cut_at_a_member_border_is_not_indexed(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", 1)
    os.truncate(tmp_path / "tars" / "000.tar", 2048)
    with pytest.raises(ShardError, match=r"000\.tar: it is truncated"):
        index([str(tmp_path / "tars")], tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_two_at_once_do_not_mix(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", 2)

    def second(progress: Progress) -> None:
        with pytest.raises(DataError, match="another process is indexing"):
            index([str(tmp_path / "tars")], tmp_path / "out")

    index([str(tmp_path / "tars")], tmp_path / "out", progress=second)


def test_a_full_or_protected_place_is_one_sentence(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", 2)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DataError, match="could not be indexed"):
        index([str(tmp_path / "tars")], tmp_path / "out")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "manifest.json").write_text(json.dumps({"kind": "text", "schema_version": 1}))
    with pytest.raises(DataError, match="schema version 1"):
        index([str(tmp_path / "tars")], tmp_path / "corpus")


@pytest.mark.slow
def test_a_document_of_100_megabytes_takes_bounded_memory(tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    write_tar(tars / "0.tar", {"0.txt": b"a word and another " * (100_000_000 // 19), "1.txt": b"small"})
    index([str(tars)], tars)
    process = multiprocessing.get_context("spawn").Process(target=tokenise_measured, args=(tars, tmp_path / "cache"))
    process.start()
    process.join()
    assert process.exitcode == 0
    shard = open_store(tars, tmp_path / "cache").open("train", 0)
    assert shard.text_bytes.tolist() == [100_000_000 // 19 * 19, 5]


def tokenise_measured(corpus: Path, cache: Path) -> None:
    """Tokenise and check the most memory that this process has had: ids of 200 MB, text, and their copies."""
    tokenise(corpus, cache)
    # not getrusage: its peak begins with that of the process that started this one
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in status if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 1_600_000, peak

"""The files of a corpus from directories, addresses and commands, and the bounded cache of remote ones."""

from __future__ import annotations

import hashlib
import os
import pickle
import shlex
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_lightning.data.files.cache import CACHED, Cache
from calm_lightning.data.files.fetch import Access, CorpusFiles
from calm_lightning.data.files.remote import join, shown
from calm_lightning.data.shards.manifest import Counts, Manifest, Provenance, ShardRecord, SplitRecord
from calm_lightning.errors import DataError

CONTENT = bytes(range(256)) * 12_000  # three times what is read at once


def make_corpus(directory: Path, *contents: bytes) -> Manifest:
    shards = []
    for number, content in enumerate(contents):
        name = f"train-{number:06d}.tar"
        (directory / name).write_bytes(content)
        counts = {"Books": Counts(1, 0, len(content))}
        shards.append(ShardRecord(name, len(content), hashlib.sha256(content).hexdigest(), counts))
    manifest = Manifest("text", None, "", {"train": SplitRecord(tuple(shards))}, Provenance())
    manifest.save(directory)
    return manifest


def first(manifest: Manifest) -> ShardRecord:
    return manifest.split("train").shards[0]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    directory = tmp_path / "a corpus"
    directory.mkdir()
    make_corpus(directory, CONTENT, b"another")
    (directory / "tokenizer.json").write_bytes(b"{}")
    return directory


@pytest.fixture
def server(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(corpus))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def access(tmp_path: Path, shards_at: str = "") -> Access:
    return Access(shards_at=shards_at, cache_dir=str(tmp_path / "cache"), pause=0.01, timeout=10)


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_local_shard_is_the_file_itself(corpus: Path, tmp_path: Path, prefix: str) -> None:
    files = CorpusFiles(prefix + str(corpus), access(tmp_path))
    record = first(files.manifest())
    assert files.shard(record) == corpus / record.file
    assert files.open(record, Path.read_bytes) == CONTENT
    assert files.small_file("tokenizer.json") == b"{}"
    assert not (tmp_path / "cache").exists()


def test_a_whole_corpus_over_http(server: str, corpus: Path, tmp_path: Path) -> None:
    files = CorpusFiles(server + "/", access(tmp_path))
    manifest = files.manifest()
    assert manifest == Manifest.load(corpus)
    assert files.small_file("tokenizer.json") == b"{}"
    path = files.shard(first(manifest))
    assert path.read_bytes() == CONTENT
    assert [p.name for p in files.cache.directory.iterdir()] == [path.name], "no locks or temporaries are left"


def test_a_cached_shard_needs_no_server(corpus: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(corpus)
    with fsspec.open("memory://store/train-000000.tar", "wb") as file:
        file.write(CONTENT)
    fetched = CorpusFiles(str(corpus), access(tmp_path, "memory://store")).shard(first(manifest))
    fsspec.filesystem("memory").rm("/store", recursive=True)
    again = CorpusFiles(str(corpus), access(tmp_path, "memory://store"))
    assert again.shard(first(manifest)) == fetched
    assert again.open(first(manifest), Path.read_bytes) == CONTENT


def test_shards_from_a_command(corpus: Path, tmp_path: Path) -> None:
    command = f"pipe:cd {shlex.quote(str(corpus))} && cat {{}} | cat"
    files = CorpusFiles(str(corpus), access(tmp_path, command))
    assert files.open(first(files.manifest()), Path.read_bytes) == CONTENT


def test_a_command_gets_the_name_quoted(tmp_path: Path) -> None:
    assert join("pipe:cat /x/{} | zstd -d", "a b;c.tar") == "pipe:cat /x/'a b;c.tar' | zstd -d"


def test_a_command_is_only_taken_for_shards_and_must_take_a_name(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="shards_at"):
        CorpusFiles("pipe:cat manifest.json", Access())
    files = CorpusFiles(str(corpus), access(tmp_path, "pipe:cat shard.tar"))
    with pytest.raises(DataError, match=r"put \{\} in the command"):
        files.shard(first(files.manifest()))


@pytest.mark.parametrize(
    ("base", "address", "visible"),
    [
        ("http://h/a/", "http://h/a/s%20%231.tar", "http://h/a/s%20%231.tar"),
        ("https://me:word@h:1/a?sig=x%2F", "https://me:word@h:1/a/s%20%231.tar?sig=x%2F", "https://h:1/a/s%20%231.tar"),
        ("s3://bucket/a", "s3://bucket/a/s #1.tar", "s3://bucket/a/s "),
    ],
)
def test_addresses_keep_a_signature_and_do_not_show_it(base: str, address: str, visible: str) -> None:
    assert join(base, "s #1.tar") == address
    assert shown(address) == visible


def test_an_unknown_protocol_is_one_sentence(corpus: Path, tmp_path: Path) -> None:
    files = CorpusFiles(str(corpus), access(tmp_path, "gopher://h/a"))
    with pytest.raises(DataError, match="gopher"):
        files.shard(first(files.manifest()))


def test_files_can_be_pickled(corpus: Path, tmp_path: Path) -> None:
    files = CorpusFiles(str(corpus), access(tmp_path))
    record = first(files.manifest())
    files.shard(record)
    assert pickle.loads(pickle.dumps(files)).shard(record) == corpus / record.file


def test_the_cache_is_where_the_user_keeps_such_things(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert CorpusFiles("c", Access()).cache.directory == tmp_path / "calm-lightning" / "shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CorpusFiles("c", Access()).cache.directory == tmp_path / ".cache" / "calm-lightning" / "shards"


def writes(size: int) -> partial[None]:
    return partial(_write, size)


def _write(size: int, path: Path) -> None:
    path.write_bytes(bytes(size))


def kept(cache: Cache) -> list[str]:
    return sorted(path.name.removesuffix(CACHED) for path in cache.directory.iterdir())


def test_the_least_recently_used_file_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 30)
    for key in "abc":
        cache.get(key, writes(10), 10)
    cache.get("a", writes(99))  # there already: used, not made
    cache.get("d", writes(10), 10)
    assert kept(cache) == ["a", "c", "d"]
    cache.get("e", writes(15))  # of unknown size: room is made when it is there
    assert kept(cache) == ["d", "e"]


def test_room_is_made_before_a_file_of_known_size_is_fetched(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 30)
    cache.get("old", writes(20), 20)

    def make(path: Path) -> None:
        assert not cache.path("old").exists()
        path.write_bytes(bytes(20))

    cache.get("new", make, 20)


def test_using_a_file_leaves_its_time_of_change(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 30)
    path = cache.get("a", writes(10))
    before = path.stat()
    cache.get("a", writes(10))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_atime_ns > before.st_atime_ns


def test_foreign_files_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10)
    for name in ("thesis.txt", ".counts.json.partial"):
        (tmp_path / name).write_text("not ours")
    cache.get("a", writes(10), 10)
    cache.get("b", writes(10), 10)
    assert kept(cache) == [".counts.json.partial", "b", "thesis.txt"]


def test_an_evicted_file_stays_usable_for_who_has_it_open(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10)
    with cache.get("a", writes(10)).open("rb") as held:
        cache.get("b", writes(10))
        assert kept(cache) == ["b"]
        assert held.read() == bytes(10)


def test_a_file_evicted_before_it_is_opened_is_made_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10)
    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_bytes(b"a")

    def opener(path: Path) -> bytes:
        if len(made) == 1:
            path.unlink()  # as another process may
        return path.read_bytes()

    assert cache.open("a", make, opener) == b"a"
    assert len(made) == 2


def test_a_maker_may_ask_for_other_files(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 30)

    def make(path: Path) -> None:
        path.write_bytes(cache.get("raw", writes(10), 10).read_bytes() * 2)

    assert cache.get("cooked", make).stat().st_size == 20
    assert kept(cache) == ["cooked", "raw"]


def test_a_file_has_one_maker_at_a_time(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10)
    making: list[int] = []
    together: list[int] = []

    def make(path: Path) -> None:
        making.append(1)
        path.write_bytes(b"a")
        time.sleep(0.0005)
        together.append(len(making))
        making.pop()

    def use() -> None:
        for _ in range(60):
            cache.get("a", make)
            cache.discard("a")

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) > 60 and set(together) == {1}


@pytest.mark.parametrize("size", [0, 11])
def test_a_file_larger_than_the_cache_is_one_clear_error(tmp_path: Path, size: int) -> None:
    cache = Cache(tmp_path, 10)
    cache.get("a", writes(10))
    with pytest.raises(DataError, match=r"up to 10 bytes and big takes 11: raise data\.cache_gb"):
        cache.get("big", writes(11), size)
    assert kept(cache) == ["a"], "nothing is evicted for a file that cannot fit"


def test_a_key_is_no_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="key"):
        Cache(tmp_path, 10).get("../a", writes(1))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), max_size=40), st.integers(8, 40))
def test_the_cache_keeps_the_most_recent_that_fit_and_never_more(uses: list[tuple[str, bool]], limit: int) -> None:
    sizes = {key: size for size, key in enumerate("abcdefgh", start=1)}
    recent: list[str] = []  # least recently used first
    with TemporaryDirectory() as directory:
        cache = Cache(Path(directory), limit)
        for key, size_known in uses:
            assert cache.get(key, writes(sizes[key]), sizes[key] if size_known else 0).stat().st_size == sizes[key]
            if key in recent:
                recent.remove(key)
            while sum(sizes[other] for other in recent) + sizes[key] > limit:
                recent.pop(0)
            recent.append(key)
            assert kept(cache) == sorted(recent)
        assert sum(entry.stat().st_size for entry in os.scandir(directory)) <= limit

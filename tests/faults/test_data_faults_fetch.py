"""Shards badly served over HTTP, the cache they go to, and processes killed while they fetch."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from calm_lightning.data.files.cache import PARTIAL, Cache
from calm_lightning.data.files.fetch import Access, CorpusFiles
from calm_lightning.data.shards.manifest import Counts, ShardRecord
from calm_lightning.errors import DataError, ShardError

CONTENT = bytes(range(256)) * 8_000
NAME = "train-000000.tar"
RECORD = ShardRecord(NAME, len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), {"Books": Counts(1, 0, len(CONTENT))})
FLIPPED = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])


class ShardServer(ThreadingHTTPServer):
    """Answers each request by the next entry of `script`; the last one is for all further requests.

    Entries: "fine", an HTTP status, "hang" (no answer), "stall" (hangs within the body), "close" (ends within it),
    "short" (the same, with no word on the length), "wrong" (one bit differs), "endless", "slow" (fine, after 0.5 s).
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[str | int] = ["fine"]
        self.requests = 0
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: ShardServer

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        script = self.server.script
        answer = script[min(self.server.requests, len(script) - 1)]
        self.server.requests += 1
        with suppress(OSError):  # the client has gone
            self.answer(answer)

    def answer(self, answer: str | int) -> None:
        if isinstance(answer, int):
            self.send_error(answer)
            return
        if answer == "hang":
            self.server.released.wait(30)
            return
        if answer == "slow":
            time.sleep(0.5)
        self.send_response(200)
        if answer not in ("short", "endless"):
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if answer in ("stall", "close", "short"):
            self.wfile.write(CONTENT[: len(CONTENT) // 2])
            self.wfile.flush()
            if answer == "stall":
                self.server.released.wait(30)
            return
        while answer == "endless":
            self.wfile.write(CONTENT)
        self.wfile.write(FLIPPED if answer == "wrong" else CONTENT)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ShardServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ShardServer() as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.released.set()
        running.shutdown()


def remote(tmp_path: Path, shards_at: str, retries: int = 2, timeout: float = 0.4) -> CorpusFiles:
    access = Access(shards_at, cache_dir=str(tmp_path / "cache"), retries=retries, timeout=timeout, pause=0.01)
    return CorpusFiles(str(tmp_path), access)


def left_over(files: CorpusFiles) -> list[str]:
    return sorted(path.name for path in files.cache.directory.iterdir())


# Servers


@pytest.mark.parametrize(
    "fault", [500, 503, 429, "hang", "stall", "close", "short", "wrong", "endless"], ids=lambda fault: f"{fault}"
)
def test_a_passing_fault_is_tried_again(
    server: ShardServer, tmp_path: Path, fault: str | int, caplog: pytest.LogCaptureFixture
) -> None:
    server.script = [fault, fault, "fine"]
    files = remote(tmp_path, server.url)
    with caplog.at_level(logging.WARNING, "calm_lightning.data"):
        path = files.shard(RECORD)
    assert path.read_bytes() == CONTENT
    assert server.requests == 3
    assert left_over(files) == [path.name]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        f"shard {NAME} from http" for _ in range(2)
    ]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (500, "HTTP status 500"),
        ("hang", r"nothing came for 0\.4 s"),
        ("stall", r"nothing came for 0\.4 s"),
        ("close", "ClientPayloadError"),
        ("short", "it ended after 1,024,000 of 2,048,000 bytes"),
        ("wrong", "its SHA-256 is"),
        ("endless", "it has more than the 2,048,000 bytes"),
    ],
)
def test_a_lasting_fault_names_shard_place_reason_and_attempts(
    server: ShardServer, tmp_path: Path, fault: str | int, reason: str
) -> None:
    server.script = [fault]
    files = remote(tmp_path, server.url + "/?signature=secret", retries=1)
    with pytest.raises(
        ShardError, match=rf"shard {NAME} .* {server.url}/{NAME}: {reason}.*\(after 2 attempts\)"
    ) as error:
        files.shard(RECORD)
    assert "secret" not in str(error.value)
    assert server.requests == 2
    assert left_over(files) == []


@pytest.mark.parametrize(("status", "reason"), [(404, "it does not exist"), (403, "HTTP status 403")])
def test_what_is_not_there_is_asked_for_once(server: ShardServer, tmp_path: Path, status: int, reason: str) -> None:
    server.script = [status]
    with pytest.raises(ShardError, match=rf"{reason}.*\(after 1 attempt\)"):
        remote(tmp_path, server.url).shard(RECORD)
    assert server.requests == 1


def test_no_server_at_all(server: ShardServer, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ShardError, match="Cannot connect"):
            remote(tmp_path, address).shard(RECORD)


def test_a_manifest_behind_a_failing_server(server: ShardServer, tmp_path: Path) -> None:
    server.script = [500, "fine"]
    files = CorpusFiles(server.url, Access(cache_dir=str(tmp_path), pause=0.01, timeout=1))
    with pytest.raises(DataError, match=f"{server.url}/manifest.json cannot be read"):
        files.manifest()  # what comes at last is a tar's bytes, not a manifest's
    assert server.requests == 2
    server.script = [404]
    with pytest.raises(DataError, match=r"manifest\.json cannot be had .* does not exist"):
        files.manifest()


def test_pauses_grow(server: ShardServer, tmp_path: Path) -> None:
    server.script = [500]
    access = Access(server.url, cache_dir=str(tmp_path), retries=3, pause=0.1)
    begin = time.monotonic()
    with pytest.raises(ShardError):
        CorpusFiles(str(tmp_path), access).shard(RECORD)
    assert 0.5 * 0.7 <= time.monotonic() - begin < 2


# The cache


def rewrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


def test_a_damaged_copy_in_the_cache_is_fetched_again(server: ShardServer, tmp_path: Path) -> None:
    path = remote(tmp_path, server.url).shard(RECORD)
    rewrite(path, FLIPPED)
    files = remote(tmp_path, server.url)
    assert files.open(RECORD, Path.read_bytes) == CONTENT
    rewrite(path, CONTENT[:9])  # and under a running job
    assert files.open(RECORD, Path.read_bytes) == CONTENT
    assert server.requests == 3


def test_a_copy_evicted_under_a_running_job_is_fetched_again(server: ShardServer, tmp_path: Path) -> None:
    files = remote(tmp_path, server.url)
    files.shard(RECORD).unlink()
    assert files.open(RECORD, Path.read_bytes) == CONTENT
    assert server.requests == 2


def test_a_shard_larger_than_the_cache_is_not_fetched(server: ShardServer, tmp_path: Path) -> None:
    access = Access(server.url, cache_dir=str(tmp_path / "cache"), cache_gb=0.001)
    with pytest.raises(DataError, match=r"1,000,000 bytes .* takes 2,048,000: raise data\.cache_gb"):
        CorpusFiles(str(tmp_path), access).shard(RECORD)
    assert server.requests == 0


def test_a_cache_that_cannot_be_written_is_one_sentence(server: ShardServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    access = Access(server.url, cache_dir=str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be used .* set data\.cache_dir"):
        CorpusFiles(str(tmp_path), access).shard(RECORD)


def test_a_full_disk_is_one_sentence_and_not_tried_again(server: ShardServer, tmp_path: Path) -> None:
    code = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
"""
    done = fetching(server.url, tmp_path, code).communicate(timeout=30)[1].decode()
    assert "DataError" in done and "File too large" in done and "data.cache_dir" in done
    assert server.requests == 1
    assert left_over(remote(tmp_path, server.url)) == []


def fetching(url: str, tmp_path: Path, before: str = "") -> subprocess.Popen[bytes]:
    """Start a process that fetches the shard into the cache and prints its path."""
    code = f"""
from calm_lightning.data.files.fetch import Access, CorpusFiles
from calm_lightning.data.shards.manifest import ShardRecord
{before}
access = Access({url!r}, cache_dir={str(tmp_path / "cache")!r}, retries=0, timeout=20)
record = ShardRecord({NAME!r}, {RECORD.bytes}, {RECORD.sha256!r}, {{}})
print(CorpusFiles({str(tmp_path)!r}, access).shard(record))
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


def test_a_process_killed_while_it_fetches_leaves_nothing_that_lasts(server: ShardServer, tmp_path: Path) -> None:
    server.script = ["stall", "fine"]
    files = remote(tmp_path, server.url)
    cache = files.cache.directory
    process = fetching(server.url, tmp_path)
    with process:
        wait_for(lambda: any(path.stat().st_size for path in cache.glob(f".*{PARTIAL}")))
        process.send_signal(signal.SIGKILL)
    assert any(cache.glob(f".*{PARTIAL}")) and not files.cache.path(RECORD.sha256).exists()
    path = files.shard(RECORD)
    assert path.read_bytes() == CONTENT
    assert left_over(files) == [path.name]


def test_what_a_killed_process_left_takes_no_room(server: ShardServer, tmp_path: Path) -> None:
    server.script = ["stall"]
    files = remote(tmp_path, server.url)
    with fetching(server.url, tmp_path) as process:
        wait_for(lambda: any(files.cache.directory.glob(f".*{PARTIAL}")))
        process.send_signal(signal.SIGKILL)
    small = Cache(files.cache.directory, len(CONTENT))
    small.get("other", lambda path: None, len(CONTENT))
    assert left_over(files) == ["other.cached"]


def test_a_reservation_of_a_living_process_is_waited_for(server: ShardServer, tmp_path: Path) -> None:
    server.script = ["slow"]
    files = remote(tmp_path, server.url)
    with fetching(server.url, tmp_path) as process:
        wait_for(lambda: server.requests)
        small = Cache(files.cache.directory, len(CONTENT) + 10)
        small.get("other", lambda path: None, 100)  # beside the first there is no room: it has to end and to go
        assert process.wait(20) == 0
    assert left_over(files) == ["other.cached"]


def test_two_processes_that_want_a_shard_fetch_it_once(server: ShardServer, tmp_path: Path) -> None:
    server.script = ["slow"]
    with fetching(server.url, tmp_path) as one, fetching(server.url, tmp_path) as two:
        paths = {process.communicate(timeout=30)[0].decode().strip() for process in (one, two)}
    assert [Path(path).read_bytes() for path in paths] == [CONTENT]
    assert server.requests == 1


def test_a_process_forked_while_a_file_is_made_does_not_keep_the_lock(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    waiting = threading.Thread(target=cache.get, args=("a", Path.touch), daemon=True)

    def make(path: Path) -> None:
        waiting.start()
        time.sleep(0.1)  # until it waits for this very lock
        child.start()
        path.write_bytes(b"a")

    cache.get("a", make)
    waiting.join(5)
    child.kill()
    assert not waiting.is_alive()


def _fetch_in_child(files: CorpusFiles, record: ShardRecord) -> None:
    sys.exit(0 if files.open(record, Path.read_bytes) == CONTENT else 1)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_of_either_kind(server: ShardServer, tmp_path: Path, method: str) -> None:
    files = remote(tmp_path, server.url, timeout=5)
    files.shard(RECORD)  # so that the parent's threads and connections exist already
    files.cache.discard(RECORD.sha256)
    child = multiprocessing.get_context(method).Process(target=_fetch_in_child, args=(files, RECORD), daemon=True)
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert files.open(RECORD, Path.read_bytes) == CONTENT
    assert server.requests == 2

"""Shards that are missing, damaged or replaced in a directory; commands that fail; object storage."""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from calm_lightning.data.files.fetch import Access, CorpusFiles
from calm_lightning.data.shards.manifest import Counts, Manifest, Provenance, ShardRecord, SplitRecord
from calm_lightning.errors import ShardError

CONTENT = bytes(range(256)) * 8_000
NAME = "train-000000.tar"
RECORD = ShardRecord(NAME, len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), {"Books": Counts(1, 0, len(CONTENT))})
FLIPPED = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])


def local(tmp_path: Path, content: bytes = CONTENT) -> tuple[CorpusFiles, Path]:
    (tmp_path / NAME).write_bytes(content)
    return CorpusFiles(str(tmp_path), Access()), tmp_path / NAME


def remote(tmp_path: Path, shards_at: str, retries: int = 2, timeout: float = 0.4) -> CorpusFiles:
    access = Access(shards_at, cache_dir=str(tmp_path / "cache"), retries=retries, timeout=timeout, pause=0.01)
    return CorpusFiles(str(tmp_path), access)


def left_over(files: CorpusFiles) -> list[str]:
    return sorted(path.name for path in files.cache.directory.iterdir())


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


# Shards in a directory


def test_a_missing_shard_names_its_place(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=f"shard {NAME} is missing: there is no {tmp_path}"):
        CorpusFiles(str(tmp_path), Access()).shard(RECORD)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT[:-7], "it has 2,047,993 bytes of 2,048,000"),
        (b"", "it has 0 bytes of 2,048,000"),
        (CONTENT + b"x", "it has 2,048,001 bytes"),
        (FLIPPED, "its SHA-256 is"),
    ],
)
def test_a_damaged_shard_is_refused_each_time(tmp_path: Path, content: bytes, message: str) -> None:
    files, path = local(tmp_path, content)
    for _ in range(2):
        with pytest.raises(ShardError, match=f"shard {NAME} at {path} is not the one of the manifest: {message}"):
            files.shard(RECORD)
    path.write_bytes(CONTENT)
    assert files.shard(RECORD) == path, "mended while the job runs"


def test_a_shard_that_is_a_directory_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(ShardError, match="cannot be read"):
        CorpusFiles(str(tmp_path), Access()).shard(RECORD)


def rename_over(path: Path, content: bytes) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(content)
    os.replace(other, path)


def rewrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


@pytest.mark.parametrize("replace", [rename_over, rewrite])
def test_a_shard_replaced_under_a_running_job(tmp_path: Path, replace: Callable[[Path, bytes], None]) -> None:
    files, path = local(tmp_path)
    files.shard(RECORD)
    replace(path, CONTENT)
    assert files.shard(RECORD) == path, "the same content again"
    replace(path, FLIPPED)
    with pytest.raises(ShardError, match=r"it changed while this program ran: its SHA-256"):
        files.shard(RECORD)
    replace(path, CONTENT[:100])
    with pytest.raises(ShardError, match=r"it changed while this program ran: it has 100 bytes"):
        files.shard(RECORD)
    path.unlink()
    with pytest.raises(ShardError, match="missing"):
        files.shard(RECORD)


def test_a_shard_rewritten_within_a_tick_of_the_clock_is_noticed(tmp_path: Path) -> None:
    contents = b"one", b"two"
    path = tmp_path / NAME
    path.write_bytes(contents[0])
    record = ShardRecord(NAME, 3, hashlib.sha256(contents[0]).hexdigest(), {})
    for _ in range(20):
        files = CorpusFiles(str(tmp_path), Access())
        rewrite(path, contents[0])
        files.shard(record)
        rewrite(path, contents[1])
        with pytest.raises(ShardError, match="it changed while this program ran"):
            files.shard(record)


def test_a_shard_replaced_between_check_and_opening_is_not_handed_out(tmp_path: Path) -> None:
    files, path = local(tmp_path)

    def opener(at: Path) -> bytes:
        rename_over(path, FLIPPED)
        return at.read_bytes()

    with pytest.raises(ShardError, match="it changed while this program ran"):
        files.open(RECORD, opener)


# Commands


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("cat {}; echo out of luck >&2; exit 3", r"the command ended with status 3 \(out of luck\) \(after 2 attempts"),
        ("head -c 100 {}", r"it ended after 100 of 2,048,000 bytes \(after 2 attempts"),
        ("cat {}; echo", r"more than the 2,048,000 bytes of the manifest \(after 2 attempts"),
        ("head -c 100 {}; sleep 60", r"nothing came for 0\.4 s \(after 2 attempts"),
        ("sleep 60 | cat", r"nothing came for 0\.4 s \(after 2 attempts"),
        ("cat {}; exec >&-; sleep 60", r"did not end within 0\.4 s"),
        ("no-such-program {}", r"status 127 .*\(after 1 attempt\)"),
    ],
)
def test_commands_that_fail(tmp_path: Path, command: str, reason: str) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)
    place = f"pipe:cd {shlex.quote(str(tmp_path))}; : {{}}; {command}"
    files = remote(tmp_path, place, retries=1)
    with pytest.raises(ShardError, match=rf"shard {NAME} .*{reason}"):
        files.shard(RECORD)
    assert left_over(files) == []


def test_a_command_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    files = remote(tmp_path, "pipe:sh -c 'sleep 60 & echo $! > " + shlex.quote(str(tmp_path)) + "/{}.pid; wait'", 0)
    with pytest.raises(ShardError, match="nothing came"):
        files.shard(RECORD)
    started = int((tmp_path / f"{NAME}.pid").read_text())
    wait_for(lambda: not _runs(started), 5)


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# Object storage


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: _answers(port), 60)
        yield f"http://127.0.0.1:{port}", process
        process.kill()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def in_s3(endpoint: str, tmp_path: Path, code: str) -> str:
    """Run code in a process of its own, since fsspec reads its environment once; return what it prints."""
    environment = os.environ | {
        "FSSPEC_S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }
    start = f"""
from pathlib import Path
import s3fs
from calm_lightning.data.files.fetch import Access, CorpusFiles
from calm_lightning.errors import DataError
access = Access(cache_dir={str(tmp_path / "cache")!r}, retries=1, timeout=1, pause=0.01)
files = CorpusFiles("s3://corpora/pile", access)
"""
    done = subprocess.run([sys.executable, "-c", start + code], env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


@pytest.mark.slow
def test_object_storage(s3: tuple[str, subprocess.Popen[bytes]], tmp_path: Path) -> None:
    endpoint, server = s3
    Manifest("text", None, "", {"train": SplitRecord((RECORD,))}, Provenance()).save(tmp_path)
    (tmp_path / NAME).write_bytes(CONTENT)
    upload = f"""
store = s3fs.S3FileSystem()
store.mkdir("corpora")
for name in ("manifest.json", {NAME!r}):
    store.put_file({str(tmp_path)!r} + "/" + name, "corpora/pile/" + name)
"""
    fetch = """
try:
    record = files.manifest().split("train").shards[0]
    print(files.shard(record))
except DataError as error:
    print(error)
"""
    path = Path(in_s3(endpoint, tmp_path, upload + fetch))
    assert path.read_bytes() == CONTENT
    path.unlink()

    remove = f"s3fs.S3FileSystem().rm('corpora/pile/{NAME}')\n"
    said = in_s3(endpoint, tmp_path, remove + fetch)
    assert f"shard {NAME} cannot be had from s3://corpora/pile/{NAME}: it does not exist (after 1 attempt)" in said

    server.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    said = in_s3(endpoint, tmp_path, fetch)
    server.send_signal(signal.SIGCONT)
    assert "manifest.json cannot be had from s3://corpora/pile/manifest.json" in said and "2 attempts" in said
    assert time.monotonic() - begin < 15

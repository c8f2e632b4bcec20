"""`calm data prepare` killed with SIGKILL at any moment: the same command continues, to the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from calm_lightning.data.shards.tokens import file_sha256
from data_pipelines.prepare import prepare
from data_pipelines.reading.sources import find_sources, read_documents

CALM = [sys.executable, "-c", "from calm_lightning.cli.main import main; main()", "data", "prepare"]
COMMON = ["--piece-mb", "0.06", "--shard-tokens", "60000", "--shard-mb", "0.1"]
KINDS = {
    "bytes": ["--tokenizer", "bytes"],
    "text without near duplicates": ["--shards", "text", "--duplicates", "near", "--min-chars", "2000"],
    "bpe, limited": ["--tokenizer", "bpe:300", "--max-documents", "150"],
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two files of 200 documents, some of them twice, in no split's layout."""
    folder = tmp_path_factory.mktemp("raw")
    documents = [d for source in find_sources(["sample"]) for d in read_documents(source)][:180]
    for name, own in (("a", documents[:120]), ("b", documents[100:])):
        rows = ({"text": d.text, "meta": {"pile_set_name": d.domain}} for d in own)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(folder / "a.jsonl"), str(folder / "b.jsonl")]


def start(sources: list[str], out: Path, kind: str, workers: int) -> subprocess.Popen[bytes]:
    command = [*CALM, *sources, "--out", str(out), "--workers", str(workers), *COMMON, *KINDS[kind]]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def finish(sources: list[str], out: Path, kind: str, workers: int) -> dict[str, str]:
    """Run the command to its end and return the checksum of every file of the corpus."""
    assert start(sources, out, kind, workers).wait() == 0
    assert not (out.parent / f".{out.name}.partial").exists()
    return {path.name: file_sha256(path) for path in out.iterdir()}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def kill_when(process: subprocess.Popen[bytes], happened: Callable[[], bool]) -> list[int]:
    """Kill a process as soon as something has happened; return its children of that moment."""
    while not happened():
        assert process.poll() is None, "it was done before"
        time.sleep(0.001)
    found = children(process.pid)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    return found


def wait_until_gone(pids: list[int]) -> None:
    until = time.monotonic() + 5
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < until, f"processes {left} outlive the killed one"
        time.sleep(0.01)


MOMENTS: list[Callable[[Path], bool]] = [
    lambda work: (work / "plan.json").exists(),
    lambda work: any((work / "pieces").glob("*.npz")),
    lambda work: any((work / "corpus").glob("*.tar")),
    lambda work: len(list((work / "corpus").glob("*.tar"))) >= 5,
]


@pytest.mark.parametrize("kind", KINDS)
def test_killed_again_and_again_it_ends_with_the_bytes_of_an_uninterrupted_run(
    sources: list[str], kind: str, tmp_path: Path
) -> None:
    whole = finish(sources, tmp_path / "whole", kind, workers=1)
    work = tmp_path / ".out.partial"
    for workers, moment in zip((2, 1, 2, 2), MOMENTS, strict=True):
        wait_until_gone(kill_when(start(sources, tmp_path / "out", kind, workers), partial(moment, work)))
    made = {path.name: path.stat().st_ino for path in (work / "corpus").glob("*.tar")}
    assert finish(sources, tmp_path / "out", kind, workers=3) == whole
    kept = [name for name, inode in made.items() if (tmp_path / "out" / name).stat().st_ino == inode]
    assert len(kept) >= len(made) - 1, "closed shards were written again"


def prepare_until(files: int, source: str, out: Path) -> bool:
    """Prepare in a process that is killed where it would give a file its name for the n-th time.

    Returns:
        Whether it was done before.
    """
    pid = os.fork()
    if not pid:
        rename, calls = os.replace, count(1)

        def counted(old: Path, new: Path) -> None:
            if next(calls) == files:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(old, new)

        os.replace = counted  # type: ignore[assignment]
        prepare([source], out, "bytes", shard_tokens=40_000, piece_bytes=40_000, val_fraction=0.2)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("files", [5, 6, 7, 11])
def test_killed_at_every_so_many_files_it_would_make(sources: list[str], files: int, tmp_path: Path) -> None:
    prepare([sources[0]], tmp_path / "whole", "bytes", shard_tokens=40_000, val_fraction=0.2)
    runs = 1
    while not prepare_until(files, sources[0], tmp_path / "out"):
        runs += 1
        assert runs < 100, "it does not get on"
    assert runs > 5
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == whole
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments(sources: list[str], seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    kind = chance.choice(list(KINDS))
    whole = finish(sources, tmp_path / "whole", kind, workers=1)
    for _ in range(6):
        process = start(sources, tmp_path / "out", kind, chance.choice([1, 2, 3]))
        time.sleep(chance.uniform(0.2, 2.0))
        pids = children(process.pid) if process.poll() is None else []
        process.kill()
        process.wait()
        wait_until_gone(pids)
    assert finish(sources, tmp_path / "out", kind, chance.choice([1, 2])) == whole


def test_a_worker_that_is_killed_stops_the_command_with_a_sentence_and_it_continues(
    sources: list[str], tmp_path: Path
) -> None:
    whole = finish(sources, tmp_path / "whole", "bytes", workers=1)
    command = [*CALM, *sources, "--out", str(tmp_path / "out"), "--workers", "2", *COMMON, *KINDS["bytes"]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not any((tmp_path / ".out.partial" / "pieces").glob("*.npz")):
        time.sleep(0.001)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "a worker process died" in errors and errors.count("\n") == 1
    assert finish(sources, tmp_path / "out", "bytes", workers=2) == whole


def test_ctrl_c_ends_with_a_sentence_and_status_130(sources: list[str], tmp_path: Path) -> None:
    command = [*CALM, *sources, "--out", str(tmp_path / "out"), "--workers", "2", *COMMON, *KINDS["bytes"]]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not any((tmp_path / ".out.partial" / "pieces").glob("*.npz")):
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it, too
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.strip() == "interrupted: the same command continues"
    finish(sources, tmp_path / "out", "bytes", workers=1)

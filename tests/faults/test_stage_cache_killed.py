"""Real autoencoders wanted by several processes at once, and owners that are killed or stopped while they train."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from calm_lightning.config import RunConfig, load_config
from calm_lightning.metrics import names
from calm_lightning.tracking.entries import by_step, read_journal
from sweeps.cache.inventory import Uses, entries
from sweeps.cache.pruning import empty_grave, remove
from sweeps.cache.records import lease_name, leases_directory
from sweeps.cache.stage_cache import StageCache
from sweeps.trials.leases import Leases

STEPS, BEAT, DEAD = 60, 0.1, 60.0
TINY = [
    "data.block_tokens=96",
    "data.batch_tokens=384",
    "data.eval_batch_tokens=192",
    "data.eval_max_blocks=4",
    "model.K=2",
    "autoencoder={d: 16, intermediate: 32}",
    "evaluation.every_steps=20",
    f"trainer={{max_steps: {STEPS}, accelerator: cpu, precision: 32-true}}",
    "tracking.mlflow=false",
    "checkpoint_steps=7",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from data_pipelines.prepare import prepare

    folder = tmp_path_factory.mktemp("killed")
    for split, documents in (("train", 60), ("val", 8)):
        rows = (json.dumps({"text": f"{'the small cat sat on the mat. ' * 8}{number}"}) for number in range(documents))
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    prepare([folder / "train.jsonl", folder / "val.jsonl"], folder / "corpus", "bytes", shard_tokens=8192)
    return folder / "corpus"


def configure(corpus: Path, work_dir: Path) -> RunConfig:
    return load_config([*TINY, f"data.corpus={corpus}", f"work_dir={work_dir}"], stage="autoencoder")


def want(owner: str, config: RunConfig, report: Path, slowly: float, dead: float) -> None:
    """Obtain the autoencoder and report how; each call of `train` is noted as it begins."""
    from calm_lightning.run import RunResult, execute

    work_dir = Path(config.work_dir)
    said: list[str] = []

    def train(wanted: RunConfig) -> RunResult:
        (report / f"{owner}.trains").touch()
        time.sleep(slowly)
        return execute(wanted, progress=False)

    leases = Leases(leases_directory(work_dir), owner, BEAT, dead)
    _, use = StageCache(work_dir, leases, said.append).obtain(config, train)
    leases.close()
    value = {"trained": use.trained, "waited": use.waited_seconds, "flops": use.train_flops, "said": said}
    scratch = report / f"{owner}.tmp"
    scratch.write_text(json.dumps({**value, "run_dir": str(use.run_dir)}))
    scratch.rename(report / f"{owner}.json")


Start = Callable[..., BaseProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts `want` in a process with everything imported; none outlives the test."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["calm_lightning.run", "sweeps.cache.stage_cache"])
    started: list[BaseProcess] = []

    def begin(owner: str, config: RunConfig, slowly: float = 0.0, dead: float = DEAD) -> BaseProcess:
        process: BaseProcess = context.Process(target=want, args=(owner, config, tmp_path, slowly, dead))
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.is_alive():
            process.kill()
        process.join()


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def finish(process: BaseProcess) -> None:
    process.join(120)
    assert process.exitcode == 0


def reports(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def run_dir(work_dir: Path) -> Path:
    (found,) = (work_dir / "autoencoder").glob("*-*")
    return found


def last_step(work_dir: Path) -> int:
    found = list((work_dir / "autoencoder").glob("*-*"))
    return max(by_step(read_journal(found[0])), default=-1) if found else -1


def whole(corpus: Path, folder: Path) -> tuple[bytes, dict[int, float]]:
    """Return the weights and the losses of a run that nobody disturbed."""
    from calm_lightning.run import execute

    result = execute(configure(corpus, folder), progress=False)
    return outcome(result.run_dir)


def outcome(place: Path) -> tuple[bytes, dict[int, float]]:
    losses = {
        step: values[names.VAL_LOSS]
        for step, values in by_step(read_journal(place)).items()
        if names.VAL_LOSS in values
    }
    return (place / "model.safetensors").read_bytes(), losses


@pytest.mark.slow
def test_wanted_at_the_same_moment_it_is_trained_once(corpus: Path, tmp_path: Path, start: Start) -> None:
    config = configure(corpus, tmp_path / "runs")
    for process in [start(f"local-{number}", config) for number in range(3)]:
        finish(process)
    found = reports(tmp_path)
    assert sorted(one["trained"] for one in found.values()) == [False, False, True]
    assert len(list(tmp_path.glob("*.trains"))) == 1
    assert len({one["run_dir"] for one in found.values()}) == 1
    assert len({one["flops"] for one in found.values()}) == 1


def kill_at(process: BaseProcess, work_dir: Path, step: int) -> None:
    """Kill a process when the autoencoder has come so far that there is a checkpoint to continue from."""
    until(lambda: last_step(work_dir) >= step)
    assert (run_dir(work_dir) / "checkpoints" / "last.ckpt").exists()
    process.kill()
    process.join()
    assert not (run_dir(work_dir) / "result.json").exists(), "it was done before"


@pytest.mark.slow
def test_killed_while_it_trains_another_one_continues_to_the_same_weights(
    corpus: Path, tmp_path: Path, start: Start
) -> None:
    work_dir = tmp_path / "runs"
    config = configure(corpus, work_dir)
    owner = start("local-0", config)
    until((tmp_path / "local-0.trains").exists)
    for number, step in ((1, 15), (2, 35)):
        heir = start(f"local-{number}", config)
        kill_at(owner, work_dir, step)
        begun, killed = read_journal(run_dir(work_dir))[0].time, time.monotonic()
        until((tmp_path / f"local-{number}.trains").exists)
        assert time.monotonic() - killed < DEAD / 4, "on one machine nobody has to be watched"
        owner = heir
    finish(owner)
    assert set(reports(tmp_path)) == {"local-2"}
    report = reports(tmp_path)["local-2"]
    assert report["trained"] and report["waited"] > 0
    assert "local-1" in report["said"][-1] and "is continued here" in report["said"][-1]
    assert read_journal(run_dir(work_dir))[0].time == begun, "it began anew"
    assert outcome(run_dir(work_dir)) == whole(corpus, tmp_path / "whole")


@pytest.mark.slow
def test_stopped_before_it_trains_it_is_replaced_and_finds_it_trained_when_it_wakes(
    corpus: Path, tmp_path: Path, start: Start
) -> None:
    work_dir = tmp_path / "runs"
    config = configure(corpus, work_dir)
    process = start("sleeper", config, slowly=1.0)
    until(lambda: (tmp_path / "sleeper.trains").exists())
    assert process.pid is not None
    here = Leases(leases_directory(work_dir), "test", BEAT, DEAD)
    with here.alone():
        os.kill(process.pid, signal.SIGSTOP)
    other = start("other", config, dead=2.0)
    finish(other)
    assert reports(tmp_path)["other"]["trained"]
    weights = (run_dir(work_dir) / "model.safetensors").stat().st_mtime_ns
    os.kill(process.pid, signal.SIGCONT)
    finish(process)
    assert not reports(tmp_path)["sleeper"]["trained"]
    assert (run_dir(work_dir) / "model.safetensors").stat().st_mtime_ns == weights


def unused(work_dir: Path, number: int) -> Path:
    """Make a directory that looks like a finished autoencoder without users."""
    identity = f"{number:064x}"
    folder = work_dir / "autoencoder" / f"autoencoder-s{number}-{identity[:10]}"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("model.safetensors", "config.yaml", "checkpoints/last.ckpt"):
        (folder / name).write_text("{}")
    (folder / "result.json").write_text(json.dumps({"identity": identity}))
    return folder


@pytest.mark.parametrize("moment", ["before renaming", "before deleting", "while deleting"])
def test_a_killed_prune_leaves_a_whole_directory_or_none(tmp_path: Path, moment: str) -> None:
    folder = unused(tmp_path, 1)
    files = sorted(path.name for path in folder.iterdir())
    leases = Leases(leases_directory(tmp_path), "prune", BEAT, DEAD)
    (entry,) = entries(tmp_path, leases)
    child = os.fork()
    if not child:

        def die(*arguments: object, **named: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        where, name = {
            "before renaming": (os, "rename"),
            "before deleting": (shutil, "rmtree"),
            "while deleting": (os, "rmdir"),
        }[moment]
        setattr(where, name, die)
        remove(tmp_path, entry, leases, Uses(tmp_path))
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    if moment == "before renaming":
        assert sorted({path.name for path in folder.iterdir()} - {"lock"}) == files
    else:
        assert not folder.exists() and entries(tmp_path, leases) == []
        assert list((tmp_path / "autoencoder" / ".pruned").iterdir())
    again = unused(tmp_path, 2) if not folder.exists() else folder
    (entry,) = entries(tmp_path, leases)
    assert remove(tmp_path, entry, leases, Uses(tmp_path)) == ""
    empty_grave(tmp_path)
    assert not again.exists() and not (tmp_path / "autoencoder" / ".pruned").exists()
    assert leases.acquire(lease_name(entry.identity)) is not None, "it was given back"
    leases.close()

"""A small trade for sweeps: it trains a formula, with everything that real runs do as far as a sweep can see.

It names a run directory by the configuration, holds the directory's lock, logs to a journal, saves its place after each
step, continues from there, asks its watcher, and returns at once when it has finished. `python tests/tiny_trade.py work
DIRECTORY --name NAME` is a worker with this trade, `... run ARGUMENTS` a coordinator of such workers.

Environment: TINY_SECONDS is the time a step takes, TINY_FAIL a regular expression of run names that fail.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from calm_lightning.config import RunConfig, identity, to_yaml
from calm_lightning.data.shards.manifest import (
    TOKENS,
    Counts,
    Manifest,
    Provenance,
    ShardRecord,
    SplitRecord,
    TokenizerRecord,
)
from calm_lightning.errors import BusyError, CalmError, DivergenceError
from calm_lightning.metrics import names
from calm_lightning.metrics.names import ScorePoint
from calm_lightning.stages.watch import RunStopped, Watch
from calm_lightning.tracking.entries import JournalEntry, by_step, encode, read_journal
from sweeps.budget.rule import step_flops
from sweeps.config import SweepConfig, load_sweep
from sweeps.launchers.base import Launcher, WorkerSettings
from sweeps.launchers.process import end_with_parent
from sweeps.launchers.registry import launcher_class
from sweeps.run import run_sweep
from sweeps.work.worker import Trade, work

V = 257


@dataclass(frozen=True)
class TinyPlace:
    run_dir: Path
    identity: str


@dataclass(frozen=True)
class TinyOutcome:
    run_dir: Path
    points: tuple[ScorePoint, ...]
    train_flops: float
    text: str = "A sample."
    mlflow_run_id: str | None = None


def locate(config: RunConfig) -> TinyPlace:
    lineage = {"corpus": "tiny"}
    if config.stage == "calm":
        lineage["autoencoder"] = json.loads((Path(config.autoencoder_run) / "result.json").read_text())["identity"]
    name = identity(config, **lineage)
    return TinyPlace(Path(config.work_dir) / config.stage / f"{config.name or config.stage}-{name[:10]}", name)


def read_points(run_dir: Path) -> tuple[ScorePoint, ...]:
    steps = by_step(read_journal(run_dir))
    found = (ScorePoint.from_metrics(step, dict(values)) for step, values in steps.items())
    return tuple(point for point in found if point is not None)


def metrics_at(config: RunConfig, step: int) -> dict[str, float]:
    """Cost and score of a formula: 4 is the best K, more steps are better, the seed decides a little noise."""
    K = config.model.K if config.stage == "calm" else 1
    noise = 0.05 * math.sin(1000 * config.seed + 10 * K + step)
    score = 10 * (1 - math.exp(-step / 3)) / (1 + abs(math.log2(K / 4))) / (1 + 100 * config.optim.lr) + noise
    flops, below = step * step_flops(config, V), 0.0
    if config.stage == "calm":
        below = json.loads((Path(config.autoencoder_run) / "result.json").read_text())["train_flops"]
    costs = {
        names.TRAIN_FLOPS: flops,
        names.TRAIN_FLOPS_TOTAL: flops + below,
        names.INFERENCE_FLOPS_PER_TOKEN: 1e6 / K,
        names.TEXT_TOKENS: 1e5 * step,
        names.SECONDS: float(step),
    }
    if config.stage == "autoencoder":
        return costs
    scores = {names.BRIER_LM: max(score, 0.0), names.BRIER_LM_SE: 0.1}
    scores |= {names.BRIER_LM_LOW: max(0.0, score - 0.2), names.BRIER_LM_HIGH: score + 0.2}
    return costs | scores | dict.fromkeys(names.BRIER_N, 2 * score) | dict.fromkeys(names.BRIER_N_SE, 0.2)


def execute(
    config: RunConfig,
    *,
    parent: str = "",
    tags: dict[str, str] | None = None,
    progress: bool = True,
    watch: Watch | None = None,
) -> TinyOutcome:
    place = locate(config)
    run_dir = place.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BusyError(f"another process is training {run_dir}") from None
        (run_dir / "config.yaml").write_text(to_yaml(config))
        if not (run_dir / "result.json").is_file():
            _train(config, place, watch)
            flops = metrics_at(config, int(config.trainer["max_steps"]))[names.TRAIN_FLOPS_TOTAL]
            scratch = run_dir / "result.json.tmp"
            scratch.write_text(json.dumps({"identity": place.identity, "train_flops": flops, "tags": tags}))
            os.replace(scratch, run_dir / "result.json")
    points = read_points(run_dir)
    return TinyOutcome(run_dir, points, json.loads((run_dir / "result.json").read_text())["train_flops"])


def _train(config: RunConfig, place: TinyPlace, watch: Watch | None) -> None:
    """Take the steps that are missing; each is written to `steps.log` of the work directory, one line."""
    steps, every = int(config.trainer["max_steps"]), config.evaluation.every_steps
    journal = place.run_dir / "metrics.jsonl"
    content = journal.read_bytes() if journal.is_file() else b""
    journal.write_bytes(content[: content.rfind(b"\n") + 1])  # a torn last line
    first = max((entry.step for entry in read_journal(place.run_dir)), default=-1) + 1
    for step in range(first, steps + 1):
        time.sleep(float(os.environ.get("TINY_SECONDS", "0")))
        if re.search(os.environ.get("TINY_FAIL", "(?!)"), config.name):
            raise DivergenceError(f"training diverged after {step} steps of {config.name}")
        evaluated = config.stage != "autoencoder" and (step in (0, steps) or (every and step % every == 0))
        values = metrics_at(config, step) if evaluated or config.stage == "autoencoder" else {names.TRAIN_LOSS: 1.0}
        with journal.open("a") as file:
            file.write(encode(JournalEntry(step, float(step), values)))
        with (Path(config.work_dir) / "steps.log").open("a") as log:
            log.write(f"{config.stage} {place.identity[:10]} {step}\n")
        if watch is not None and 0 < step < steps:
            if evaluated:
                watch.evaluated(step)
            if watch.interrupted():
                raise RunStopped("interrupted")


TRADE = Trade(execute, locate, read_points)


def prepare(sweep: SweepConfig, out: Path) -> Manifest:
    record = TokenizerRecord("bytes", None, V, 256, "tiny")
    shard = ShardRecord("s.tar", 1, "0" * 64, {"": Counts(1, 1000, 1000)})
    splits = {name: SplitRecord((shard,)) for name in ("train", "val")}
    return Manifest(TOKENS, record, "uint16", splits, Provenance())


def launch(name: str, settings: WorkerSettings) -> Launcher:
    factory: type = launcher_class(name)
    launcher: Launcher = factory(settings, (__file__, "work"))
    return launcher


def main() -> int:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    worker = verbs.add_parser("work")
    worker.add_argument("directory", type=Path)
    worker.add_argument("--name", required=True)
    coordinator = verbs.add_parser("run")
    coordinator.add_argument("sweep", type=Path)
    coordinator.add_argument("work_dir", type=Path)
    coordinator.add_argument("--retry-failed", action="store_true")
    coordinator.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    try:
        if given.verb == "work":
            end_with_parent()
            return work(given.directory, given.name, trade=TRADE)
        sweep = load_sweep(given.sweep, given.overrides)
        run_sweep(sweep, given.work_dir, Console(), prepare=prepare, launch=launch, retry_failed=given.retry_failed)
    except KeyboardInterrupt:
        return 130
    except CalmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

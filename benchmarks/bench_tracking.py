"""What recording a run costs beside a training step of 50 ms.

    python benchmarks/bench_tracking.py
    python benchmarks/bench_tracking.py --json results.json --server http://127.0.0.1:5000

A loop does a fixed amount of matrix multiplication per step, about 50 ms on one thread, and records six numbers after
every step: more than training does, which records every few steps. It runs without recording, with the journal alone,
and with MLflow following the journal (SQLite in a temporary directory, and a server where one is given), in turn,
several times. Reported are medians of seconds per step and the overhead against the loop without recording, and apart
from the loop the seconds until the first number is in a new store, which a thread spends while training has begun.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.journal import MetricsJournal
from calm_lightning.tracking.outbox.outbox import Outbox, OutboxPlace
from calm_lightning.tracking.outbox.tracker import MlflowTracker
from calm_lightning.tracking.store import open_store

STEP_SECONDS = 0.05
NAMES = ("train/loss", "train/learning_rate", "train/gradient_norm", "train/tokens_per_second", "a/one", "a/two")


@dataclass(frozen=True)
class Row:
    """One measurement."""

    what: str
    seconds_per_step: float
    overhead_percent: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--small", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--server", help="an MLflow server to measure, too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    steps, rounds = (20, 1) if given.small else (300, 5)
    work = Work()
    folder = Path(tempfile.mkdtemp(prefix="calm-bench-"))
    try:
        open_store(TrackingConfig(), folder / "runs")  # the schema is made once in the life of a store
        ways = {"no recording": None, "journal": None, "journal and MLflow (SQLite)": ""}
        if given.server:
            ways["journal and MLflow (server)"] = given.server
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds):
            for name, uri in ways.items():
                place = OutboxPlace(folder / "runs" / "calm" / f"{number}-{len(name)}")
                seconds[name] += loop(work, place, steps, journal=name != "no recording", uri=uri)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    bare = statistics.median(seconds["no recording"])
    rows = [Row(name, statistics.median(found), 100 * (statistics.median(found) / bare - 1))
            for name, found in seconds.items()]  # fmt: skip
    means = {name: 100 * (statistics.mean(found) / statistics.mean(seconds["no recording"]) - 1)
             for name, found in seconds.items()}  # fmt: skip
    table = Table("what", "ms per step", "overhead of the median", "of the mean", title="Recording every step")
    for row in rows:
        milliseconds = f"{1000 * row.seconds_per_step:.2f}"
        table.add_row(row.what, milliseconds, f"{row.overhead_percent:+.2f} %", f"{means[row.what]:+.2f} %")
    Console().print(table)
    if given.json:
        record = {"machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
                  "python": platform.python_version(), "steps": steps, "rounds": rounds,
                  "rows": [asdict(row) | {"overhead_of_mean_percent": means[row.what]} for row in rows]}  # fmt: skip
        given.json.write_text(json.dumps(record, indent=2) + "\n")


class Work:
    """Matrix multiplications that take about a step's time."""

    def __init__(self) -> None:
        self.matrix = torch.randn(512, 512)
        self.repetitions = 1
        begun = time.perf_counter()
        for _ in range(20):
            self.matrix @ self.matrix
        self.repetitions = max(1, round(STEP_SECONDS / ((time.perf_counter() - begun) / 20)))

    def step(self) -> torch.Tensor:
        product = self.matrix
        for _ in range(self.repetitions):
            product = self.matrix @ self.matrix
        return product[0, 0]


def loop(work: Work, place: OutboxPlace, steps: int, *, journal: bool, uri: str | None) -> list[float]:
    """Return the seconds of every step; those in which MLflow is imported are left out."""
    tracker = None
    if uri is not None:
        outbox = Outbox(identity=str(place.directory), name=place.directory.name, uri=uri, started=time.time())
        tracker = MlflowTracker(place, outbox, system_metrics=True).start()
        while tracker.run_id is None:
            time.sleep(0.05)
    log = MetricsJournal(place.directory) if journal else None
    found = []
    for step in range(steps):
        begun = time.perf_counter()
        value = work.step()
        if log is not None:
            log.log_metrics({name: value for name in NAMES}, step)
        found.append(time.perf_counter() - begun)
    if tracker is not None:
        tracker.finish()
    return found


if __name__ == "__main__":
    main()

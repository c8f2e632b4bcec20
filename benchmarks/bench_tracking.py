"""What recording a run costs beside a training step of 50 ms.

    python benchmarks/bench_tracking.py
    python benchmarks/bench_tracking.py --json results.json --server http://127.0.0.1:5000

A loop does a fixed amount of matrix multiplication per step, about 50 ms on one thread, and records six numbers after
every step, and in another series after every tenth (training records after every fiftieth in runs of 1,000 steps or
more). It runs without recording, with the journal alone, and with MLflow following the journal (SQLite in a temporary
directory, and a server where one is given), in turn, several times; MLflow is imported before the clock starts.

Reported are the median step, the time that the loop itself spends recording, and the CPU time of the tracker's threads
until all has arrived. These two together, divided by the step, are the share that recording can cost at most, whatever
else disturbs the machine; where a core is free it is the first alone.
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
    """One measurement, medians and means over all steps, seconds per step."""

    what: str
    step: float
    recording: float
    threads: float

    @property
    def most_percent(self) -> float:
        return 100 * (self.recording + self.threads) / self.step


@dataclass
class Spent:
    """What one loop spent."""

    steps: list[float]
    recording: float
    threads: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--small", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--server", help="an MLflow server to measure, too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    steps, rounds = (20, 1) if given.small else (200, 4)
    work = Work()
    folder = Path(tempfile.mkdtemp(prefix="calm-bench-"))
    spent: dict[str, list[Spent]] = {}
    try:
        open_store(TrackingConfig(), folder / "runs")  # the schema is made once in the life of a store
        ways: dict[str, tuple[int, str | None]] = {"no recording": (0, None)}
        for every, when in ((1, "every step"), (10, "every 10 steps")):
            ways |= {f"journal, {when}": (every, None), f"MLflow on SQLite, {when}": (every, "")}
            if given.server:
                ways[f"MLflow on a server, {when}"] = (every, given.server)
        for number in range(rounds):
            for name, (every, uri) in ways.items():
                place = OutboxPlace(folder / "runs" / "calm" / f"{number}-{len(spent)}-{every}-{uri is None}")
                found = loop(work, place, steps, every, uri)
                spent.setdefault(name, []).append(found)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [
        Row(
            name,
            statistics.median(step for one in all_of_them for step in one.steps),
            sum(one.recording for one in all_of_them) / (rounds * steps),
            sum(one.threads for one in all_of_them) / (rounds * steps),
        )
        for name, all_of_them in spent.items()
    ]
    table = Table("what", "median step", "recording", "threads", "at most", title="Recording, ms per step")
    for row in rows:
        numbers = [f"{1000 * seconds:.3f}" for seconds in (row.step, row.recording, row.threads)]
        table.add_row(row.what, *numbers, f"{row.most_percent:.2f} %")
    Console().print(table)
    if given.json:
        record = {
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "steps": steps,
            "rounds": rounds,
            "rows": [asdict(row) | {"most_percent": row.most_percent} for row in rows],
        }
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


def loop(work: Work, place: OutboxPlace, steps: int, every: int, uri: str | None) -> Spent:
    """Return what a loop spent, from its first step until everything is in the store."""
    tracker = None
    if uri is not None:
        outbox = Outbox(identity=str(place.directory), name=place.directory.name, uri=uri, started=time.time())
        tracker = MlflowTracker(place, outbox, system_metrics=True).start()
        while tracker.run_id is None:
            time.sleep(0.05)
    log = MetricsJournal(place.directory)
    found = Spent([], 0.0, 0.0)
    all_threads, this_thread = time.process_time(), time.thread_time()
    for step in range(steps):
        begun = time.perf_counter()
        value = work.step()
        if every and (step + 1) % every == 0:
            before = time.perf_counter()
            log.log_metrics({name: value for name in NAMES}, step)
            found.recording += time.perf_counter() - before
        found.steps.append(time.perf_counter() - begun)
    if tracker is not None:
        tracker.finish()
    found.threads = (time.process_time() - all_threads) - (time.thread_time() - this_thread)
    return found


if __name__ == "__main__":
    main()

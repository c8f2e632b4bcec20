"""What orchestration costs: seconds per trial beside training, and how fast a study of a thousand trials answers.

    python benchmarks/bench_sweep.py
    python benchmarks/bench_sweep.py --json results.json --storage postgresql://user@host/database

Workers of a sweep take trials whose "training" writes its results and returns at once, so all that is measured is the
sweep's own work: planning, leases, the record, the stage cache, pruning, progress. Divided by the length of a real
trial that is the overhead. One worker works alone, then two at once (processes), since they share locks and a database.
The large study is filled with finished trials first; then single steps are timed on it, medians over repetitions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from calm_lightning.config import RunConfig, identity
from calm_lightning.metrics.names import ScorePoint
from sweeps.artifacts import CONFIG
from sweeps.config import SweepConfig, load_sweep, sweep_to_yaml
from sweeps.directory import LEASES, Session, write_session
from sweeps.front.series import Series
from sweeps.space.points import PointMaker
from sweeps.trials.leases import Leases
from sweeps.trials.planner import Planner, planning
from sweeps.trials.record import open_record
from sweeps.watch.dashboard import Dashboard
from sweeps.watch.observe import Observer
from sweeps.work.worker import Trade, work

V = 257
SPACE = """
name: bench
include_baseline: false
tracking: {{mlflow: false}}
all: {{trainer: {{max_steps: 100}}}}
space:
  model.K: [1, 2, 4, 8]
  model.N: {{int: [2, 64]}}
  optim.lr: {{float: [1.0e-4, 1.0e-1], log: true}}
sampler: {{name: {sampler}, points: {points}}}
pruning: {{rule: pareto}}
storage: "{storage}"
"""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    what: str
    storage: str
    workers: int
    trials: int
    seconds: float


@dataclass(frozen=True)
class Done:
    """What a trial that trains nothing leaves."""

    run_dir: Path
    points: tuple[ScorePoint, ...]
    train_flops: float
    text: str = ""
    mlflow_run_id: str | None = None


def curve(config: RunConfig) -> tuple[ScorePoint, ...]:
    score = 10 / (1 + abs(config.model.K - 4) + abs(config.model.N - 8) / 8)
    return tuple(
        ScorePoint(
            step, 1e9 * step, 1e9 * step, 1e6, 1e5, 1.0, score * step / 100, 0.1, 0.0, 1.0, (1.0,) * 4, (0.1,) * 4
        )
        for step in range(0, 101, 10)
    )


def nothing() -> Trade:
    """Return a trade whose runs are finished as soon as they are begun."""

    @dataclass(frozen=True)
    class Place:
        run_dir: Path
        identity: str

    def locate(config: RunConfig) -> Place:
        name = identity(config)
        return Place(Path(config.work_dir) / config.stage / f"{config.name or config.stage}-{name[:10]}", name)

    def execute(config: RunConfig, **_: object) -> Done:
        place = locate(config)
        place.run_dir.mkdir(parents=True, exist_ok=True)
        (place.run_dir / "result.json").write_text(json.dumps({"identity": place.identity, "train_flops": 1e9}))
        return Done(place.run_dir, () if config.stage == "autoencoder" else curve(config), 1e9)

    return Trade(execute, locate, lambda run_dir: ())


def open_sweep(folder: Path, storage: str, sampler: str, points: int) -> tuple[Path, SweepConfig, Planner]:
    """Return a sweep's directory, its configuration and its planner, with a study that holds no trial."""
    directory = folder / "runs" / "sweeps" / f"bench-{sampler}-{points}-{os.getpid()}-{time.monotonic_ns()}"
    directory.mkdir(parents=True)
    (directory / "given.yaml").write_text(SPACE.format(sampler=sampler, points=points, storage=storage))
    sweep = load_sweep(directory / "given.yaml")
    (directory / CONFIG).write_text(sweep_to_yaml(sweep))
    work_dir = folder / "runs"
    record = open_record(directory, sweep.storage, directory.name, sweep.objectives)
    write_session(
        directory, Session(directory.name, str(work_dir), "corpus", "hash", V, None, points, time.time(), storage)
    )
    return directory, sweep, Planner(PointMaker(sweep, Path("corpus"), work_dir, V), record)


def per_trial(folder: Path, storage: str, sampler: str, workers: int, trials: int) -> float:
    """Return the seconds that one worker needs per trial, beside training."""
    directory, _, planner = open_sweep(folder, storage, sampler, trials)
    with planning(directory):
        planner.plan(room=2)
    command = [sys.executable, __file__, "--work", str(directory)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*command, "--name", f"w{n}"], env=environment, stdout=subprocess.PIPE, text=True)
        for n in range(workers)
    ]
    spent = [float(process.communicate()[0].split()[-1]) for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a worker failed")
    return sum(spent) / trials


def fill(folder: Path, storage: str, trials: int) -> tuple[Path, SweepConfig, Planner]:
    """Return a sweep that has that many finished trials, and one more to come."""
    directory, sweep, planner = open_sweep(folder, storage, "random", trials + 1)
    maker, record = planner.maker, planner.record
    with planning(directory):
        planner.plan(room=trials)
    for trial in record.trials():
        point = maker.make(trial.user_attrs["values"])
        series = Series(
            point.label, "calm", point.values, 10**6, curve(point.model), "run", "below", None, "",
            slug=point.slug, trial=trial.number,
        )  # fmt: skip
        record.begin(trial, "w")
        record.complete(trial, series, [series.final.train_flops, series.final.brier_lm])
    return directory, sweep, planner


def timed(action: Callable[[], object], repetitions: int) -> float:
    seconds = []
    for _ in range(repetitions):
        begun = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def large_study(folder: Path, storage: str, trials: int, repetitions: int) -> list[Row]:
    """Return how long single steps take in a study with that many finished trials."""
    directory, sweep, planner = fill(folder, storage, trials)

    def row(what: str, action: Callable[[], object], times: int = repetitions) -> Row:
        return Row(what, shown(storage), 1, trials, timed(action, times))

    session = Session(directory.name, str(folder / "runs"), "corpus", "hash", V, None, trials + 1, time.time(), storage)
    name = directory.name
    fresh = open_record(directory, sweep.storage, name, sweep.objectives, create=False)
    begun = time.perf_counter()
    fresh.trials()
    rows = [Row("read all trials for the first time", shown(storage), 1, trials, time.perf_counter() - begun)]
    rows.append(row("read all trials again", fresh.trials))
    observer = Observer(directory, sweep, session, fresh, Leases(directory / LEASES, "bench"))
    begun = time.perf_counter()
    snapshot = observer.look()
    rows.append(Row("first snapshot", shown(storage), 1, trials, time.perf_counter() - begun))
    rows.append(row("snapshot", observer.look))
    display = Dashboard(Console(file=open(os.devnull, "w"), force_terminal=True, width=120, height=40))  # noqa: SIM115
    rows.append(row("frame of the dashboard", lambda: display.update(snapshot)))
    for sampler in ("random", "tpe", "nsga2"):
        sweep.sampler.name = sampler
        learned = Planner(planner.maker, fresh)
        past = fresh.trials()[:-1]
        rows.append(row(f"draw a point with {sampler}", lambda p=learned, t=past: p._next(t), max(1, repetitions // 4)))
    return rows


def shown(storage: str) -> str:
    return storage.split(":")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--small", action="store_true", help="a few trials only, to see that it runs")
    parser.add_argument(
        "--storage", action="append", help="an Optuna storage, several times (default: sqlite, journal)"
    )
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        stop, trade = threading.Event(), nothing()
        begun = time.perf_counter()
        status = work(given.work, given.name, stop, trade)
        print(time.perf_counter() - begun)
        raise SystemExit(status)
    trials, large, repetitions = (6, 30, 3) if given.small else (60, 1000, 20)
    rows: list[Row] = []
    folder = Path(tempfile.mkdtemp(prefix="calm-bench-"))
    try:
        for storage in given.storage or ["sqlite", "journal"]:
            for workers in (1, 2):
                for sampler in ("random", "tpe"):
                    seconds = per_trial(folder, storage, sampler, workers, trials)
                    rows.append(Row(f"one trial, {sampler}", shown(storage), workers, trials, seconds))
            rows += large_study(folder, storage, large, repetitions)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = Table("what", "storage", "workers", "trials", "ms", title="Orchestration")
    for one in rows:
        table.add_row(one.what, one.storage, str(one.workers), str(one.trials), f"{1000 * one.seconds:.1f}")
    Console().print(table)
    if given.json:
        record = {"machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
                  "python": platform.python_version(), "rows": [asdict(one) for one in rows]}  # fmt: skip
        given.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

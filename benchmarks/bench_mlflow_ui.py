"""How long the MLflow UI takes to show a sweep with hundreds of runs, in a real Chromium.

    python benchmarks/bench_mlflow_ui.py
    python benchmarks/bench_mlflow_ui.py --children 500 --params 30 --json results.json

A store is filled with a parent and its children, each with parameters, tags and metric histories as training logs
them (one child is recorded through MLflow, its rows are then copied in the database). `calm ui` serves it, and Chromium
opens what users open: the table of models, the chart of BrierLM over training FLOPs, a comparison of 20 runs, the
sweep's own page. Every time is from asking for the address until what is looked for is on the page, the median of
several visits.

Options vary what a run logs, to see what it costs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from calm_lightning.metrics import names
from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.entries import JournalEntry
from calm_lightning.tracking.serving.sqlite_statistics import refresh_statistics
from calm_lightning.tracking.serving.views import write_views
from calm_lightning.tracking.store import PARENT_TAG, Store, open_store

if TYPE_CHECKING:
    from playwright.sync_api import Page

STUDY = "bench"
COMPARED = 20
_NEEDED = (names.BRIER_LM, names.TRAIN_FLOPS_TOTAL, names.LOG_TRAIN_FLOPS_TOTAL, names.TEXT_TOKENS, names.SECONDS)
_COPIED = ("params", "tags", "metrics", "latest_metrics")
_LINES = """
wanted => Array.from(document.querySelectorAll('.js-plotly-plot')).some(element => element._fullLayout
  && element._fullLayout.xaxis && element._fullLayout.xaxis.title.text === wanted[0]
  && element.data.filter(trace => trace.x && trace.x.length).length >= wanted[1])
"""


@dataclass(frozen=True)
class Row:
    """One measurement: the median of several visits."""

    what: str
    seconds: float


@dataclass(frozen=True)
class Size:
    """What is stored."""

    children: int
    params: int
    metrics: int
    points: int
    tags: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--small", action="store_true", help="a few children and one visit, to see that it runs")
    for name, usual in (("children", 500), ("params", 100), ("metrics", 25), ("points", 50), ("tags", 15)):
        parser.add_argument(f"--{name}", type=int, default=usual, help=f"{name}, {usual} where not given")
    parser.add_argument("--no-statistics", action="store_true", help="leave SQLite without statistics of the tables")
    parser.add_argument("--visits", type=int, default=3, help="visits of each page")
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("there is no Chromium on this machine: apt-get install chromium")
        return
    size = Size(given.children, given.params, given.metrics, given.points, given.tags)
    if given.small:
        size = Size(22, 10, 6, 10, 5)
    folder = Path(tempfile.mkdtemp(prefix="calm-bench-"))
    try:
        visits = 1 if given.small else given.visits
        rows, megabytes = measure(folder, size, chromium, visits, not given.no_statistics)
    finally:
        shutil.rmtree(folder)
    show(rows, size, megabytes)
    if given.json:
        machine = {"cores": os.cpu_count(), "python": platform.python_version()}
        value = {
            "machine": machine,
            "size": asdict(size),
            "megabytes": megabytes,
            "rows": [asdict(row) for row in rows],
        }
        given.json.write_text(json.dumps(value, indent=2))


def measure(folder: Path, size: Size, chromium: str, visits: int, statistics_too: bool) -> tuple[list[Row], float]:
    """Fill a store and visit its pages; returns seconds, and megabytes of the store."""
    from playwright.sync_api import sync_playwright

    work_dir = folder / "runs"
    store = open_store(TrackingConfig(), work_dir)
    database = folder / "mlruns" / "mlflow.db"
    parent, children = fill(store, database, size)
    if statistics_too:
        refresh_statistics(database)
    links = write_views(store.client, store.experiment_id, STUDY)
    megabytes = database.stat().st_size / 1e6
    with served(work_dir) as url, sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(300_000)
        page.goto(url)
        page.get_by_text("Experiments").first.wait_for()  # the UI's own code is in the cache from here on
        rows = []
        for what, address, shown in pages(links, store.experiment_id, parent, children):
            rows.append(Row(what, statistics.median(visit(page, url + address, shown) for _ in range(visits))))
        browser.close()
    return rows, megabytes


def pages(
    links: dict[str, str], experiment: str, parent: str, children: list[str]
) -> Iterator[tuple[str, str, Callable[[Page], object]]]:
    """Yield what is looked at, its address, and what waits until it is there."""
    lines = min(len(children), 100)  # MLflow loads a hundred runs, then more on request
    compared = json.dumps(children[:COMPARED], separators=(",", ":"))

    def charted(page: Page) -> None:
        page.wait_for_function(_LINES, arg=[names.LOG_TRAIN_FLOPS_TOTAL, lines])

    yield (
        "table of models",
        links["table"],
        lambda page: page.get_by_role("row").filter(has_text="child").first.wait_for(),
    )
    yield f"BrierLM over FLOPs, {lines} lines", links["front"], charted
    yield (
        "sweep opened, its models listed",
        f"/#/experiments/{experiment}/runs",
        lambda page: (
            page.locator("[col-id='attributes.`Run Name`']").get_by_role("button").first.click(),
            page.get_by_role("row").filter(has_text="child").first.wait_for(),
        ),
    )
    yield (
        f"{min(COMPARED, len(children))} runs compared",
        f"/#/compare-runs?runs={compared}&experiments=%5B%22{experiment}%22%5D",
        lambda page: (
            page.locator(".js-plotly-plot .parcoords").first.wait_for(),
            page.get_by_text("Tags", exact=True).first.wait_for(),
        ),
    )
    yield (
        "page of one run",
        f"/#/experiments/{experiment}/runs/{children[0]}",
        lambda page: page.get_by_text("About this run").wait_for(),
    )
    yield (
        "charts of one run",
        f"/#/experiments/{experiment}/runs/{children[0]}/model-metrics",
        lambda page: page.wait_for_function(_LINES, arg=["Step", 1]),
    )
    yield (
        "page of the sweep",
        f"/#/experiments/{experiment}/runs/{parent}",
        lambda page: page.get_by_role("link", name="child-").first.wait_for(),
    )


def visit(page: Page, address: str, shown: Callable[[Page], object]) -> float:
    """Return the seconds until a page shows what it is opened for."""
    page.evaluate("localStorage.clear()")  # in which the UI keeps which rows are unfolded
    page.goto("about:blank")
    began = time.perf_counter()
    page.goto(address)
    shown(page)
    return time.perf_counter() - began


@contextmanager
def served(work_dir: Path) -> Iterator[str]:
    """Serve the store with `calm ui`; yields its address."""
    command = [sys.executable, "-c", "from calm_lightning.cli.main import main; main()", "ui", "--port", "0"]
    server = subprocess.Popen(
        [*command, "--work-dir", str(work_dir)],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        yield server.stdout.readline().split()[2]
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def fill(store: Store, database: Path, size: Size) -> tuple[str, list[str]]:
    """Record a parent and one child, then copy the child's rows; returns their run ids."""
    from mlflow.entities import Metric, Param, RunTag

    client, began = store.client, int(1000 * time.time())
    made = client.create_run(store.experiment_id, tags={"stage": "sweep", "study": STUDY}, run_name="the sweep")
    parent = str(made.info.run_id)
    tags = {PARENT_TAG: parent, "stage": "calm", "study": STUDY, "slug": "K4", "K": "4"}
    first = str(client.create_run(store.experiment_id, tags=tags, run_name="child-0").info.run_id)
    client.log_batch(first, tags=[RunTag(f"env.tag_{i}", "x" * 30) for i in range(size.tags - len(tags))])
    params = [Param("model.K", "4"), Param("model.l", "128"), Param("model.N", "8"), Param("model.d", "256")]
    params += [Param(f"section.key_{i}", str(i)) for i in range(size.params - len(params))]
    client.log_batch(first, params=params[:100])
    for step in range(size.points):
        values = entry(step, size).metrics
        client.log_batch(first, metrics=[Metric(name, value, began + step, step) for name, value in values.items()])
    client.set_terminated(first)
    children = [first, *(uuid.uuid4().hex for _ in range(size.children - 1))]
    copy(database, first, children[1:])
    client.set_terminated(parent)
    return parent, children


def entry(step: int, size: Size) -> JournalEntry:
    """Return what a run logs at one of its evaluations."""
    flops = 1e12 * (step + 1)
    values = (10 * (1 - math.exp(-step / 20)), flops, math.log10(flops), 8192.0 * step, 0.4 * step)
    metrics = dict(zip(_NEEDED, values, strict=True))
    return JournalEntry(
        step, 0.0, metrics | {f"val/metric_{i}": float(step) for i in range(size.metrics - len(metrics))}
    )


def copy(database: Path, source: str, targets: list[str]) -> None:
    """Copy a run's rows in the database; each copy's metrics are a little larger than those of the one before."""
    connection = sqlite3.connect(database)
    with connection:
        for table in ("runs", *_COPIED):
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            for number, target in enumerate(targets, start=1):
                values = [wanted(table, column, number) for column in columns]
                connection.execute(
                    f"INSERT INTO {table} ({', '.join(columns)}) "
                    f"SELECT {', '.join(values)} FROM {table} WHERE run_uuid = :source",
                    {"target": target, "source": source, "name": f"child-{number}"},
                )
    connection.close()


def wanted(table: str, column: str, number: int) -> str:
    """Return the SQL of a column of a copied row."""
    if column == "run_uuid":
        return ":target"
    if (table, column) == ("runs", "name"):
        return ":name"
    if (table, column) == ("tags", "value"):
        return "CASE key WHEN 'mlflow.runName' THEN :name ELSE value END"
    if column == "value" and "metrics" in table:
        return f"value * {1 + 0.001 * number}"
    return column


def show(rows: list[Row], size: Size, megabytes: float) -> None:
    """Print the measurements."""
    print(
        f"{size.children} children with {size.params} parameters, {size.metrics} metrics of {size.points} values and "
        f"{size.tags} tags each; {megabytes:.0f} MB"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("page")
    table.add_column("seconds", justify="right")
    for row in rows:
        table.add_row(row.what, f"{row.seconds:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()

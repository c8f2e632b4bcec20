"""Stores that die, are locked, read-only or full, and many writers at once: nothing is lost, nothing is there twice."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("mlflow")

from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.journal import MetricsJournal, read_journal
from calm_lightning.tracking.outbox.outbox import Outbox, OutboxPlace, unsent
from calm_lightning.tracking.outbox.sending import send
from calm_lightning.tracking.outbox.tracker import MlflowTracker
from calm_lightning.tracking.store import Store, open_store

TRAINS = """
import sys, time
from pathlib import Path
from calm_lightning.tracking.outbox import tracker as module
from calm_lightning.tracking.journal import MetricsJournal
from calm_lightning.tracking.outbox.outbox import Outbox, OutboxPlace
module._POLL_SECONDS = 0.1
run_dir, uri, steps, wait = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
outbox = Outbox(identity=run_dir.name, name=run_dir.name, uri=uri, started=time.time())
tracker = module.MlflowTracker(OutboxPlace(run_dir), outbox).start()
journal = MetricsJournal(run_dir)
for step in range(steps):
    journal.log_metrics({"train/loss": 1.0 / (step + 1), "val/nan": float("nan")}, step)
    print(step, flush=True)
    time.sleep(0.05)
began = time.monotonic()
print("finished", tracker.finish(timeout=wait), time.monotonic() - began, flush=True)
"""


def start_training(run_dir: Path, uri: str, steps: int, wait: float = 30.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", TRAINS, str(run_dir), uri, str(steps), str(wait)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=run_dir.parents[2])


def read_until(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.split()[0] == str(step):
            return
    raise AssertionError(f"the process ended before step {step}: {process.stderr.read() if process.stderr else ''}")


def assert_equal_to_journal(store: Store, run_dir: Path, run_id: str | None) -> None:
    """Compare every point of every metric: step, value, time."""
    assert run_id is not None
    wanted: dict[str, list[tuple[int, str, int]]] = {}
    for entry in read_journal(run_dir):
        for name, value in entry.metrics.items():
            wanted.setdefault(name, []).append((entry.step, repr(value), int(1000 * entry.time)))
    for name, points in wanted.items():
        found = store.client.get_metric_history(run_id, name)
        assert sorted((p.step, repr(p.value), p.timestamp) for p in found) == sorted(points)


def sent_run_id(place: OutboxPlace) -> str | None:
    outbox = place.read()
    return None if outbox is None else outbox.run_id


class Server:
    """An MLflow server on loopback that can be killed and started again at the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        log = (self.folder / "server.log").open("ab")
        self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text())

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    one = Server(tmp_path)
    one.start()
    yield one
    one.kill()


@pytest.mark.slow
def test_server_killed_and_restarted_during_training(server: Server, tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "calm" / "survivor"
    training = start_training(run_dir, server.uri, steps=160)
    read_until(training, 30)
    server.kill()
    read_until(training, 80)
    server.start()
    _, err = training.communicate(timeout=120)
    assert training.returncode == 0, err
    place = OutboxPlace(run_dir)
    if place.marker.exists():  # the server came back too late for it
        assert send(place).problem == ""
    store = open_store(TrackingConfig(uri=server.uri), tmp_path / "runs")
    assert_equal_to_journal(store, run_dir, sent_run_id(place))
    assert store.client.get_run(str(sent_run_id(place))).info.status == "FINISHED"


@pytest.mark.slow
def test_run_killed_while_the_server_is_down_is_sent_later(server: Server, tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "calm" / "orphan"
    training = start_training(run_dir, server.uri, steps=100_000)
    read_until(training, 20)
    server.kill()
    read_until(training, 60)
    training.kill()
    training.communicate()
    shown = calm("runs", "unsent", "--work-dir", str(tmp_path / "runs"))
    assert "orphan" in shown.stdout and "waits" in shown.stdout
    away = calm("runs", "send", "--work-dir", str(tmp_path / "runs"))
    assert away.returncode == 1 and "not sent: orphan" in away.stderr and "Traceback" not in away.stderr
    server.start()
    assert calm("runs", "send", "--work-dir", str(tmp_path / "runs")).returncode == 0
    assert "everything" in calm("runs", "send", "--work-dir", str(tmp_path / "runs")).stdout
    store = open_store(TrackingConfig(uri=server.uri), tmp_path / "runs")
    assert_equal_to_journal(store, run_dir, sent_run_id(OutboxPlace(run_dir)))


def calm(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from calm_lightning.cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_locked_store_holds_nothing_up(tmp_path: Path) -> None:
    work = tmp_path / "runs"
    store = open_store(TrackingConfig(), work)
    run_dir = work / "calm" / "locked"
    lock = sqlite3.connect(tmp_path / "mlruns" / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    training = start_training(run_dir, "", steps=20, wait=2.0)
    out, err = training.communicate(timeout=60)
    assert training.returncode == 0, err
    assert "None" in out.splitlines()[-1]
    lock.execute("ROLLBACK")
    lock.close()
    (place,) = unsent(work)
    assert send(place).problem == ""
    assert_equal_to_journal(store, run_dir, sent_run_id(place))


FULL = """
import resource, signal, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
exec(sys.stdin.read())
"""


@pytest.mark.slow
def test_full_store_is_sent_when_there_is_room(tmp_path: Path) -> None:
    work = tmp_path / "runs"
    store = open_store(TrackingConfig(), work)
    run_dir = work / "calm" / "full"
    command = [sys.executable, "-c", FULL, str(run_dir), "", "20", "5"]
    done = subprocess.run(command, input=TRAINS, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "training goes on" in done.stderr
    (place,) = unsent(work)
    assert send(place).problem == ""
    assert_equal_to_journal(store, run_dir, sent_run_id(place))


@pytest.mark.slow
def test_read_only_store_is_sent_when_it_may_be_written(tmp_path: Path) -> None:
    work = tmp_path / "runs"
    store = open_store(TrackingConfig(), work)
    run_dir = work / "calm" / "readonly"
    # Root may write everywhere, whatever the file's mode; SQLite itself keeps to mode=ro.
    read_only = f"sqlite:///file:{tmp_path}/mlruns/mlflow.db?mode=ro&uri=true"
    training = start_training(run_dir, read_only, steps=20, wait=5.0)
    _, err = training.communicate(timeout=120)
    assert training.returncode == 0, err
    assert "readonly" in err and "training goes on" in err
    (place,) = unsent(work)
    outbox = place.read()
    assert outbox is not None
    outbox.uri = ""
    place.write(outbox)
    assert send(place).problem == ""
    assert_equal_to_journal(store, run_dir, sent_run_id(place))


MANY = """
import sys, threading, time
from pathlib import Path
from calm_lightning.tracking.outbox import tracker as module
from calm_lightning.tracking.journal import MetricsJournal
from calm_lightning.tracking.outbox.outbox import Outbox, OutboxPlace
module._POLL_SECONDS = 0.2
work, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def train(number):
    run_dir = work / "calm" / f"run-{number}"
    outbox = Outbox(identity=f"run-{number}", name=f"run-{number}", params={"number": number}, started=time.time())
    tracker = module.MlflowTracker(OutboxPlace(run_dir), outbox).start()
    journal = MetricsJournal(run_dir)
    for step in range(20):
        journal.log_metrics({"train/loss": float(step), "val/loss": -1.0 - step}, step)
        time.sleep(0.05)
    tracker.finish(timeout=150)

threads = [threading.Thread(target=train, args=(number,)) for number in range(first, first + count)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hundred_runs_write_at_once(tmp_path: Path) -> None:
    work = tmp_path / "runs"
    store = open_store(TrackingConfig(), work)
    commands = [[sys.executable, "-c", MANY, str(work), str(20 * number), "20"] for number in range(10)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    problems = [process.communicate(timeout=500)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 10, problems
    for place in unsent(work):
        assert send(place).problem == ""
    runs = store.client.search_runs([store.experiment_id], max_results=1000)
    assert sorted(run.info.run_name for run in runs) == sorted(f"run-{number}" for number in range(200))
    for run in runs:
        assert_equal_to_journal(store, work / "calm" / run.info.run_name, run.info.run_id)


def test_outbox_of_a_tracker_that_could_not_start_sending_is_whole(tmp_path: Path) -> None:
    """The marker and the outbox are on disk before the store is touched: killed at once, the run is still sent."""
    run_dir = tmp_path / "runs" / "calm" / "early"
    MetricsJournal(run_dir).log_metrics({"train/loss": 1.0}, 0)
    tracker = MlflowTracker(OutboxPlace(run_dir), Outbox(identity="e", name="early", uri="sqlite:////proc/none.db"))
    tracker.start()
    (place,) = unsent(tmp_path / "runs")
    outbox = place.read()
    assert outbox is not None and outbox.name == "early" and outbox.status == "RUNNING"
    tracker.finish(timeout=1.0)


OPENS = """
import sys
import mlflow.store.tracking.sqlalchemy_store
from pathlib import Path
from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.store import open_store
print("ready", flush=True)
open_store(TrackingConfig(), Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.0])
def test_store_whose_maker_was_killed_opens(tmp_path: Path, seconds: float) -> None:
    maker = subprocess.Popen([sys.executable, "-c", OPENS, str(tmp_path / "runs")], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    assert maker.stdout.readline() == "ready\n"
    time.sleep(seconds)
    maker.kill()
    maker.wait()
    store = open_store(TrackingConfig(), tmp_path / "runs")
    assert store.client.search_runs([store.experiment_id]) == []
    assert sorted(path.name for path in (tmp_path / "mlruns").glob("*mlflow.db*")) == ["mlflow.db"]


@pytest.mark.slow
def test_processes_that_make_a_store_at_once_make_one(tmp_path: Path) -> None:
    makers = [subprocess.Popen([sys.executable, "-c", OPENS, str(tmp_path / "runs")]) for _ in range(4)]
    assert [maker.wait(timeout=120) for maker in makers] == [0] * 4
    client = open_store(TrackingConfig(), tmp_path / "runs").client
    assert sorted(one.name for one in client.search_experiments()) == ["Default", "calm"]

"""The MLflow copy of a run's journal, on a real SQLite store."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow")

from calm_lightning.errors import TrackingError
from calm_lightning.tracking import store as store_module
from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.journal import MetricsJournal
from calm_lightning.tracking.outbox import tracker as tracker_module
from calm_lightning.tracking.outbox.outbox import Outbox, OutboxPlace, unsent
from calm_lightning.tracking.outbox.sending import send
from calm_lightning.tracking.outbox.tracker import MlflowTracker
from calm_lightning.tracking.store import IDENTITY_TAG, PARENT_TAG, open_store, tracking_uri
from calm_lightning.tracking.tags import run_tags

PARAMS: dict[str, Any] = {
    "stage": "calm",
    "seed": 3,
    "model": {"K": 4, "l": None, "head": "energy", "N": 8, "M": 16},
    "data": {"corpus": "x" * 4000},
}


def make_tracker(run_dir: Path, identity: str = "a" * 64, parent: str = "", **more: Any) -> MlflowTracker:
    run_dir.mkdir(parents=True, exist_ok=True)
    tags = run_tags(PARAMS, run_dir=run_dir, corpus="hash", autoencoder_identity="ae")
    outbox = Outbox(identity=identity, name="K4", parent=parent, params=PARAMS, tags=tags, started=time.time(), **more)
    return MlflowTracker(OutboxPlace(run_dir, parent), outbox)


@pytest.fixture(scope="module")
def shared_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One work directory for all tests here: making MLflow's schema takes seconds."""
    work = tmp_path_factory.mktemp("project") / "runs"
    work.mkdir()
    return work


def history(work: Path, run_id: str, name: str) -> list[tuple[int, float, int]]:
    client = open_store(TrackingConfig(), work).client
    points = client.get_metric_history(run_id, name)
    return sorted((point.step, point.value, point.timestamp) for point in points)


def start_and_wait(tracker: MlflowTracker, work: Path, identity: str) -> str:
    """Start a tracker whose journal has an entry, and return its run id once the store has that entry."""
    store = open_store(TrackingConfig(), work)  # before the tracker, so that one of them makes the schema
    tracker.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = store.client.search_runs([store.experiment_id], f"tags.`{IDENTITY_TAG}` = '{identity}'")
        if found and found[0].data.metrics:
            return str(found[0].info.run_id)
        time.sleep(0.05)
    raise AssertionError("the store never had the journal's first entry")


def test_metrics_params_tags_and_artifacts_arrive(shared_work: Path) -> None:
    run_dir = shared_work / "calm" / "arrive"
    journal = MetricsJournal(run_dir)
    journal.log_metrics({"train/loss": 3.0}, 1)
    tracker = make_tracker(run_dir, "1" * 64)
    run_id = start_and_wait(tracker, shared_work, "1" * 64)
    journal.log_metrics({"train/loss": 2.0, "val/brier_lm": float("nan")}, 2)
    (run_dir / "sample.txt").write_text("a sample")
    tracker.update(lambda outbox: outbox.files.extend(["sample.txt", "not-there.txt"]))
    assert tracker.finish() == run_id
    assert unsent(shared_work) == []

    client = open_store(TrackingConfig(), shared_work).client
    run = client.get_run(run_id)
    assert [(step, value) for step, value, _ in history(shared_work, run_id, "train/loss")] == [(1, 3.0), (2, 2.0)]
    assert abs(history(shared_work, run_id, "train/loss")[0][2] / 1000 - time.time()) < 60
    assert run.info.status == "FINISHED"
    assert run.data.params["model.K"] == "4"
    assert run.data.params["model.l"] == "null"
    assert len(run.data.params["data.corpus"]) == 500
    assert run.data.tags["l"] == "128"
    assert run.data.tags["calm.autoencoder"] == "ae"
    assert "env.python" in run.data.tags
    assert [artifact.path for artifact in client.list_artifacts(run_id)] == ["sample.txt"]
    assert (shared_work.parent / "mlruns" / "mlflow.db").is_file()
    assert (shared_work.parent / "mlruns" / "artifacts").is_dir()


def test_resumed_run_continues_the_same_mlflow_run_and_logs_nothing_twice(shared_work: Path) -> None:
    run_dir = shared_work / "calm" / "resumed"
    journal = MetricsJournal(run_dir)
    for step in range(5):
        journal.log_metrics({"train/loss": float(step)}, step)
    first = make_tracker(run_dir, "2" * 64).start()
    first_id = first.finish("KILLED")
    journal.rewind(2)
    for step in range(3, 8):
        journal.log_metrics({"train/loss": float(step)}, step)
    second_id = make_tracker(run_dir, "2" * 64).start().finish()
    assert second_id is not None
    assert second_id == first_id
    assert [step for step, _, _ in history(shared_work, second_id, "train/loss")] == list(range(8))


def test_journal_rewound_while_it_is_followed(shared_work: Path) -> None:
    run_dir = shared_work / "calm" / "rewound"
    journal = MetricsJournal(run_dir)
    for step in range(4):
        journal.log_metrics({"train/loss": float(step)}, step)
    tracker = make_tracker(run_dir, "3" * 64)
    start_and_wait(tracker, shared_work, "3" * 64)
    journal.rewind(0)
    journal.log_metrics({"train/loss": 1.0}, 1)
    journal.log_metrics({"train/loss": 9.0}, 9)
    run_id = tracker.finish()
    assert run_id is not None
    steps = Counter(step for step, _, _ in history(shared_work, run_id, "train/loss"))
    assert steps[9] == 1
    assert max(steps.values()) == 1


def finished_parent(work: Path, study: str) -> str:
    """Send a sweep's run, and return its MLflow run id."""
    place = OutboxPlace(work / "sweeps" / study)
    place.directory.mkdir(parents=True)
    run_id = MlflowTracker(place, Outbox(identity=study, name=study)).start().finish()
    assert run_id is not None
    return run_id


def test_same_identity_under_another_parent_is_another_run(shared_work: Path) -> None:
    run_dir = shared_work / "calm" / "parents"
    MetricsJournal(run_dir).log_metrics({"train/loss": 1.0}, 0)
    parent = finished_parent(shared_work, "parents")
    alone = make_tracker(run_dir, "4" * 64).start().finish()
    child = make_tracker(run_dir, "4" * 64, "parents").start().finish()
    again = make_tracker(run_dir, "4" * 64, "parents").start().finish()
    assert child is not None
    assert alone != child
    assert again == child
    assert open_store(TrackingConfig(), shared_work).client.get_run(child).data.tags[PARENT_TAG] == parent


def test_child_waits_for_its_parent(shared_work: Path) -> None:
    run_dir = shared_work / "calm" / "orphan"
    MetricsJournal(run_dir).log_metrics({"train/loss": 1.0}, 0)
    assert make_tracker(run_dir, "8" * 64, "late").start().finish(timeout=1.0) is None
    (waiting,) = unsent(shared_work)
    assert "parent" in send(waiting).problem
    parent = finished_parent(shared_work, "late")
    assert send(waiting).problem == ""
    outbox = waiting.read()
    assert outbox is not None and outbox.run_id is not None
    run = open_store(TrackingConfig(), shared_work).client.get_run(outbox.run_id)
    assert run.data.tags[PARENT_TAG] == parent
    assert unsent(shared_work) == []


def test_parent_tags_its_children_and_names_them_in_its_description(shared_work: Path) -> None:
    run_dir = shared_work / "calm" / "child"
    MetricsJournal(run_dir).log_metrics({"train/loss": 1.0}, 0)
    finished_parent(shared_work, "family")
    child = make_tracker(run_dir, "9" * 64, "family").start().finish()
    place = OutboxPlace(shared_work / "sweeps" / "family")
    (place.directory / "front.png").write_bytes(b"png")
    again = Outbox(
        identity="family",
        name="family",
        description="[best](trial:7) of [none](trial:8) ![Front](artifact:front.png)",
        files=["front.png"],
        children={"7": {"directory": str(run_dir), "tags": {"pareto": "front"}}},
    )
    parent = MlflowTracker(place, again).start().finish()
    store = open_store(TrackingConfig(), shared_work)
    assert child is not None and parent is not None
    assert store.client.get_run(child).data.tags["pareto"] == "front"
    assert store.client.get_run(parent).data.tags["mlflow.note.content"] == (
        f"[best](#/experiments/{store.experiment_id}/runs/{child}) of none "
        f'<img src="get-artifact?path=front.png&run_uuid={parent}" alt="Front" width="860">'
    )
    assert [file.path for file in store.client.list_artifacts(parent)] == ["front.png"]


def test_unreachable_store_warns_once_and_keeps_everything(
    shared_work: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = shared_work / "calm" / "outage"
    journal = MetricsJournal(run_dir)
    journal.log_metrics({"train/loss": 1.0}, 1)
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setattr(tracker_module, "_POLL_SECONDS", 0.05)
    with caplog.at_level(logging.WARNING):
        tracker = make_tracker(run_dir, "5" * 64, uri=f"sqlite:///{tmp_path}/file/mlflow.db").start()
        journal.log_metrics({"train/loss": 2.0}, 2)
        assert tracker.finish(timeout=1.0) is None
    messages = [record.getMessage() for record in caplog.records if "calm_lightning" in record.name]
    assert sum("training goes on" in message for message in messages) == 1
    assert sum("calm runs send" in message for message in messages) == 1
    (place,) = unsent(shared_work)
    (tmp_path / "file").unlink()
    (tmp_path / "file").mkdir()
    assert send(place).problem == ""
    outbox = place.read()
    assert outbox is not None and outbox.run_id is not None
    client = open_store(TrackingConfig(uri=outbox.uri), shared_work).client
    points = client.get_metric_history(outbox.run_id, "train/loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 2.0)]
    assert client.get_run(outbox.run_id).info.status == "FINISHED"
    assert unsent(shared_work) == []


def test_next_run_sends_what_an_earlier_one_left(shared_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = shared_work / "calm" / "left"
    MetricsJournal(left).log_metrics({"train/loss": 1.0}, 1)
    place = OutboxPlace(left)
    place.write(Outbox(identity="b" * 64, name="left", started=time.time()))
    place.marker.touch()  # as a killed process leaves it
    monkeypatch.setattr(tracker_module, "_POLL_SECONDS", 0.05)
    after = make_tracker(shared_work / "calm" / "after", "c" * 64).start()
    deadline = time.monotonic() + 60
    while place.marker.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    after.finish()
    outbox = place.read()
    assert outbox is not None and outbox.run_id is not None
    assert open_store(TrackingConfig(), shared_work).client.get_run(outbox.run_id).info.status == "KILLED"


def test_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrackingError, match=r"calm-lightning\[tracking\].*tracking.mlflow=false"):
        make_tracker(tmp_path / "calm" / "x")


def test_default_uri_lies_beside_the_work_directory(tmp_path: Path) -> None:
    assert tracking_uri(TrackingConfig(), tmp_path / "runs") == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert tracking_uri(TrackingConfig(uri="http://localhost:1"), tmp_path) == "http://localhost:1"


KILLED = """
import sys, time
from pathlib import Path
from calm_lightning.tracking.outbox import tracker as module
from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.journal import MetricsJournal, read_journal
from calm_lightning.tracking.outbox.outbox import Outbox, OutboxPlace
from calm_lightning.tracking.store import IDENTITY_TAG, open_store
module._POLL_SECONDS = 0.05
run_dir = Path(sys.argv[1])
journal = MetricsJournal(run_dir)
journal.rewind(10)
store = open_store(TrackingConfig(), run_dir.parent.parent)
tracker = module.MlflowTracker(OutboxPlace(run_dir), Outbox(identity="6" * 64, name="k")).start()
while not store.client.search_runs([store.experiment_id], f"tags.`{IDENTITY_TAG}` = '{'6' * 64}'"):
    time.sleep(0.05)
for step in range(len(read_journal(run_dir)), int(sys.argv[2])):
    journal.log_metrics({"train/loss": float(step)}, step)
    print(step, flush=True)
    time.sleep(0.02)
print("done", tracker.finish(), flush=True)
"""


@pytest.mark.slow
def test_killed_process_logs_nothing_twice(shared_work: Path) -> None:
    run_dir = shared_work / "calm" / "killed"
    command = [sys.executable, "-c", KILLED, str(run_dir)]
    process = subprocess.Popen([*command, "100000"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 40:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run([*command, "60"], capture_output=True, text=True, timeout=120, check=True)
    run_id = done.stdout.split()[-1]
    assert [step for step, _, _ in history(shared_work, run_id, "train/loss")] == list(range(60))


def test_damaged_outbox_is_written_anew_and_training_goes_on(
    shared_work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = shared_work / "calm" / "damaged"
    MetricsJournal(run_dir).log_metrics({"train/loss": 1.0}, 1)
    (run_dir / "mlflow.json").write_text("garbage")
    with caplog.at_level(logging.WARNING):
        run_id = make_tracker(run_dir, "d" * 64).start().finish()
    assert run_id is not None
    assert any("written anew" in record.getMessage() for record in caplog.records)
    assert unsent(shared_work) == []


def test_a_store_that_hangs_keeps_no_other_run_waiting(shared_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:  # takes connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        place = OutboxPlace(shared_work / "calm" / "hangs")
        place.directory.mkdir(parents=True)
        place.write(Outbox(identity="e" * 64, name="hangs", uri=f"http://127.0.0.1:{silent.getsockname()[1]}"))
        place.marker.touch()
        tracker = make_tracker(shared_work / "calm" / "beside", "f" * 64).start()
        assert tracker.finish(timeout=15.0) is not None
        assert [one.directory.name for one in unsent(shared_work)] == ["hangs"]
        place.sent()

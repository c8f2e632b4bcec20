"""The MLflow copy of a run's journal, on a real SQLite store."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow")

from calm_lightning.errors import TrackingError
from calm_lightning.tracking import mlflow as tracker_module
from calm_lightning.tracking import store as store_module
from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.journal import MetricsJournal
from calm_lightning.tracking.mlflow import MlflowTracker, run_tags, tracking_uri
from calm_lightning.tracking.parent import ParentRun
from calm_lightning.tracking.store import IDENTITY_TAG, PARENT_TAG, open_store

PARAMS: dict[str, Any] = {
    "stage": "calm",
    "seed": 3,
    "model": {"K": 4, "l": None, "head": "energy", "N": 8, "M": 16},
    "data": {"corpus": "x" * 4000},
}


def make_tracker(run_dir: Path, identity: str = "a" * 64, parent: str | None = None, uri: str = "") -> MlflowTracker:
    work_dir = run_dir.parent.parent
    return MlflowTracker(
        TrackingConfig(uri=uri),
        work_dir,
        run_dir,
        identity=identity,
        name="K4",
        params=PARAMS,
        tags=run_tags(PARAMS, run_dir=run_dir, corpus="hash", autoencoder_identity="ae", autoencoder_run_id="ae-run"),
        parent_run_id=parent,
    )


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
    sample = run_dir / "sample.txt"
    sample.write_text("a sample")
    assert tracker.finish(artifacts=[sample, run_dir / "not-there.txt"]) == run_id

    client = open_store(TrackingConfig(), shared_work).client
    run = client.get_run(run_id)
    assert [(step, value) for step, value, _ in history(shared_work, run_id, "train/loss")] == [(1, 3.0), (2, 2.0)]
    assert abs(history(shared_work, run_id, "train/loss")[0][2] / 1000 - time.time()) < 60
    assert run.info.status == "FINISHED"
    assert run.data.params["model.K"] == "4"
    assert run.data.params["model.l"] == "null"
    assert len(run.data.params["data.corpus"]) == 500
    assert run.data.tags["calm.l"] == "128"
    assert run.data.tags["calm.autoencoder_run"] == "ae-run"
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


def test_same_identity_under_another_parent_is_another_run(shared_work: Path) -> None:
    run_dir = shared_work / "calm" / "parents"
    MetricsJournal(run_dir).log_metrics({"train/loss": 1.0}, 0)
    parent = ParentRun.open(TrackingConfig(), shared_work, study="parents", name="study", tags={}, params={})
    assert parent.run_id is not None
    alone = make_tracker(run_dir, "4" * 64).start().finish()
    child = make_tracker(run_dir, "4" * 64, parent.run_id).start().finish()
    again = make_tracker(run_dir, "4" * 64, parent.run_id).start().finish()
    assert child is not None
    assert alone != child
    assert again == child
    assert open_store(TrackingConfig(), shared_work).client.get_run(child).data.tags[PARENT_TAG] == parent.run_id


def test_parent_run_is_continued_and_holds_figures(shared_work: Path, tmp_path: Path) -> None:
    first = ParentRun.open(TrackingConfig(), shared_work, study="s", name="study", tags={"a": "1"}, params={"x": 1})
    figure = tmp_path / "front.png"
    figure.write_bytes(b"png")
    first.log_metrics({"sweep/hypervolume": 1.5})
    first.finish("KILLED")
    second = ParentRun.open(TrackingConfig(), shared_work, study="s", name="study", tags={}, params={"x": 2})
    second.log_files([figure])
    second.describe("# A front")
    second.finish()
    assert second.run_id is not None
    assert second.run_id == first.run_id
    client = open_store(TrackingConfig(), shared_work).client
    run = client.get_run(second.run_id)
    assert run.data.metrics["sweep/hypervolume"] == 1.5
    assert run.data.tags["mlflow.note.content"] == "# A front"
    assert [artifact.path for artifact in client.list_artifacts(second.run_id)] == ["front.png"]
    assert run.info.status == "FINISHED"


def test_unreachable_store_warns_once_and_the_next_run_sends_everything(
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
    assert sum("running the same command again" in message for message in messages) == 1
    run_id = make_tracker(run_dir, "5" * 64).start().finish()
    assert run_id is not None
    assert [value for _, value, _ in history(shared_work, run_id, "train/loss")] == [1.0, 2.0]


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
from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.journal import MetricsJournal, read_journal
from calm_lightning.tracking import mlflow
from calm_lightning.tracking.store import IDENTITY_TAG, open_store
mlflow._POLL_SECONDS = 0.05
run_dir = Path(sys.argv[1])
journal = MetricsJournal(run_dir)
store = open_store(TrackingConfig(), run_dir.parent.parent)
tracker = mlflow.MlflowTracker(TrackingConfig(), run_dir.parent.parent, run_dir, identity="6" * 64, name="k",
                               params={}, tags={}).start()
journal.rewind(10)
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

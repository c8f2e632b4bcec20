"""`calm ui` as a user starts it: what it says, what answers, and that nothing stays when it goes."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

pytest.importorskip("mlflow")

from calm_lightning.cli.main import app
from calm_lightning.tracking.reading.places import find_place, open_place


def calm(*words: Any) -> Any:
    return CliRunner().invoke(app, ["ui", *map(str, words)], catch_exceptions=False)


class Started:
    """`calm ui` in a process of its own, its output read line by line."""

    def __init__(self, folder: Path, *words: Any, **environment: str) -> None:
        command = [sys.executable, "-c", "from calm_lightning.cli.main import main; main()", "ui", *map(str, words)]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.said: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))

    def until(self, text: str) -> str:
        """Wait for a line that holds a text, and return it."""
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                self.said.append(self._lines.get(timeout=0.2))
            except queue.Empty:
                assert self.process.poll() is None, f"it has ended: {self.said}"
                continue
            if text in self.said[-1]:
                return self.said[-1]
        raise AssertionError(f"{text!r} was never said: {self.said}")

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, sign: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(sign)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a store, a sweep's runs in it, the sweep's study, and a run that MLflow has not got."""
    folder = tmp_path_factory.mktemp("project")
    client = open_place(find_place(folder), make=True)
    experiment = client.create_experiment("calm", (folder / "mlruns" / "artifacts").as_uri())
    for name, stage in (("tiny", "sweep"), ("calm-K4-s0", "calm")):
        run = client.create_run(experiment, tags={"stage": stage}, run_name=name)
        if stage == "calm":
            client.log_metric(run.info.run_id, "val/brier_lm", 5.0)
        client.set_terminated(run.info.run_id)
    client.create_experiment("nothing yet", (folder / "mlruns" / "artifacts").as_uri())
    make_sweep(folder / "runs" / "sweeps" / "tiny-sample")
    make_unsent(folder / "runs" / "calm" / "waiting")
    return folder


def make_sweep(directory: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    from sweeps.artifacts import CONFIG
    from sweeps.config import find_sweep, load_sweep, sweep_to_yaml
    from sweeps.directory import Session, write_session
    from sweeps.trials.record import open_record

    directory.mkdir(parents=True)
    sweep = load_sweep(find_sweep("k4-sweet-spot", "sample"))
    (directory / CONFIG).write_text(sweep_to_yaml(sweep))
    write_session(directory, Session("tiny", str(directory.parents[1]), "corpus", "hash", 257, "", 1, time.time()))
    open_record(directory, "sqlite", "tiny", sweep.objectives)


def make_unsent(directory: Path) -> None:
    from calm_lightning.tracking.outbox.outbox import Outbox, OutboxPlace

    directory.mkdir(parents=True)
    place = OutboxPlace(directory)
    place.write(Outbox(identity="a" * 64, name="waiting"))
    place.marker.touch()


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield int(taken.getsockname()[1])


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.status == 200
        return answer.read()


@pytest.mark.slow
def test_it_says_what_to_open_and_one_ctrl_c_stops_all(project: Path, tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\necho \"$1\" > '{opened}'\n")
    browser.chmod(0o755)
    ui = Started(project, "--port", 0, "--optuna", "--optuna-port", 0, "--open", BROWSER=f"{browser} %s")
    try:
        url = ui.until("MLflow UI: http://127.0.0.1:").split()[2]
        page = ui.until("experiment calm").split()[-1]
        assert page.startswith(f"{url}/#/experiments/")
        assert ui.until("sweep tiny").split()[-1].startswith(f"{page.partition('?')[0]}/")
        view = ui.until("BrierLM over cost").split()[-1]
        assert view.startswith(f"{url}/#/experiments/") and "viewStateShareKey=" in view
        dashboard = ui.until("optuna-dashboard: ").split()[1]
        assert "1 run is not here yet" in ui.until("calm runs send --work-dir runs")
        assert not any("nothing yet" in line for line in ui.said)
        studies = json.loads(get(dashboard.replace("/dashboard", "/api/studies")))["study_summaries"]
        assert [study["study_name"] for study in studies] == ["tiny"]
        assert b"<html" in get(url)
        deadline = time.monotonic() + 20
        while not opened.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert opened.read_text().strip() == url
        below = ui.children()
        assert ui.stop() == 0
    finally:
        ui.process.kill()
    assert not psutil.wait_procs(below, timeout=10)[1]
    for port in (url.rpartition(":")[2], dashboard.split(":")[2].split("/")[0]):
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", int(port)), 1)


@pytest.mark.slow
def test_a_tracking_server_is_pointed_to(project: Path) -> None:
    ui = Started(project, "--port", 0)
    try:
        url = ui.until("MLflow UI: ").split()[2]
        second = CliRunner().invoke(app, ["ui", "--uri", url])
        assert second.exit_code == 0
        assert second.output == f"MLflow UI: {url}  (the tracking server's own; nothing was started)\n"
        beside = Started(project, "--uri", url, "--optuna", "--optuna-port", 0)
        try:
            beside.until("optuna-dashboard: http://127.0.0.1:")
            assert beside.children() == []
            assert beside.stop() == 0
        finally:
            beside.process.kill()
        assert ui.stop(signal.SIGTERM) == 0
    finally:
        ui.process.kill()


def test_mistakes_are_one_sentence(project: Path, tmp_path: Path, busy_port: int) -> None:
    for words, said in (
        (("--port", busy_port), f"cannot listen on 127.0.0.1:{busy_port}"),
        (("--optuna", "--optuna-port", busy_port), f"cannot listen on 127.0.0.1:{busy_port}"),
        (("--optuna", "--sweep", "none"), "there is no sweep none"),
        (("--optuna", "--work-dir", tmp_path), "there is no sweep in"),
        (("--uri", "http://127.0.0.1:9"), "nothing answers at http://127.0.0.1:9"),
        (("--uri", f"sqlite:///{tmp_path}/none.db"), "there is no MLflow store at"),
        (("--work-dir", tmp_path / "runs"), "there is no MLflow store at"),
    ):
        where = () if "--work-dir" in words else ("--work-dir", project / "runs")
        result = calm(*words, *where)
        assert result.exit_code == 2, words
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

"""`calm ui`: clear refusals, and a real server that answers and goes away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from calm_lightning.errors import TrackingError
from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.provenance import provenance
from calm_lightning.tracking.server import check_port, server_command
from calm_lightning.tracking.store import store_dir


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_no_store_yet_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"no MLflow store at .*mlruns/mlflow\.db yet"):
        server_command(TrackingConfig(), tmp_path / "runs", "127.0.0.1", 5000)


def test_command_serves_the_embedded_store(tmp_path: Path) -> None:
    store = store_dir(tmp_path / "runs")
    store.mkdir()
    (store / "mlflow.db").touch()
    command = server_command(TrackingConfig(), tmp_path / "runs", "127.0.0.1", 5000)
    assert f"sqlite:///{tmp_path}/mlruns/mlflow.db" in command
    assert command[command.index("--host") + 1] == "127.0.0.1"


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TrackingError, match=f"cannot listen on 127.0.0.1:{port}.*--port"):
            check_port("127.0.0.1", port)


def test_provenance_knows_code_and_machine() -> None:
    facts = provenance()
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "cores" in facts["cpu"]
    assert facts["version.torch"]
    assert all(facts.values())


@pytest.mark.slow
def test_the_server_answers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from calm_lightning.tracking.parent import ParentRun

    ParentRun.open(TrackingConfig(), tmp_path / "runs", study="s", name="a study", tags={}, params={}).finish()
    port = free_port()
    code = (
        "import sys; from calm_lightning.tracking.config import TrackingConfig; "
        "from calm_lightning.tracking.server import serve; "
        f"sys.exit(serve(TrackingConfig(), {str(tmp_path / 'runs')!r}, '127.0.0.1', {port}, "
        "lambda url: print(url, flush=True)))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url == f"http://127.0.0.1:{port}"
    assert urllib.request.urlopen(url, timeout=30).status == 200
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            check_port("127.0.0.1", port)
            break
        except TrackingError:
            time.sleep(0.2)
    check_port("127.0.0.1", port)

"""`calm ui`'s server: clear refusals, known names only, and nothing left behind however it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calm_lightning.errors import TrackingError
from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.provenance import provenance
from calm_lightning.tracking.serving.hosts import allowed_hosts, allowed_origins, choose_port, names_of, url_of
from calm_lightning.tracking.serving.server import check_port, server_command
from calm_lightning.tracking.store import store_dir


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_no_store_yet_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"no MLflow store at .*mlruns/mlflow\.db yet"):
        server_command(TrackingConfig(), tmp_path / "runs", "127.0.0.1", 5000)
    with pytest.raises(TrackingError, match=r"no MLflow store at .*other\.db yet"):
        server_command(TrackingConfig(uri=f"sqlite:///{tmp_path}/other.db"), tmp_path, "127.0.0.1", 5000)


def test_command_serves_the_embedded_store(tmp_path: Path) -> None:
    store = store_dir(tmp_path / "runs")
    store.mkdir()
    (store / "mlflow.db").touch()
    command = server_command(TrackingConfig(), tmp_path / "runs", "127.0.0.1", 5000)
    assert f"sqlite:///{tmp_path}/mlruns/mlflow.db" in command
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert "--cors-allowed-origins" not in command
    command = server_command(TrackingConfig(), tmp_path / "runs", "127.0.0.1", 5000, ["runs.example.org"])
    assert "https://runs.example.org" in command[command.index("--cors-allowed-origins") + 1].split(",")


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TrackingError, match=f"cannot listen on 127.0.0.1:{port}.*--port"):
            check_port("127.0.0.1", port)
        with pytest.raises(TrackingError, match=f"cannot listen on 127.0.0.1:{port}"):
            choose_port("127.0.0.1", port, 5000)
        assert choose_port("127.0.0.1", None, port) > port
        assert choose_port("127.0.0.1", 0, port) not in (0, port)
    with pytest.raises(TrackingError, match=r"cannot listen on 192\.0\.2\.1 .*--host"):
        choose_port("192.0.2.1", None, 5000)


def answers_to(host_header: str, names: list[str]) -> bool:
    from mlflow.server.security_utils import is_allowed_host_header

    return bool(is_allowed_host_header(allowed_hosts(names).split(","), host_header))


@pytest.mark.parametrize("header", ["localhost:5000", "127.0.0.1:5001", "[::1]:5000", "localhost", "[::1]"])
def test_loopback_is_answered_at_any_port(header: str) -> None:
    pytest.importorskip("mlflow")
    assert answers_to(header, [])


@pytest.mark.parametrize(
    "name", ["10.example.com", "192.168.evil.org", "localhost.evil.org", "evil.org", "127.0.0.1.x"]
)
def test_names_that_a_stranger_can_own_are_not(name: str) -> None:
    """MLflow's own default answers to the first two."""
    pytest.importorskip("mlflow")
    assert not answers_to(f"{name}:5000", [])
    assert not answers_to(f"{name}:5000", ["node7", "10.1.2.3", "fe80::1"])


@given(st.from_regex(r"[a-z0-9][a-z0-9.-]{0,30}", fullmatch=True))
def test_only_known_names_are_answered(name: str) -> None:
    pytest.importorskip("mlflow")
    known = ["node7", "node7.cluster", "10.1.2.3"]
    assert answers_to(f"{name}:5000", known) == (name in (*known, "localhost", "127.0.0.1"))
    assert answers_to(name, known) == (name in (*known, "localhost", "127.0.0.1"))


def test_the_names_of_addresses() -> None:
    assert names_of("127.0.0.1") == names_of("localhost") == names_of("::1") == []
    everywhere = names_of("0.0.0.0")
    assert socket.gethostname().lower() in everywhere
    assert not {"127.0.0.1", "localhost", "0.0.0.0"} & set(everywhere)
    assert "10.1.2.3" in names_of("10.1.2.3")
    assert allowed_origins([], 5000) == ""
    assert "http://[fe80::1]:5000" in allowed_origins(["fe80::1"], 5000).split(",")
    assert url_of("0.0.0.0", 5) == "http://127.0.0.1:5"
    assert url_of("::", 5) == url_of("::1", 5) == "http://[::1]:5"


def test_provenance_knows_code_and_machine() -> None:
    facts = provenance()
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "cores" in facts["cpu"]
    assert facts["version.torch"]
    assert all(facts.values())


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory with an empty store."""
    pytest.importorskip("mlflow")
    from calm_lightning.tracking.reading.places import find_place, open_place

    folder = tmp_path_factory.mktemp("project")
    open_place(find_place(folder), make=True)
    return folder / "runs"


@pytest.fixture
def served(work_dir: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves, and its address."""
    code = (
        "import sys; from calm_lightning.tracking.config import TrackingConfig; "
        "from calm_lightning.tracking.serving.server import serve; "
        f"sys.exit(serve(TrackingConfig(), {str(work_dir)!r}, '127.0.0.1', {free_port()}, "
        "lambda url: print(url, flush=True), ['node7']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process, process.stdout.readline().strip()
    process.kill()
    process.wait()


def status(url: str, **headers: str) -> int:
    data = headers.pop("data", "")
    request = urllib.request.Request(url, data.encode() or None, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_server_answers_and_leaves_nothing_behind(
    served: tuple[subprocess.Popen[str], str], sign: signal.Signals
) -> None:
    process, url = served
    search = f"{url}/ajax-api/2.0/mlflow/experiments/search"
    body = {"data": '{"max_results": 5}', "Content-Type": "application/json"}
    assert status(url) == 200
    assert status(search, **body) == 200
    assert status(search, **body, Host="node7:5000", Origin=f"http://node7:{url.rpartition(':')[2]}") == 200
    assert status(search, **body, Host="10.example.com:5000") == 403
    assert status(search, **body, Origin="http://evil.example.com") == 403
    below = psutil.Process(process.pid).children(recursive=True)
    assert 1 <= len(below) <= 2, "MLflow's job runners are not started"
    os.kill(process.pid, sign)
    assert process.wait(timeout=30) == (-signal.SIGKILL if sign == signal.SIGKILL else 0)
    assert gone(below, 10.0)
    check_port("127.0.0.1", int(url.rpartition(":")[2]))


@pytest.mark.slow
def test_killed_while_the_server_starts(work_dir: Path) -> None:
    code = (
        "from calm_lightning.tracking.config import TrackingConfig; "
        "from calm_lightning.tracking.serving.server import serve; "
        f"serve(TrackingConfig(), {str(work_dir)!r}, '127.0.0.1', {free_port()}, print)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while not (below := psutil.Process(process.pid).children(recursive=True)) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.kill()
    process.wait()
    assert below
    assert gone(below, 10.0)


@pytest.mark.slow
def test_a_port_that_is_taken_while_the_server_starts(work_dir: Path) -> None:
    """Whoever answers there is not taken for the server."""
    from calm_lightning.tracking.serving.server import serve

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    port, others = free_port(), []

    def take() -> None:
        time.sleep(1.0)
        others.append(ThreadingHTTPServer(("127.0.0.1", port), Other))
        others[0].serve_forever()

    threading.Thread(target=take, daemon=True).start()
    with pytest.raises(TrackingError, match=f"another program took port {port} in the meantime"):
        serve(TrackingConfig(), work_dir, "127.0.0.1", port, print)
    others[0].shutdown()


@pytest.mark.slow
def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from calm_lightning.tracking.serving.server import serve

    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_text("this is no database\n" * 100)
    with pytest.raises(TrackingError, match=r"did not start: .*not a database"):
        serve(TrackingConfig(), tmp_path / "runs", "127.0.0.1", free_port(), print)

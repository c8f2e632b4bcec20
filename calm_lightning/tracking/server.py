"""Serves the MLflow UI over the store, on loopback unless told otherwise.

The server is a process of its own (`python -m mlflow server`), so a crash or a stop of it touches no run. It has
no log-in: whoever reaches the port can read and delete runs, hence loopback by default.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from calm_lightning.errors import TrackingError
from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.store import quiet_environment, require_mlflow, store_dir, tracking_uri

_START_SECONDS = 90.0


def server_command(config: TrackingConfig, work_dir: str | Path, host: str, port: int) -> list[str]:
    """Return the command line of the server.

    Args:
        config: Its `uri` wins over the embedded store.
        work_dir: The work directory beside which the embedded store lies.
        host: Address to listen on.
        port: TCP port.

    Raises:
        TrackingError: MLflow is not installed, or there is no embedded store yet.
    """
    require_mlflow()
    directory = store_dir(work_dir)
    if not config.uri and not (directory / "mlflow.db").is_file():
        raise TrackingError(
            f"there is no MLflow store at {directory / 'mlflow.db'} yet: train something first "
            "(calm reproduce k4-sweet-spot), or point --work-dir at the directory that was trained in"
        )
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", tracking_uri(config, work_dir)]
    if not config.uri:
        command += ["--default-artifact-root", (directory / "artifacts").as_uri()]
    return [*command, "--host", host, "--port", str(port), "--workers", "1"]


def check_port(host: str, port: int) -> None:
    """Check that a server may listen on host:port.

    Raises:
        TrackingError: The port is taken or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise TrackingError(
            f"cannot listen on {host}:{port} ({error.strerror}): "
            f"choose another port, for example --port {port % 65535 + 1}"
        ) from None


def serve(config: TrackingConfig, work_dir: str | Path, host: str, port: int, announce: Callable[[str], None]) -> int:
    """Run the UI's server until it is interrupted.

    Args:
        config: Its `uri` wins over the embedded store.
        work_dir: The work directory beside which the embedded store lies.
        host: Address to listen on.
        port: TCP port.
        announce: Called once with the URL when the server answers.

    Returns:
        0 after Ctrl-C or SIGTERM, otherwise the server's exit status.

    Raises:
        TrackingError: No MLflow, no store, the port is taken, or the server does not start.
    """
    command = server_command(config, work_dir, host, port)
    check_port(host, port)
    previous = signal.signal(signal.SIGTERM, _interrupt)
    # A session of its own: Ctrl-C reaches us alone, and we stop the server with all its workers.
    server = subprocess.Popen(
        command,
        env={**os.environ, **quiet_environment(), "MLFLOW_LOGGING_LEVEL": "ERROR"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_until_it_answers(server, command, host, port)
        announce(f"http://{host}:{port}")
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _stop(server)
        signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _wait_until_it_answers(server: subprocess.Popen[bytes], command: list[str], host: str, port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with socket.create_connection((host, port), timeout=1.0):
                return
        except OSError:
            time.sleep(0.2)
    raise TrackingError(f"the MLflow server did not start: run it by hand to see why: {' '.join(command)}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers, with force if they do not go."""
    for sign, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(server.pid, sign)
            server.wait(seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue

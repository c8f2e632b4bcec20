"""Serves the MLflow UI over a store, on loopback unless told otherwise.

The server is a process of its own, so a crash or a stop of it touches no run. It has no log-in: whoever reaches the
port can read and delete runs, hence loopback by default. MLflow's job runners are not started: they are for judging
chat applications, and cost seven processes and half of the time to start.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import FrameType
from typing import IO
from urllib.parse import urlsplit

from calm_lightning.errors import TrackingError
from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.reading.places import place_beside
from calm_lightning.tracking.serving.hosts import allowed_hosts, allowed_origins, check_port, names_of, url_of
from calm_lightning.tracking.serving.process import PARENT
from calm_lightning.tracking.serving.sqlite_statistics import refresh_statistics
from calm_lightning.tracking.store import quiet_environment, require_mlflow

__all__ = ["check_port", "serve", "server_command"]

_START_SECONDS, _STOP_SECONDS = 90.0, 5.0
_LONGEST_REASON = 300


def server_command(
    config: TrackingConfig, work_dir: str | Path, host: str, port: int, names: Sequence[str] = ()
) -> list[str]:
    """Return the command line of the server.

    Args:
        config: Its `uri` wins over the embedded store.
        work_dir: The work directory beside which the embedded store lies.
        host: Address to listen on.
        port: TCP port.
        names: Further names by which browsers may reach it.

    Raises:
        TrackingError: MLflow is not installed, or there is no store in a file yet.
    """
    require_mlflow()
    place = place_beside(work_dir, config.uri)
    command = [sys.executable, "-m", "calm_lightning.tracking.serving.process", "server"]
    command += ["--backend-store-uri", place.uri]
    if place.directory is not None:
        if not (database := Path(place.uri.removeprefix("sqlite:///"))).is_file():
            raise TrackingError(
                f"there is no MLflow store at {database} yet: train something first "
                "(calm reproduce k4-sweet-spot), or point --work-dir at the directory that was trained in"
            )
        command += ["--default-artifact-root", (place.directory / "artifacts").as_uri()]
    known = [*names_of(host), *names]
    command += ["--host", host, "--port", str(port), "--workers", "1", "--allowed-hosts", allowed_hosts(known)]
    return [*command, *(("--cors-allowed-origins", allowed_origins(known, port)) if known else ())]


def serve(
    config: TrackingConfig,
    work_dir: str | Path,
    host: str,
    port: int,
    announce: Callable[[str], None],
    names: Sequence[str] = (),
) -> int:
    """Run the UI's server until it is interrupted.

    Args:
        config: Its `uri` wins over the embedded store.
        work_dir: The work directory beside which the embedded store lies.
        host: Address to listen on.
        port: TCP port.
        announce: Called once with the URL when the server answers.
        names: Further names by which browsers may reach it.

    Returns:
        0 after Ctrl-C or SIGTERM, otherwise the server's exit status.

    Raises:
        TrackingError: No MLflow, no store, the port is taken, or the server does not start.
    """
    secret = f"{secrets.token_hex(16)}.invalid"  # a name that only this server answers to
    place = place_beside(work_dir, config.uri)
    if place.directory is not None and (database := Path(place.uri.removeprefix("sqlite:///"))).is_file():
        refresh_statistics(database)
    command = server_command(config, work_dir, host, port, [*names, secret])
    check_port(host, port)
    previous = signal.signal(signal.SIGTERM, _interrupt)
    environment = {**os.environ, **quiet_environment(), "MLFLOW_LOGGING_LEVEL": "ERROR", PARENT: str(os.getpid())}
    environment.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    with tempfile.TemporaryFile() as output:
        # A session of its own: Ctrl-C reaches us alone, and we stop the server with all its workers.
        server = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
            start_new_session=True,
        )
        try:
            _wait_until_it_answers(server, host, port, secret, output)
            announce(url_of(host, port))
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            _stop(server)
            signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _wait_until_it_answers(
    server: subprocess.Popen[bytes], host: str, port: int, secret: str, output: IO[bytes]
) -> None:
    """Wait until this very server answers; another may have taken the port while it was starting.

    Raises:
        TrackingError: It ends before, or takes too long.
    """
    address = str(urlsplit(url_of(host, port)).hostname)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        known = _status(address, port, secret) == HTTPStatus.OK
        if known and _status(address, port, f"not-{secret}") == HTTPStatus.FORBIDDEN:
            return
        time.sleep(0.1)
    output.seek(0)
    said = [line.strip() for line in output.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in said if re.match(r"[\w.]*(Error|Exception)\b", line)] or said
    reason = errors[-1][:_LONGEST_REASON] if errors else f"exit status {server.poll()}"
    if any("out-of-date database schema" in line for line in said):
        reason = "the store was made by an older MLflow: make a copy of it, then run mlflow db upgrade on it"
    if any("address already in use" in line for line in said):
        reason = f"another program took port {port} in the meantime; run it again"
    raise TrackingError(f"the MLflow server did not start: {reason}")


def _status(address: str, port: int, name: str) -> int:
    """Return the HTTP status of the first page, asked for by a name; 0 where nothing answers."""
    connection = HTTPConnection(address, port, timeout=10.0)
    try:
        connection.request("GET", "/", headers={"Host": f"{name}:{port}"})
        return connection.getresponse().status
    except (OSError, HTTPException):
        return 0
    finally:
        connection.close()


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers, with force if they do not go."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_SECONDS)
        os.killpg(server.pid, signal.SIGKILL)  # the group outlives its leader where a worker does not go
    server.wait()

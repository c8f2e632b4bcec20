"""optuna-dashboard on a sweep's storage, on loopback unless told otherwise."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from calm_lightning.errors import SweepError
from calm_lightning.tracking.serving.server import check_port
from sweeps.trials.reading import open_trials

_HERE = ("127.0.0.1", "localhost", "::1")

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def _asked_by_name(served: Application) -> Application:
    """Return the application for requests to this machine only: a page elsewhere whose name was made to point here gets
    nothing.
    """

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        name = str(environ.get("HTTP_HOST", "")).rpartition(":")[0] or str(environ.get("HTTP_HOST", ""))
        if name.strip("[]") in _HERE:
            return served(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"this server answers to localhost only\n"]

    return application


def serve(directory: Path, host: str, port: int, announce: Callable[[str], object]) -> None:
    """Serve the dashboard until Ctrl-C.

    Args:
        directory: The sweep's directory.
        host: Address to listen on.
        port: TCP port.
        announce: Told the address.

    Raises:
        SweepError: The package is not installed, or the sweep cannot be opened.
        TrackingError: The port is taken.
    """
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise SweepError("optuna-dashboard is not installed: run pip install 'calm-lightning[dashboard]'")
    from wsgiref.simple_server import WSGIRequestHandler, make_server

    from optuna_dashboard import wsgi

    class Quiet(WSGIRequestHandler):
        """Logs no requests."""

        def log_message(self, format: str, *args: object) -> None:
            """Do nothing."""

    record = open_trials(directory)
    check_port(host, port)
    served = wsgi(record.storage)
    with make_server(host, port, _asked_by_name(served) if host in _HERE else served, handler_class=Quiet) as server:
        announce(f"optuna-dashboard: http://{host}:{port}/dashboard  (study {record.name}; Ctrl-C stops it)")
        if host not in _HERE:
            announce("Anyone who can reach this address can read and change the study: there is no log-in.")
        server.serve_forever()

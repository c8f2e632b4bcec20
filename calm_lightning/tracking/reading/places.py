"""Stores as people name them (a directory, a file, a URI), opened quickly or refused in one sentence.

MLflow itself retries for minutes where nothing answers. Here a server or a database is asked for a connection first.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from calm_lightning.errors import TrackingError
from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.store import quiet_environment, require_mlflow, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_SILENT = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
"""What keeps MLflow from writing on the terminal."""
_CONNECT_SECONDS = 5.0
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_LONGEST_REASON = 300


@dataclass(frozen=True)
class Place:
    """A store.

    Attributes:
        uri: MLflow tracking URI.
        directory: Directory of an SQLite store, None for others. Files of new experiments go to `artifacts` in it.
    """

    uri: str
    directory: Path | None = None

    @property
    def served(self) -> bool:
        """Whether it is behind a tracking server."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def shown(self) -> str:
        """The store as messages name it: without a password."""
        return re.sub(r"://([^:/@]*):[^@]*@", r"://\1:***@", self.uri)


def find_place(text: str | Path) -> Place:
    """Return the store that is meant.

    Args:
        text: A tracking URI; a directory that has `mlruns` or is to get it; an `mlruns` directory; an SQLite file.
    """
    if isinstance(text, str) and (text.startswith(("sqlite:", "file:")) or "://" in text):
        if not text.startswith(_SQLITE):
            return Place(text.rstrip("/") if text.startswith("http") else text)
        path = Path(text.removeprefix(_SQLITE))
    else:
        given = Path(text).expanduser()
        if given.is_file() or given.suffix == ".db":
            path = given
        else:
            path = (given if (given / "mlflow.db").is_file() else given / "mlruns") / "mlflow.db"
    path = path.resolve()
    return Place(f"{_SQLITE}{path.as_posix()}", path.parent)


def place_beside(work_dir: str | Path, uri: str = "") -> Place:
    """Return the store of a work directory.

    Args:
        work_dir: The work directory; the embedded store is `mlruns` beside it.
        uri: Another store, "" for the embedded one.
    """
    return find_place(tracking_uri(TrackingConfig(uri=uri), work_dir))


def open_place(place: Place, *, make: bool = False) -> MlflowClient:
    """Open a store.

    Args:
        place: The store.
        make: Make an SQLite store that is not there yet.

    Raises:
        TrackingError: MLflow is not installed, or the store is not there, does not answer or is too old.
    """
    require_mlflow()
    for key, value in {**quiet_environment(), **_SILENT}.items():
        os.environ.setdefault(key, value)
    if place.directory is not None:
        if make:
            place.directory.mkdir(parents=True, exist_ok=True)
        elif not Path(place.uri.removeprefix(_SQLITE)).is_file():
            raise TrackingError(
                f"there is no MLflow store at {place.uri.removeprefix(_SQLITE)}: train something first "
                "(calm reproduce k4-sweet-spot), or name the directory that was trained in"
            )
    check_address(place)
    from mlflow import MlflowClient

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)  # a store that fails is told of in a sentence of our own
    with answering(place):
        client = MlflowClient(place.uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def answering(place: Place) -> Iterator[None]:
    """Turn whatever a store raises into one sentence.

    Raises:
        TrackingError: The store failed.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, ImportError) as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        if "out-of-date database schema" in reason:
            raise TrackingError(
                f"the MLflow store at {place.shown} was made by an older MLflow: "
                f"make a copy of it, then run mlflow db upgrade {place.shown}"
            ) from None
        raise TrackingError(f"the MLflow store at {place.shown} does not do what it is asked: {reason}") from None
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("sqlalchemy", "requests", "urllib3", "alembic"):
            raise
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise TrackingError(f"the MLflow store at {place.shown} cannot be used: {reason}") from None


def check_address(place: Place) -> None:
    """Check that something listens where a server or a database is meant to be; a file is not looked at.

    Args:
        place: The store.

    Raises:
        TrackingError: Nothing does, or the address cannot be read.
    """
    try:
        parts = urlsplit(place.uri)
        host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme.split("+")[0])
    except ValueError:
        raise TrackingError(f"{place.shown} is not the address of an MLflow store") from None
    if host is None or port is None:
        return
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    except OSError as error:
        raise TrackingError(
            f"nothing answers at {place.shown} ({error.strerror or error}): start the server, or correct the address"
        ) from None

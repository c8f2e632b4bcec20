"""Files in a directory of a tracking server's machine, read and written through the server.

MLflow's own client would look for that directory on this machine. The server's page in the browser shows the files all
the same, by addresses of its own, and those are used here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from calm_lightning.errors import TrackingError
from calm_lightning.tracking.moving.records import safe_path

_CHUNK = 1 << 20
_UPLOAD_LIMIT = 10 << 20  # MLflow's
_API = "/api/2.0/mlflow"
_PAGES = "/ajax-api/2.0/mlflow"


class FileAccess(Protocol):
    """What is asked of a place of files; MLflow's artifact repositories do it."""

    def list_artifacts(self, path: str | None = None) -> Any:
        """Return the entries directly below a directory."""

    def download_artifacts(self, artifact_path: str, dst_path: str | None = None) -> Any:
        """Copy everything below a path into a directory."""

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> Any:
        """Copy one file into a directory."""


@dataclass(frozen=True)
class FileEntry:
    """A line of a listing, as MLflow's own FileInfo.

    Attributes:
        path: Path from the topmost directory.
        is_dir: Whether it is a directory.
        file_size: Bytes.
    """

    path: str
    is_dir: bool
    file_size: int


class ServerFiles:
    """The files of a run or a logged model, through the server.

    Args:
        uri: The server's URI.
        owner: A run id or a model id.
    """

    def __init__(self, uri: str, owner: str) -> None:
        self._uri, self._owner = uri, owner
        self._is_model = owner.startswith("m-")

    def list_artifacts(self, path: str | None = None) -> list[FileEntry]:
        """Return the entries directly below a directory, None for the topmost one."""
        if self._is_model:
            endpoint = f"{_API}/logged-models/{self._owner}/artifacts/directories"
            query = {"artifact_directory_path": path} if path else {}
        else:
            endpoint, query = f"{_API}/artifacts/list", {"run_id": self._owner}
            query |= {"path": path} if path else {}
        with self._asked("GET", endpoint, params=query) as answer:
            entries = answer.json().get("files", [])
        return [FileEntry(str(one["path"]), bool(one.get("is_dir")), int(one.get("file_size", 0))) for one in entries]

    def download_artifacts(self, artifact_path: str, dst_path: str | None = None) -> str:
        """Copy everything below a path into a directory.

        Args:
            artifact_path: A directory, "" for the topmost one.
            dst_path: The directory on this machine.

        Raises:
            TrackingError: The server names a file that would lie outside that directory.
        """
        assert dst_path is not None
        for entry in self.list_artifacts(artifact_path or None):
            if entry.is_dir:
                self.download_artifacts(entry.path, dst_path)
            else:
                self._download(entry.path, Path(dst_path))
        return dst_path

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Copy one file into a directory of the run.

        Raises:
            TrackingError: The server takes no such file.
        """
        path = Path(local_file)
        self._check(path)
        target = f"{artifact_path}/{path.name}" if artifact_path else path.name
        query = {"run_uuid": self._owner, "path": target}
        # A charset-free type: the server takes a form's body apart and would find no data left.
        headers = {"Content-Type": "application/octet-stream"}
        with self._asked(
            "POST", f"{_PAGES}/upload-artifact", params=query, data=path.read_bytes(), extra_headers=headers
        ):
            return

    def _download(self, path: str, folder: Path) -> None:
        try:
            target = folder / safe_path(path)
        except ValueError as error:
            raise TrackingError(f"the server at {self._uri} names a file that is refused: {error}") from None
        if self._is_model:
            endpoint = f"{_PAGES}/logged-models/{self._owner}/artifacts/files"
            query = {"artifact_file_path": path}
        else:
            endpoint, query = "/get-artifact", {"run_uuid": self._owner, "path": path}
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._asked("GET", endpoint, params=query, stream=True) as answer, target.open("wb") as file:
            for chunk in answer.iter_content(_CHUNK):
                file.write(chunk)

    def _check(self, path: Path) -> None:
        size = path.stat().st_size
        if not self._is_model and 0 < size <= _UPLOAD_LIMIT:
            return
        what = "a file of a model" if self._is_model else "empty" if not size else f"over {_UPLOAD_LIMIT >> 20} MiB"
        raise TrackingError(
            f"{path.name} is {what}, and the server at {self._uri} keeps files in a directory of its own machine, "
            "where it takes none such: start it with mlflow server --artifacts-destination DIR, in a new experiment"
        )

    @contextmanager
    def _asked(self, method: str, endpoint: str, **given: Any) -> Iterator[Any]:
        """Ask the server; with the user's log-in, where MLflow knows one."""
        from mlflow.utils import credentials, request_utils, rest_utils

        # These have no annotations.
        log_in: Any = credentials.get_default_host_creds
        ask: Any = rest_utils.http_request
        check: Any = request_utils.augmented_raise_for_status
        answer = ask(log_in(self._uri), endpoint, method, **given)
        with answer:
            check(answer)
            yield answer

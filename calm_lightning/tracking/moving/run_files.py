"""Files of runs and of logged models, wherever a store keeps them.

MLflow's clients go to the place that the store names, and for many stores that is a directory. Seen through a tracking
server the directory is one of the server's machine, which is not always this one; and a store that was moved names the
directory of its old place. Both are dealt with here: a server is asked to hand the files over itself, and a moved
SQLite store has its files beside it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from calm_lightning.tracking.moving.records import Folder, folder_of
from calm_lightning.tracking.reading.places import Place, answering

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from calm_lightning.tracking.moving.server_files import FileAccess

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_RUN_LEVELS, _MODEL_LEVELS = 2, 3


class RunFiles:
    """The files of a store.

    Args:
        client: The opened store.
        place: Where it is.
    """

    def __init__(self, client: MlflowClient, place: Place) -> None:
        self._client, self._place = client, place

    @contextmanager
    def folder(self, owner: str) -> Iterator[Folder]:
        """Return the files of a run or a logged model on this machine; those of a local store are not copied.

        Args:
            owner: A run id or a model id.

        Raises:
            TrackingError: They cannot be had.
        """
        location = self._location(owner)
        local = None if self._place.served else self._moved(owner, _local_path(location))
        if local is not None:
            yield folder_of(local)
            return
        with tempfile.TemporaryDirectory(prefix="calm-runs-") as scratch:
            with answering(self._place):
                self._repository(owner, location).download_artifacts("", scratch)
            yield folder_of(Path(scratch))

    def listing(self, owner: str) -> dict[str, int]:
        """Return the size in bytes of every file of a run or a logged model, by path.

        Raises:
            TrackingError: The store fails.
        """
        repository, found, waiting = self._repository(owner, self._location(owner)), {}, [""]
        with answering(self._place):
            while waiting:
                for info in repository.list_artifacts(waiting.pop() or None):
                    if info.is_dir:
                        waiting.append(info.path)
                    else:
                        found[str(info.path)] = int(info.file_size or 0)
        return found

    def send(self, owner: str, root: Path, paths: Sequence[str]) -> None:
        """Copy files into a run or a logged model, replacing those of the same paths.

        Args:
            owner: A run id or a model id.
            root: Directory that holds the files.
            paths: Their paths below it.

        Raises:
            TrackingError: The store does not take them.
        """
        location = self._location(owner)
        if paths and self._place.served and (local := _local_path(location)) is not None:
            self._send_to_server_with_disk(owner, local, root, paths)
            return
        repository = self._repository(owner, location)
        with answering(self._place):
            for path in paths:
                _send_one(repository, root, path)

    def _location(self, owner: str) -> str:
        """Return where the store keeps the files of a run or a model."""
        with answering(self._place):
            if owner.startswith("m-"):
                return str(self._client.get_logged_model(owner).artifact_location)
            return str(self._client.get_run(owner).info.artifact_uri)

    def _repository(self, owner: str, location: str) -> FileAccess:
        """Return MLflow's access to the files at a location."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        local = _local_path(location)
        if self._place.served and local is not None:
            from calm_lightning.tracking.moving.server_files import ServerFiles

            return ServerFiles(self._place.uri, owner)
        if local is not None:
            location = self._moved(owner, local).as_uri()
        return get_artifact_repository(location, tracking_uri=self._place.uri)

    def _moved(self, owner: str, local: Path | None) -> Any:
        """Return the directory of an SQLite store's files: beside the database where they are there."""
        if local is None or self._place.directory is None:
            return local
        levels = _MODEL_LEVELS if owner.startswith("m-") else _RUN_LEVELS
        beside = self._place.directory.joinpath("artifacts", *local.parts[-levels:])
        return beside if beside.is_dir() else local

    def _send_to_server_with_disk(self, owner: str, local: Path, root: Path, paths: Sequence[str]) -> None:
        """Send to a server that keeps files in a directory: into it, if it is on this machine, else through the server.

        Whether it is on this machine is not known from its name (a tunnel is on loopback too). So one file is put
        there, and the server is asked whether it sees it.
        """
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

        through_server = self._repository(owner, local.as_uri())
        repository: FileAccess = through_server
        remaining = list(paths)
        if urlsplit(self._place.uri).hostname in _LOOPBACK:
            known = local.exists()
            direct = LocalArtifactRepository(local.as_uri())
            try:
                _send_one(direct, root, remaining[0])
            except OSError:
                known = True  # nothing was made that would have to go
            else:
                if remaining.pop(0) in self.listing(owner):
                    repository = direct
                else:
                    remaining = list(paths)
                    if not known:
                        shutil.rmtree(local)
        with answering(self._place):
            for path in remaining:
                _send_one(repository, root, path)


def _send_one(repository: FileAccess, root: Path, path: str) -> None:
    parent = PurePosixPath(path).parent
    repository.log_artifact(str(root / path), None if parent == PurePosixPath() else str(parent))


def _local_path(location: str) -> Path | None:
    """Return the directory that a location names, None where it is none of a file system."""
    parts = urlsplit(location)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if parts.scheme == "":
        return Path(location).absolute()
    return None

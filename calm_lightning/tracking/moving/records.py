"""A run as plain values, complete enough to make it again in another store: what travels, directly or in an archive.

The types are checked by pydantic when they are read from JSON, since an archive may come from a stranger: ids are
hexadecimal, paths stay inside their directory, and unknown fields are refused. JSON has no NaN and no infinities, so
these are strings there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, StringConstraints, ValidationError

from calm_lightning.errors import TrackingError

_CHUNK = 1 << 20
_LONGEST_PATH = 1000
_DRIVE = re.compile(r"[A-Za-z]:")


def safe_path(path: str) -> str:
    """Return a relative POSIX path that cannot lead out of the directory it is put in.

    Raises:
        ValueError: It could.
    """
    parts = path.split("/")
    if path != str(PurePosixPath(path)) or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{path!r} is not a path inside a directory")
    if "\\" in path or _DRIVE.match(path) or len(path) > _LONGEST_PATH or not path.isprintable():
        raise ValueError(f"{path!r} is not a path inside a directory")
    return path


RunId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
ModelId = Annotated[str, StringConstraints(pattern=r"^m-[0-9a-f]{32}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
RelativePath = Annotated[str, AfterValidator(safe_path)]
Value = Annotated[float, Strict(False)]
Point = tuple[int, int, Value]
"""Optimiser step, unix milliseconds, value."""


class _Plain(BaseModel):
    """Immutable, strict about types and unknown fields, NaN as a string in JSON."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", ser_json_inf_nan="strings")


class FileRecord(_Plain):
    """One file of a run or of a model.

    Attributes:
        path: Relative path, "/" between its parts.
        size: Bytes.
        sha256: Hash of its content.
    """

    path: RelativePath
    size: Annotated[int, Field(ge=0)]
    sha256: Digest


class DatasetRecord(_Plain):
    """What a run was trained or scored on: the attributes of MLflow's dataset; `tags` say what it was used for."""

    name: str
    digest: str
    source_type: str
    source: str
    schema_text: str | None
    profile: str | None
    tags: dict[str, str]


class ModelMetric(_Plain):
    """A number of a logged model, logged by the run `run_id`, perhaps on a dataset."""

    key: str
    point: Point
    run_id: RunId | None
    dataset_name: str | None
    dataset_digest: str | None


class ModelRecord(_Plain):
    """A logged model: MLflow keeps it beside the run that made it, with files of its own.

    Attributes:
        model_id: MLflow's id.
        name: Its name.
        type: Kind of model, free text.
        status: "READY", "FAILED" or "PENDING".
        run_id: The run that made it.
        tags: Tags by name.
        params: Parameters by name.
        metrics: Its numbers.
    """

    model_id: ModelId
    name: str
    type: str | None
    status: Literal["READY", "FAILED", "PENDING", "UPLOAD_FAILED", "UNSPECIFIED"]
    run_id: RunId | None
    tags: dict[str, str]
    params: dict[str, str]
    metrics: list[ModelMetric]


class RunRecord(_Plain):
    """A run without its metric histories and the content of its files.

    Attributes:
        run_id: MLflow run id where it came from.
        origin: Run id where it was recorded first: its own, or that of the run it is a copy of.
        experiment: Name of the experiment.
        experiment_id: Id of the experiment where it came from.
        experiment_tags: Tags of the experiment.
        name: Name shown in the UI.
        status: "RUNNING", "SCHEDULED", "FINISHED", "FAILED" or "KILLED".
        user: Who made it.
        started: Unix milliseconds, None where that is not known.
        ended: Unix milliseconds, None where it has not ended.
        tags: Tags by name, the description among them.
        params: Parameters by name.
        metrics: Names of its metrics.
        datasets: What it was trained and scored on.
        models: Logged models that it made, and those it used that are in the same store.
        model_inputs: Ids of the logged models that it used.
        model_outputs: Ids of the logged models that it made, and the step at which.
    """

    run_id: RunId
    origin: RunId
    experiment: Annotated[str, StringConstraints(min_length=1)]
    experiment_id: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,30}$")]
    experiment_tags: dict[str, str]
    name: str
    status: Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]
    user: str
    started: int | None
    ended: int | None
    tags: dict[str, str]
    params: dict[str, str]
    metrics: list[str]
    datasets: list[DatasetRecord]
    models: list[ModelRecord]
    model_inputs: list[ModelId]
    model_outputs: list[tuple[ModelId, int]]


class History(_Plain):
    """All values of one metric of a run, in the store's order."""

    key: str
    points: list[Point]


@dataclass(frozen=True)
class Folder:
    """Files on this machine that belong to a run or a model.

    Attributes:
        root: The directory that holds them.
        files: What they are, by path.
    """

    root: Path
    files: tuple[FileRecord, ...]


class RunSource(Protocol):
    """Where runs are read from: a store or an archive."""

    @property
    def run_ids(self) -> Sequence[str]:
        """Ids of the runs, in the order in which they are to be read."""

    def run(self, run_id: str) -> RunRecord:
        """Return one of the runs.

        Raises:
            TrackingError: It cannot be read.
        """

    def histories(self, run_id: str) -> Iterator[History]:
        """Yield all metric histories of a run.

        Raises:
            TrackingError: They cannot be read.
        """

    def files(self, owner: str) -> AbstractContextManager[Folder]:
        """Return the files of a run or a logged model, on this machine while the context lasts.

        Args:
            owner: A run id or a model id.

        Raises:
            TrackingError: They cannot be read.
        """


def hash_of(path: Path) -> tuple[int, str]:
    """Return size in bytes and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def folder_of(root: Path) -> Folder:
    """Return the files below a directory, hashed; none where it is not there. Links are not followed.

    Raises:
        TrackingError: A file has a name that cannot travel.
    """
    found = []
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            size, digest = hash_of(path)
            try:
                found.append(FileRecord(path=path.relative_to(root).as_posix(), size=size, sha256=digest))
            except ValidationError:
                raise TrackingError(
                    f"the file {str(path)!r} cannot be copied because of its name: rename or remove it"
                ) from None
    return Folder(root, tuple(found))


def digest_of(files: Iterable[FileRecord]) -> str:
    """Return one hash of many files: their paths and contents."""
    lines = sorted(f"{file.sha256} {file.path}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()

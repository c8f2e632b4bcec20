"""What run directories say of themselves, read without torch: result, configuration, how far training came."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

RESULT, CONFIG, WEIGHTS, LOCK = "result.json", "config.yaml", "model.safetensors", "lock"
"""Files of a run directory that this room reads."""
USED = "used"
"""An empty file whose time says when a trial was last given this autoencoder."""
STAGE = "autoencoder"
LEASES_DIR = ".leases"
PRUNED_DIR = ".pruned"
IDENTITY_IN_NAME = 10
"""Characters of the identity at the end of a run directory's name (`calm_lightning.run.locate`)."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished autoencoder, as its result says; it has what a sweep asks of a run's outcome.

    Attributes:
        run_dir: The run directory.
        identity: SHA-256 of everything that changes its numbers.
        train_flops: Its training FLOPs.
        mlflow_run_id: MLflow run id.
        points: None: evaluations of an autoencoder have no BrierLM.
        text: Empty: an autoencoder generates no text.
    """

    run_dir: Path
    identity: str
    train_flops: float
    mlflow_run_id: str | None
    points: tuple[()] = ()
    text: str = ""


def leases_directory(work_dir: Path) -> Path:
    """Return where the leases of a work directory's autoencoders lie: all its sweeps share them."""
    return work_dir / STAGE / LEASES_DIR


def lease_name(identity: str) -> str:
    """Return the lease of an autoencoder; what the directory of an unfinished one tells of its identity is enough."""
    return f"{STAGE}-{identity[:IDENTITY_IN_NAME]}"


def identity_in(name: str) -> str:
    """Return the part of the identity that a run directory's name ends with, "" where it ends otherwise."""
    last = name.rpartition("-")[2]
    return last if len(last) == IDENTITY_IN_NAME and set(last) <= set("0123456789abcdef") else ""


def run_directories(work_dir: Path, stage: str) -> list[Path]:
    """Return the run directories of a stage by name, whatever their state; none where there is no such stage."""
    try:
        found = [path for path in (work_dir / stage).iterdir() if not path.name.startswith(".") and path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found)


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """Return what a finished run says of itself; None where it has not finished.

    Raises:
        ValueError: The file is damaged.
        OSError: It cannot be read.
    """
    try:
        value = json.loads((run_dir / RESULT).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("identity"), str):
        raise ValueError("it does not say which run it is of")
    return value


def read_finished(run_dir: Path, identity: str) -> FinishedRun | None:
    """Return the finished run in a directory if it has the given identity, else None."""
    try:
        result = read_result(run_dir)
        if result is None or result["identity"] != identity:
            return None
        flops, mlflow = float(result.get("train_flops", 0.0)), result.get("mlflow_run_id")
    except (ValueError, TypeError, OSError):
        return None  # training it again will say what is wrong with the file, in one sentence
    return FinishedRun(run_dir, identity, flops, mlflow)


def read_config(run_dir: Path) -> dict[str, Any]:
    """Return a run's resolved configuration as plain values.

    Raises:
        ValueError: The file is damaged.
        OSError: It is missing or cannot be read.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        value = yaml.load((run_dir / CONFIG).read_text(encoding="utf-8"), Loader=loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    if not isinstance(value, dict):
        raise ValueError("it is no mapping")
    return value


def is_busy(run_dir: Path) -> bool:
    """Return whether a process trains this run now: it holds the lock of the run directory."""
    with suppress(OSError), (run_dir / LOCK).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(file, fcntl.LOCK_UN)
    return False


def mark_used(run_dir: Path) -> bool:
    """Note that a trial is given this autoencoder; return whether it is (still) there.

    Under the guard of its leases, so that it is not removed between the two.
    """
    with suppress(OSError):  # a directory that belongs to somebody else can be used without a note
        (run_dir / USED).touch()
    return (run_dir / RESULT).is_file()


def bytes_on_disk(run_dir: Path) -> int:
    """Return how much a run directory holds; files that vanish meanwhile do not count."""
    total = 0
    for folder, _, names in os.walk(run_dir):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total

"""A sweep's directory: the small files through which coordinator, workers and readers know of one another.

| file | content |
|---|---|
| `sweep.yaml` | the resolved sweep, without the storage's password |
| `session.json` | study, corpus, storage, MLflow parent: what a worker needs beside the sweep |
| `stop` | there while the sweep is asked to stop |
| `study.db` | the Optuna study, unless `storage` says otherwise |
| `leases/`, `workers/` | who has which trial; what each worker does, and its log |
| `failures/` | the traceback of every failed trial |
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calm_lightning.errors import SweepError
from sweeps import artifacts

SESSION, STOP, LEASES, WORKERS, FAILURES = "session.json", "stop", "leases", "workers", "failures"


@dataclass(frozen=True)
class Session:
    """What a worker needs to know beside the sweep's configuration.

    Attributes:
        study: Name of the study.
        work_dir: Directory that holds run directories, absolute.
        corpus: Directory of the corpus, absolute.
        corpus_hash: Hash of its manifest.
        vocabulary: Its vocabulary size V.
        parent: Identity of the sweep's MLflow run, "" where it is not recorded.
        planned: Trials that the sweep will have; 0 where there is no end.
        begun: When the sweep was last started, unix seconds.
        storage: `storage` of the sweep, which may hold a password: the file is its owner's alone.
        ended: Numbers of the trials that had ended then.
    """

    study: str
    work_dir: str
    corpus: str
    corpus_hash: str
    vocabulary: int
    parent: str
    planned: int
    begun: float
    storage: str = "sqlite"
    ended: tuple[int, ...] = ()


def write_session(directory: Path, session: Session) -> None:
    """Write `session.json`, whole or not at all, for its owner alone."""

    def write(path: Path) -> None:
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(session), indent=2), encoding="utf-8")

    artifacts.write_whole(directory / SESSION, write)


def read_session(directory: Path) -> Session:
    """Read `session.json`.

    Raises:
        SweepError: The directory holds no sweep, or the file is damaged.
    """
    path = directory / SESSION
    try:
        return Session(**_as_now(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        raise SweepError(
            f"{directory} holds no sweep: name a directory below runs/sweeps/, or run one (calm sweep run)"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise SweepError(f"{path} cannot be read ({error}): run the sweep's command again to write it anew") from None


def _as_now(value: dict[str, Any]) -> dict[str, Any]:
    """Return a session as it is written now: older ones named their parent by its MLflow run id."""
    if "parent_run_id" in value:
        value = {name: part for name, part in value.items() if name != "parent_run_id"} | {"parent": ""}
    return value


def ask_to_stop(directory: Path, why: str) -> None:
    """Ask all workers to save their place and leave."""
    artifacts.write_text(directory / STOP, why)


def asked_to_stop(directory: Path) -> bool:
    """Return whether the sweep is asked to stop."""
    return (directory / STOP).exists()


def clear_stop(directory: Path) -> None:
    """Take back what `ask_to_stop` asked."""
    (directory / STOP).unlink(missing_ok=True)


def find_sweeps(work_dir: Path) -> list[Path]:
    """Return the directories of all sweeps in a work directory, the one started last first."""
    found = [path.parent for path in (work_dir / "sweeps").glob(f"*/{SESSION}")]
    return sorted(found, key=lambda path: (path / SESSION).stat().st_mtime, reverse=True)


def find_sweep_directory(place: Path, work_dir: Path) -> Path:
    """Return the directory that a user means by a path, by a name, or by the beginning of one.

    Args:
        place: A directory, or the name of a sweep in the work directory.
        work_dir: Directory that holds run directories.

    Raises:
        SweepError: There is none, or more than one.
    """
    if (place / SESSION).is_file():
        return place.resolve()
    known = find_sweeps(work_dir)
    found = [path for path in known if path.name == str(place)] or [
        path for path in known if path.name.startswith(str(place))
    ]
    if len(found) == 1:
        return found[0].resolve()
    names = ", ".join(path.name for path in (found or known)) or "none"
    problem = f"{place} may be any of several sweeps" if found else f"there is no sweep {place}"
    raise SweepError(f"{problem}; in {work_dir}/sweeps: {names}")

"""Outbox: what MLflow shall show of a run, on disk beside the run's journal until the store has it.

A run's directory holds, for every place in MLflow where the run appears (by itself, and below each sweep that has it):

| file | content |
|---|---|
| `mlflow.json`, `mlflow-{parent}.json` | the outbox: tags, parameters, description, files, status |
| `mlflow.unsent`, `mlflow-{parent}.unsent` | there from the start of the run until the store has all of it |

Numbers are not in it: they are in `metrics.jsonl` and `system.jsonl`. Together the directory says everything, so a
store that was away for the whole of a run can be told all of it afterwards, also when the process was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypedDict

from calm_lightning.errors import TrackingError

RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
_UNSENT, _OUTBOX = ".unsent", ".json"


class Child(TypedDict):
    """A child run of a sweep's parent run.

    Attributes:
        directory: Its run directory.
        tags: Tags that it shall have.
    """

    directory: str
    tags: dict[str, str]


@dataclass
class Outbox:
    """What MLflow shall show of a run.

    Attributes:
        identity: Identity of the run: with the parent's it finds the MLflow run again.
        name: Name shown in the UI.
        uri: MLflow tracking URI; "" is the SQLite store beside the work directory, wherever that is moved.
        experiment: MLflow experiment name.
        parent: Identity of the parent run, "" for none.
        status: "RUNNING", "FINISHED", "FAILED" or "KILLED".
        tags: Tags by name.
        params: Nested parameters, for example a resolved configuration.
        description: Markdown; targets such as `(run:IDENTITY)` become links when it is sent (`links.py`).
        links: Tags whose value is the MLflow run id of the run with the given identity.
        files: Files and directories to copy, relative to the directory; missing ones are passed over.
        datasets: What the run was trained and scored on (`datasets.py`).
        model: Copy the trained model: the directory of its autoencoder, "" where it has none, None to copy no model.
        children: Child runs whose tags change after they have ended, by the number of their trial.
        started: When the run began, unix seconds.
        ended: When it ended, None while it runs.
        run_id: MLflow run id, once it is known.
        sent_files: Size and time of every file that was copied.
    """

    identity: str
    name: str
    uri: str = ""
    experiment: str = "calm"
    parent: str = ""
    status: str = RUNNING
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    links: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    model: str | None = None
    children: dict[str, Child] = field(default_factory=dict)
    started: float = 0.0
    ended: float | None = None
    run_id: str | None = None
    sent_files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OutboxPlace:
    """Where an outbox lies.

    Attributes:
        directory: The run's directory, two levels below the work directory's parent.
        parent: Identity of the parent run, "" for none.
    """

    directory: Path
    parent: str = ""

    @property
    def work_dir(self) -> Path:
        """The work directory: run directories are `{work_dir}/{stage}/{name}`."""
        return self.directory.resolve().parent.parent

    @property
    def file(self) -> Path:
        """The outbox."""
        return self.directory / f"{self._stem}{_OUTBOX}"

    @property
    def marker(self) -> Path:
        """There while the store has not got everything."""
        return self.directory / f"{self._stem}{_UNSENT}"

    @property
    def _stem(self) -> str:
        return f"mlflow-{self.parent[:12]}" if self.parent else "mlflow"

    def read(self) -> Outbox | None:
        """Return the outbox, None where there is none.

        Raises:
            TrackingError: It is damaged.
        """
        try:
            return Outbox(**json.loads(self.file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise TrackingError(
                f"{self.file} cannot be read ({error}): delete it and run the run's command again to write it anew"
            ) from None

    def write(self, outbox: Outbox) -> None:
        """Write the outbox, whole or not at all.

        Raises:
            OSError: The directory cannot be written to.
        """
        scratch = self.file.with_name(f".{self.file.name}.{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            scratch.write_text(json.dumps(asdict(outbox), indent=1), encoding="utf-8")
            os.replace(scratch, self.file)
        finally:
            scratch.unlink(missing_ok=True)

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Hold the outbox against other processes that would send it, and mark it as unsent.

        Yields:
            Whether it is held; if not, another process is sending it.
        """
        marker = self._hold()
        try:
            yield marker is not None
        finally:
            if marker is not None:
                fcntl.flock(marker, fcntl.LOCK_UN)  # closing is not enough: forked data loaders share the open file
                marker.close()

    def _hold(self) -> TextIOWrapper | None:
        """Return the locked marker, None if another process has it."""
        while True:
            marker = self.marker.open("a")
            try:
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                marker.close()
                return None
            try:
                if os.path.samestat(os.fstat(marker.fileno()), self.marker.stat()):
                    return marker
            except FileNotFoundError:
                pass  # whoever held it before has sent everything and taken the marker away
            marker.close()

    def told(self, outbox: Outbox) -> bool:
        """Return whether the same store has a finished run with these tags, so that there is nothing to tell."""
        try:
            before = self.read()
        except TrackingError:
            return False
        if before is None or (before.uri, before.experiment) != (outbox.uri, outbox.experiment):
            return False
        if before.status != FINISHED or self.marker.exists():
            return False
        return all(before.tags.get(name) == value for name, value in outbox.tags.items() if not _of_machine(name))

    def sent(self) -> None:
        """Take the marker away: the store has everything."""
        self.marker.unlink(missing_ok=True)

    def busy(self) -> bool:
        """Return whether a process is sending it at this moment."""
        try:
            with self.marker.open("r") as marker:
                fcntl.flock(marker, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except OSError:
            return True


def _of_machine(tag: str) -> bool:
    """Return whether a tag says where a command was run rather than what the run is."""
    return tag.startswith("env.") or tag in ("commit", "hardware")


def unsent(work_dir: Path) -> list[OutboxPlace]:
    """Return the outboxes below a work directory that the store has not got whole, parents of sweeps first.

    One that was never written has nothing to send and is left out; a damaged one is there, and reading it says so.
    """
    found = []
    for marker in Path(work_dir).glob(f"*/*/mlflow*{_UNSENT}"):
        place = _place_of(marker)
        if place is not None:
            found.append(place)
    return sorted(found, key=lambda place: (place.directory.parent.name != "sweeps", str(place.file)))


def _place_of(marker: Path) -> OutboxPlace | None:
    """Return the outbox that a marker belongs to, None where it was never written."""
    _, _, beginning = marker.stem.partition("-")
    place = OutboxPlace(marker.parent, beginning)  # a file is named by the beginning of its parent's identity
    try:
        outbox = place.read()
    except TrackingError:
        return place
    return None if outbox is None else OutboxPlace(marker.parent, outbox.parent)

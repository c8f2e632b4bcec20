"""MlflowTracker: follows a run's metrics journal and ships it to MLflow, without ever holding up training.

A background thread reads what the journal has grown by and sends it in batches, with the steps and times the
journal gives. The journal is the truth and MLflow its copy: if the store is slow, locked, full or gone, training
goes on, one warning is printed, and what was not sent is sent by the next run of the same command. Nothing is
sent twice, since the store itself is asked which (metric, step) pairs it has. The trade-off: a value that a
resumed run logs again at the same step keeps its first value in MLflow.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.entries import JOURNAL_NAME, UNSENT, JournalEntry, decode_lines
from calm_lightning.tracking.provenance import provenance
from calm_lightning.tracking.store import Store, open_store, require_mlflow, tracking_uri

__all__ = ["MlflowTracker", "run_tags", "tracking_uri"]

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 60.0
_METRICS_PER_BATCH = 1000  # MLflow's own limit


def run_tags(
    resolved: Mapping[str, Any],
    *,
    run_dir: Path,
    corpus: str = "",
    autoencoder_identity: str = "",
    autoencoder_run_id: str = "",
) -> dict[str, str]:
    """Return the tags by which runs are found and compared.

    Args:
        resolved: The resolved configuration as nested mappings.
        run_dir: The run directory.
        corpus: Hash of the corpus' manifest.
        autoencoder_identity: Identity of the autoencoder a continuous model uses.
        autoencoder_run_id: MLflow run id of that autoencoder.
    """
    model, stage = resolved["model"], str(resolved["stage"])
    tags = {
        "stage": stage,
        "corpus": corpus,
        "run_dir": str(Path(run_dir).resolve()),
        "seed": str(resolved["seed"]),
        "autoencoder": autoencoder_identity,
        "autoencoder_run": autoencoder_run_id,
    }
    if stage != "baseline":
        tags["K"] = str(model["K"])
        tags["l"] = str(model["l"] if model["l"] is not None else 32 * int(model["K"]))
    if stage == "calm":
        tags |= {"head": str(model["head"]), "N": str(model["N"]), "M": str(model["M"])}
    named = {f"calm.{name}": value for name, value in tags.items() if value}
    return named | {f"env.{name}": value for name, value in provenance().items()}


class MlflowTracker:
    """Records one run; a run of the same identity and parent is continued.

    Args:
        config: Tracking configuration.
        work_dir: The work directory; the embedded store lies beside it.
        run_dir: The run directory, whose journal is followed.
        identity: The run's identity.
        name: Name shown in the UI.
        params: The resolved configuration as nested mappings.
        tags: See `run_tags`.
        parent_run_id: MLflow run id of the sweep's parent run.

    Raises:
        TrackingError: MLflow is not installed.
    """

    def __init__(
        self,
        config: TrackingConfig,
        work_dir: str | Path,
        run_dir: str | Path,
        *,
        identity: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        parent_run_id: str | None = None,
    ) -> None:
        require_mlflow()
        self._config, self._work_dir = config, Path(work_dir)
        self._journal = Path(run_dir) / JOURNAL_NAME
        self._identity, self._name, self._parent = identity, name, parent_run_id
        self._params, self._tags = params, dict(tags)
        self._store: Store | None = None
        self._run_id: str | None = None
        self._sent: set[tuple[str, int]] = set()
        self._position = (0, 0)  # inode and bytes read of the journal
        self._stop = threading.Event()
        self._deadline, self._closing = 0.0, ("FINISHED", list[Path]())
        self._warned = self._done = False
        self._thread = threading.Thread(target=self._follow, name="mlflow-tracker", daemon=True)

    def start(self) -> MlflowTracker:
        """Start following the journal; returns at once."""
        self._thread.start()
        return self

    def finish(self, status: str = "FINISHED", artifacts: Sequence[Path] = (), timeout: float = 30.0) -> str | None:
        """Send the rest, then the artifacts, and close the MLflow run.

        Args:
            status: "FINISHED", "FAILED" or "KILLED".
            artifacts: Files and directories to copy; missing ones are passed over.
            timeout: Longest wait, seconds; past it a warning says how to send the rest.

        Returns:
            The MLflow run id, or None if the store never answered.
        """
        if not self._thread.is_alive():
            return self._run_id
        unsent = self._journal.with_name(UNSENT)
        unsent.touch()
        self._closing, self._deadline = (status, list(artifacts)), time.monotonic() + timeout
        self._stop.set()
        self._thread.join(timeout + 1.0)
        if self._done:
            unsent.unlink(missing_ok=True)
        else:
            _LOG.warning(
                "MLflow at %s did not take everything of run %s in time; the journal %s has it all, "
                "and running the same command again sends the rest",
                tracking_uri(self._config, self._work_dir),
                self._name,
                self._journal,
            )
        return self._run_id

    def _follow(self) -> None:
        """Ship until told to stop and everything is out, or until the deadline of `finish` has passed."""
        wait = 0.0
        while not self._done:
            stopping = self._stop.wait(wait)
            try:
                self._ship()
                if stopping:
                    self._close()
                    return
                wait = _POLL_SECONDS
            except Exception as error:  # whatever the store does, training goes on
                self._warn(error)
                self._store = None  # attach again: a fresh connection, and the store says what arrived
                wait = min(_LONGEST_WAIT_SECONDS, max(2 * wait, _POLL_SECONDS))
            if stopping:
                if time.monotonic() > self._deadline:
                    return
                time.sleep(0.5)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            reason = " ".join(str(error).split())[:300]
            _LOG.warning(
                "MLflow at %s does not take run %s (%s); training goes on and MLflow is tried again",
                tracking_uri(self._config, self._work_dir),
                self._name,
                reason,
            )

    def _attach(self) -> tuple[Store, str]:
        """Return the opened store and the run's id, asking the store what it already has."""
        if self._store is None or self._run_id is None:
            store = open_store(self._config, self._work_dir)
            run_id = store.attach(self._identity, self._name, self._tags, self._parent)
            store.log_params(run_id, self._params)
            self._sent, self._position = store.logged(run_id), (0, 0)
            self._store, self._run_id = store, run_id
        return self._store, self._run_id

    def _ship(self) -> None:
        """Send what the journal has grown by."""
        from mlflow.entities import Metric

        store, run_id = self._attach()
        entries, position = self._grown()
        metrics = []
        for entry in entries:
            for name, value in entry.metrics.items():
                if (name, entry.step) not in self._sent:
                    self._sent.add((name, entry.step))
                    metrics.append(Metric(name, value, int(1000 * entry.time), entry.step))
        for start in range(0, len(metrics), _METRICS_PER_BATCH):
            store.client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_BATCH])
        self._position = position

    def _grown(self) -> tuple[list[JournalEntry], tuple[int, int]]:
        """Return new entries and the position after them; a journal that was rewound is read from its start."""
        try:
            with self._journal.open("rb") as file:
                status = os.fstat(file.fileno())
                inode, offset = self._position
                if inode != status.st_ino or offset > status.st_size:
                    offset = 0
                file.seek(offset)
                content = file.read()
        except FileNotFoundError:
            return [], (0, 0)
        complete = content[: content.rfind(b"\n") + 1]
        return decode_lines(complete, self._journal), (status.st_ino, offset + len(complete))

    def _close(self) -> None:
        """Send the artifacts and end the MLflow run."""
        store, run_id = self._attach()
        status, artifacts = self._closing
        store.log_files(run_id, artifacts)
        store.client.set_terminated(run_id, status)
        self._done = True

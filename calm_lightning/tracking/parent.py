"""ParentRun: the MLflow run of a whole study, whose children are the runs it trained.

It is written rarely (figures, a table, two numbers), so it is written at once and not through a journal. As with
every run, a store that fails costs a warning and never the study.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.store import Store, open_store, require_mlflow, tracking_uri

_LOG = logging.getLogger(__name__)


class ParentRun:
    """One study's run. Made by `open`; a parent of the same study is continued.

    Args:
        store: The opened store, None if it could not be opened.
        run_id: Its MLflow run id, None if the store could not be opened.
        uri: Tracking URI, for messages.
    """

    def __init__(self, store: Store | None, run_id: str | None, uri: str) -> None:
        self._store, self._uri = store, uri
        self.run_id = run_id

    @classmethod
    def open(
        cls,
        config: TrackingConfig,
        work_dir: str | Path,
        *,
        study: str,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
    ) -> ParentRun:
        """Continue or create the parent run of a study.

        Args:
            config: Tracking configuration.
            work_dir: The work directory; the embedded store lies beside it.
            study: What identifies the study; the same string continues the same run.
            name: Name shown in the UI.
            tags: Tags; they replace older values.
            params: Nested parameters; those the run already has stay as they are.

        Raises:
            TrackingError: MLflow is not installed.
        """
        require_mlflow()
        uri = tracking_uri(config, work_dir)
        identity = hashlib.sha256(f"study:{study}".encode()).hexdigest()
        try:
            store = open_store(config, work_dir)
            run_id = store.attach(identity, name, {"calm.study": study, **tags}, None)
            store.log_params(run_id, params)
        except Exception as error:  # whatever the store does, the study goes on
            _warn(uri, error)
            return cls(None, None, uri)
        return cls(store, run_id, uri)

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log numbers about the study as a whole, at step 0; those the run already has stay as they are."""
        from mlflow.entities import Metric

        def log(store: Store, run_id: str) -> None:
            known, now = store.logged(run_id), int(1000 * time.time())
            fresh = [Metric(name, value, now, 0) for name, value in metrics.items() if (name, 0) not in known]
            store.client.log_batch(run_id, metrics=fresh)

        self._try(log)

    def log_files(self, paths: Sequence[Path]) -> None:
        """Copy figures and tables into the parent's artifacts; missing ones are passed over."""
        self._try(lambda store, run_id: store.log_files(run_id, list(paths)))

    def describe(self, markdown: str) -> None:
        """Set the description that the UI shows on the run's page."""
        self._try(lambda store, run_id: store.client.set_tag(run_id, "mlflow.note.content", markdown))

    def tag_child(self, child_run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a child run, for example whether it lies on the front."""
        from mlflow.entities import RunTag

        batch = [RunTag(key, value) for key, value in tags.items()]
        self._try(lambda store, _: store.client.log_batch(child_run_id, tags=batch))

    def finish(self, status: str = "FINISHED") -> None:
        """End the run with "FINISHED", "FAILED" or "KILLED"."""
        self._try(lambda store, run_id: store.client.set_terminated(run_id, status))

    def _try(self, action: Callable[[Store, str], object]) -> None:
        if self._store is None or self.run_id is None:
            return
        try:
            action(self._store, self.run_id)
        except Exception as error:  # whatever the store does, the study goes on
            _warn(self._uri, error)


def _warn(uri: str, error: Exception) -> None:
    reason = " ".join(str(error).split())[:300]
    _LOG.warning("MLflow at %s does not take the study (%s); the study goes on, its files are complete", uri, reason)

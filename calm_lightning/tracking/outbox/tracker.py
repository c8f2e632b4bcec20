"""MlflowTracker: sends a run to MLflow while it trains, without ever holding up training.

A background thread keeps a mirror up to date. If the store is slow, locked, full or gone, training goes on and one
warning is printed; everything lies in the run's directory, and is sent when the store is back: by this thread, by
the next run of the same command, by the next run in the same work directory, or by `calm runs send`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from calm_lightning.errors import TrackingError
from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.outbox.mirror import Mirror, in_one_line
from calm_lightning.tracking.outbox.outbox import Outbox, OutboxPlace
from calm_lightning.tracking.outbox.sending import send_others
from calm_lightning.tracking.outbox.system import SystemMetrics
from calm_lightning.tracking.store import require_mlflow, tracking_uri

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 60.0
_BETWEEN_TRIES_SECONDS = 0.5
_LAST_TRIES = 3
"""Tries at the end of a run before a store that fails is given up."""


class MlflowTracker:
    """Records one run; a run of the same identity and parent is continued.

    Args:
        place: Where the outbox lies: the run directory, whose journal is followed.
        outbox: What MLflow shall show.
        system_metrics: Whether to sample what the machine is doing.

    Raises:
        TrackingError: MLflow is not installed.
    """

    def __init__(self, place: OutboxPlace, outbox: Outbox, *, system_metrics: bool = False) -> None:
        require_mlflow()
        self._place, self._outbox = place, outbox
        self._mirror = Mirror(place, outbox)
        self._saving = threading.Lock()
        self._changed = threading.Event()
        self._stop = False
        self._deadline = 0.0
        self._warned = self._done = False
        self._leave_others = threading.Event()
        self._others: threading.Thread | None = None
        self._system = SystemMetrics(place.directory) if system_metrics else None
        self._thread = threading.Thread(target=self._follow, name="mlflow-tracker", daemon=True)

    @property
    def run_id(self) -> str | None:
        """The MLflow run id, None as long as the store has not answered."""
        return self._outbox.run_id

    def start(self) -> MlflowTracker:
        """Write the outbox and start following the journal; returns at once."""
        try:
            before = self._place.read()
        except TrackingError as error:
            _LOG.warning("%s; it is written anew", str(error).partition(":")[0])
            before = None
        if before is not None and before.uri == self._outbox.uri:
            self._outbox.run_id, self._outbox.started = before.run_id, before.started or self._outbox.started
            self._outbox.sent_files = before.sent_files
        self._place.directory.mkdir(parents=True, exist_ok=True)
        self._place.marker.touch()
        self._save()
        if self._system:
            self._system.start()
        self._thread.start()
        return self

    def update(self, change: Callable[[Outbox], None]) -> None:
        """Change what MLflow shall show, on disk at once and in the store soon."""
        with self._saving:
            change(self._outbox)
        self._save()
        self._changed.set()

    def finish(self, status: str = "FINISHED", timeout: float = 30.0, ended: float | None = None) -> str | None:
        """Send the rest and close the MLflow run.

        Args:
            status: "FINISHED", "FAILED" or "KILLED".
            timeout: Longest wait, seconds, for a store that takes what it is sent; one that does not is given up after
                two more tries.
            ended: When the run ended, unix seconds, if not now.

        Returns:
            The MLflow run id, or None if the store never answered.
        """
        if not self._thread.is_alive():
            return self.run_id
        if self._system:
            self._system.stop()

        def end(outbox: Outbox) -> None:
            outbox.status, outbox.ended = status, ended or time.time()

        self._deadline, self._stop = time.monotonic() + timeout, True
        self._leave_others.set()
        self.update(end)
        self._thread.join(timeout + 1.0)
        if not self._done:
            _LOG.warning(
                "MLflow at %s did not take everything of run %s; it is kept in %s and sent by the next run in this "
                "work directory, or by: calm runs send --work-dir %s",
                self._uri,
                self._outbox.name,
                self._place.directory,
                self._place.work_dir,
            )
        return self.run_id

    def _follow(self) -> None:
        """Hold the outbox and send, until told to stop and everything is out, or until the store is given up."""
        while True:
            with self._place.held() as held:
                if held:
                    self._send_until_done()
                    return
            if self._stop and time.monotonic() > self._deadline:
                return  # whoever holds it sends what is there
            time.sleep(_BETWEEN_TRIES_SECONDS)

    def _send_until_done(self) -> None:
        wait, tries = 0.0, _LAST_TRIES
        while True:
            self._changed.wait(wait)
            self._changed.clear()
            stopping = self._stop
            try:
                self._send(stopping)
                if self._done:
                    return
                wait = _POLL_SECONDS
                self._send_others()
            except Exception as error:  # whatever the store does, training goes on
                wait = self._failed(error, wait)
                tries -= stopping
                if stopping and (tries <= 0 or time.monotonic() > self._deadline):
                    return
            wait = _BETWEEN_TRIES_SECONDS if self._stop else wait

    def _send(self, stopping: bool) -> None:
        """Send what is new; with the last of it, end the run and take the marker away."""
        before = self.run_id, dict(self._outbox.sent_files)
        if stopping:
            self._mirror.close()
            self._done = True
        else:
            self._mirror.send()
        if self._done and self._mirror.complete:
            self._place.sent()
        if self._done or before != (self.run_id, self._outbox.sent_files):
            self._save()

    def _send_others(self) -> None:
        """Have a thread send what earlier runs left behind: a store that takes this run's numbers takes theirs."""
        if self._others is None and not self._stop:
            given = (self._place.work_dir, self._outbox.uri, self._leave_others)
            self._others = threading.Thread(target=send_others, args=given, name="mlflow-others", daemon=True)
            self._others.start()

    def _failed(self, error: Exception, wait: float) -> float:
        """Take note of a failure, and return how long to wait before the next try."""
        if not self._warned:
            self._warned = True
            _LOG.warning(
                "MLflow at %s does not take run %s (%s); training goes on and MLflow is tried again",
                self._uri,
                self._outbox.name,
                in_one_line(error),
            )
        self._mirror.forget()  # attach again: a fresh connection, and the store says what arrived
        return min(_LONGEST_WAIT_SECONDS, max(2 * wait, _POLL_SECONDS))

    def _save(self) -> None:
        """Write the outbox; a disk that takes nothing is told of by the journal, which cannot do without it."""
        try:
            with self._saving:
                self._place.write(self._outbox)
        except OSError as error:
            _LOG.warning("%s cannot be written: %s", self._place.file, error.strerror)

    @property
    def _uri(self) -> str:
        return tracking_uri(TrackingConfig(uri=self._outbox.uri), self._place.work_dir)

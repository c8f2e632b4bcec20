"""The front during a sweep: a thread of the coordinator draws and sends it when trials have ended."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from sweeps.recording.recorder import Recorder
from sweeps.trials.reading import read_sweep

_LOG = logging.getLogger(__name__)
_PAUSE_SECONDS = 15.0
_SHARE = 20
"""Drawing takes at most one part in this many of the time."""


class LiveFront:
    """Records a sweep while it goes on, as a context.

    Args:
        directory: The sweep's directory.
        recorder: Records it.
    """

    def __init__(self, directory: Path, recorder: Recorder) -> None:
        self._directory, self._recorder = directory, recorder
        self._ended = 0
        self._news, self._leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="live-front", daemon=True)

    def __enter__(self) -> LiveFront:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        self._news.set()
        self._thread.join()

    def ended(self, trials: int) -> None:
        """Take note of how many trials have ended; returns at once."""
        if trials != self._ended:
            self._ended = trials
            self._news.set()

    def _follow(self) -> None:
        while not self._leave.is_set():
            self._news.wait()
            self._news.clear()
            if self._leave.is_set():
                return
            began = time.monotonic()
            try:
                record = read_sweep(self._directory)
                if record.series:
                    self._recorder.record(record)
            except Exception as error:  # the front at the end is what counts; the sweep must not die of a picture
                _LOG.warning("the front could not be drawn just now (%s); the sweep goes on", error)
            self._leave.wait(max(_PAUSE_SECONDS, _SHARE * (time.monotonic() - began)))

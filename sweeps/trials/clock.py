"""A clock for judging others' silence: it does not count the time in which its own process was stopped.

When everything on a machine is suspended together and wakes together, nobody was silent: without this, whoever wakes
first would take all others for dead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class AwakeClock:
    """Seconds of this process' life, as far as somebody looked at the clock often enough.

    Args:
        longest_gap: Seconds between two looks that count in full; of longer gaps, only so much counts. Somebody must
            therefore look more often than that.
        monotonic: The clock beneath.
    """

    def __init__(self, longest_gap: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._longest_gap, self._monotonic = longest_gap, monotonic
        self._lock = threading.Lock()
        self._seconds, self._looked = 0.0, monotonic()

    def now(self) -> float:
        """Return the seconds that have counted so far."""
        with self._lock:
            looked = self._monotonic()
            self._seconds += min(looked - self._looked, self._longest_gap)
            self._looked = looked
            return self._seconds

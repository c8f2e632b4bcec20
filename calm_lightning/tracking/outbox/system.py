"""What the machine was doing while a run trained: MLflow's own monitors, written to a file like every number.

A thread takes a sample every few seconds and appends it to `system.jsonl`; sending it is the mirror's work, so a store
that is away costs no sample. The names begin with `system/`, which the UI shows on a tab of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

from calm_lightning.tracking.entries import SYSTEM_NAME, JournalEntry, append_entries

_LOG = logging.getLogger(__name__)
EVERY_SECONDS = 10.0


class SystemMetrics:
    """Samples until it is stopped. Continues the file of a run that is continued.

    Args:
        run_dir: The run directory.
        every_seconds: Seconds between samples.
    """

    def __init__(self, run_dir: Path, every_seconds: float = EVERY_SECONDS) -> None:
        self._path = run_dir / SYSTEM_NAME
        self._every = every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="system-metrics", daemon=True)

    def start(self) -> SystemMetrics:
        """Start sampling; returns at once."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop sampling; what was sampled is in the file."""
        self._stop.set()
        self._thread.join(1.0)

    def _sample(self) -> None:
        try:
            monitors = _monitors()
            step = self._path.read_bytes().count(b"\n") if self._path.exists() else 0
            while not self._stop.wait(self._every):
                metrics: dict[str, float] = {}
                for monitor in monitors:
                    monitor.collect_metrics()
                    found = monitor.aggregate_metrics()
                    metrics |= {f"system/{name}": float(value) for name, value in found.items()}
                    monitor.clear_metrics()
                append_entries(self._path, [JournalEntry(step, round(time.time(), 3), metrics)])
                step += 1
        except Exception as error:  # a machine without counters, a full disk: a run needs none of this
            _LOG.warning("system metrics are not recorded any more (%s); training goes on", error)


def _monitors() -> list[Any]:
    """Return MLflow's monitors that work on this machine."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = []
    for monitor in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        make: Any = monitor
        try:
            monitors.append(make())
        except Exception as error:  # no NVIDIA driver, or no package to ask it with
            _LOG.debug("%s is left out: %s", monitor.__name__, error)
    return monitors

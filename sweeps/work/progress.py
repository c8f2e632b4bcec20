"""What a worker says of itself while it works: one small file, written whole, read by whoever shows the sweep."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from calm_lightning.errors import SweepError
from sweeps import artifacts
from sweeps.directory import WORKERS


@dataclass(frozen=True)
class Progress:
    """What a worker is doing.

    Attributes:
        name: The worker.
        place: Machine and process.
        trial: Number of its trial, None between trials.
        doing: Stage it trains, or "starting", "waiting", "left".
        run_dir: Run directory of that stage; "" where there is none.
        max_steps: Optimiser steps of that stage.
        before_flops: Training FLOPs that the trial's finished stages took.
        since: When it began this, unix seconds.
    """

    name: str
    place: str
    trial: int | None
    doing: str
    run_dir: str = ""
    max_steps: int = 0
    before_flops: float = 0.0
    since: float = 0.0


def tell(directory: Path, name: str, doing: str, trial: int | None = None, **more: object) -> None:
    """Write a worker's progress; it is only for show, so a disk that takes no more is none of its business.

    Args:
        directory: The sweep's directory.
        name: The worker.
        doing: See `Progress`.
        trial: See `Progress`.
        more: Further attributes of `Progress`.
    """
    place = f"{socket.gethostname()}:{os.getpid()}"
    values = {"name": name, "place": place, "trial": trial, "doing": doing, "since": time.time(), **more}
    with suppress(SweepError):
        artifacts.write_text(directory / WORKERS / f"{name}.json", json.dumps(values))


def read_progress(directory: Path) -> list[Progress]:
    """Return what all workers of a sweep said last, by name; a file that cannot be read is passed over."""
    found = []
    for path in sorted((directory / WORKERS).glob("*.json")):
        try:
            found.append(Progress(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            continue
    return found

"""What `calm sweep status` shows: a sweep once, or until it ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from sweeps.watch.observe import Observer

_EVERY_SECONDS = 1.0


def _observer(directory: Path) -> Observer:
    from sweeps.artifacts import CONFIG
    from sweeps.config import load_sweep
    from sweeps.directory import LEASES, read_session
    from sweeps.trials.leases import Leases
    from sweeps.trials.reading import open_trials
    from sweeps.watch.observe import Observer

    sweep, session = load_sweep(directory / CONFIG), read_session(directory)
    launch = sweep.launch
    leases = Leases(directory / LEASES, "observer", launch.beat_seconds, launch.dead_after_seconds)
    return Observer(directory, sweep, session, open_trials(directory), leases)


def look_once(directory: Path, console: Console, states: Sequence[str], last: int | None, as_json: bool) -> None:
    """Print a sweep as it is now.

    Args:
        directory: The sweep's directory.
        console: Where to print.
        states: States of the trials to list; none lists all.
        last: List the last so many of them.
        as_json: Print the whole snapshot as JSON instead.
    """
    from sweeps.watch.status import Status, to_json

    snapshot = _observer(directory).look()
    if as_json:
        print(to_json(snapshot))
    else:
        console.print(Status(snapshot, tuple(states), last))


def follow(directory: Path, console: Console) -> None:
    """Show a sweep until it has ended; Ctrl-C leaves it alone."""
    from sweeps.watch.display import make_display

    observer, display = _observer(directory), make_display(console, plain=False)
    snapshot = None
    try:
        while True:
            snapshot = observer.look()
            display.update(snapshot)
            if snapshot.ended >= snapshot.planned:
                break
            time.sleep(_EVERY_SECONDS)
    except KeyboardInterrupt:
        pass
    finally:
        display.close(snapshot)

"""What the store has not got of a sweep that has ended is sent before the coordinator leaves, as far as it takes it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from calm_lightning.tracking.outbox.outbox import unsent
from calm_lightning.tracking.outbox.sending import send_all
from sweeps.recording.parent import study_identity, sweep_place


def deliver(directory: Path, console: Console) -> int:
    """Send the outboxes of a sweep's runs that are waiting; a store that takes nothing is left at the first refusal.

    Args:
        directory: The sweep's directory.
        console: Where it is said what stays behind.

    Returns:
        How many stay behind.
    """
    place, identity = sweep_place(directory), study_identity(directory.name)
    waiting = [one for one in unsent(place.work_dir) if one.parent == identity or one.directory == place.directory]
    for number, sent in enumerate(send_all(waiting)):
        if sent.problem:
            left = len(waiting) - number
            console.print(
                f"MLflow has not got {left} of the runs ({sent.problem}): calm runs send --work-dir {place.work_dir}",
                style="yellow",
                highlight=False,
                soft_wrap=True,
            )
            return left
    return 0

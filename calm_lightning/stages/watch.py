"""Somebody who watches a run and may stop it between two steps: a sweep that prunes, a worker that has to leave.

A run that is stopped keeps its checkpoint: executing the same configuration continues it, as after a kill, but from the
very step at which it was stopped. Knows no torch: who watches need not have it.
"""

from __future__ import annotations

from typing import Protocol


class RunStopped(Exception):  # noqa: N818 - like StopIteration, it is no error
    """A run was stopped by who watched it; its place is saved.

    Attributes:
        mlflow_run_id: Where MLflow has the run, if it does.
    """

    mlflow_run_id: str | None = None


class Watch(Protocol):
    """What a run asks of its watcher."""

    def interrupted(self) -> bool:
        """Return whether the run shall stop; asked after every optimiser step, so it must answer at once."""

    def evaluated(self, step: int) -> None:
        """Take note of an evaluation during training, which the journal has by now.

        Args:
            step: Optimiser steps trained.

        Raises:
            RunStopped: The run shall stop; its checkpoint at this step is written.
        """

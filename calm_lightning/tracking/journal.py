"""MetricsJournal: the Lightning logger that writes the truth of a run to its run directory.

Every other record (MLflow, tables, figures) is made from this file and can be made again. A line is flushed to
the operating system as it is logged, so `kill -9` loses nothing; it is not fsynced, so a power cut may cost the
last lines, which the resumed run logs again.
"""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Mapping
from io import BufferedWriter
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from calm_lightning.errors import TrackingError
from calm_lightning.tracking.entries import JOURNAL_NAME, JournalEntry, by_step, decode_lines, encode, read_journal

__all__ = ["JOURNAL_NAME", "JournalEntry", "MetricsJournal", "by_step", "read_journal"]

_NOT_METRICS = frozenset({"epoch"})  # Lightning adds it to every call; a stream of tokens has no epochs


class MetricsJournal(Logger):
    """Appends one JSON line per `log_metrics` call to `metrics.jsonl` (rank 0 only).

    Args:
        run_dir: The run directory; made if it is missing.
    """

    def __init__(self, run_dir: str | Path) -> None:
        super().__init__()
        self._run_dir = Path(run_dir)
        self._file: BufferedWriter | None = None
        self._step = 0

    @property
    def path(self) -> Path:
        """The journal's file."""
        return self._run_dir / JOURNAL_NAME

    @property
    def name(self) -> str:
        """The run directory's name, as Lightning asks of a logger."""
        return self._run_dir.name

    @property
    def version(self) -> str:
        """Empty: a run directory holds one journal."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run directory."""
        return str(self._run_dir)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append one line.

        Args:
            metrics: Numbers or one-element tensors by name; Lightning's "epoch" is dropped.
            step: Optimiser steps trained; None repeats the last step.

        Raises:
            TrackingError: The file cannot be written, for example because the disk is full.
        """
        values = {name: float(value) for name, value in metrics.items() if name not in _NOT_METRICS}
        if not values:
            return
        self._step = self._step if step is None else int(step)
        line = encode(JournalEntry(self._step, round(time.time(), 3), values)).encode()
        try:
            file = self._open()
            file.write(line)
            file.flush()
        except OSError as error:
            self._abandon()
            raise TrackingError(
                f"{self.path} cannot be written: {error.strerror}; make room and run the same command again to continue"
            ) from None

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run directory's config.yaml holds the configuration."""

    @rank_zero_only
    def rewind(self, step: int) -> int:
        """Drop all lines of later steps and a torn last line, atomically.

        A run that resumes from a checkpoint at `step` trains the later steps again; without this they would be
        in the journal twice.

        Args:
            step: Optimiser steps of the checkpoint; -1 empties the journal.

        Returns:
            Number of entries dropped.

        Raises:
            TrackingError: The journal is damaged or cannot be rewritten.
        """
        self.finalize("rewind")
        if not self.path.exists():
            return 0
        content = self.path.read_bytes()
        entries = decode_lines(content, self.path)
        kept = [entry for entry in entries if entry.step <= step]
        self._step = kept[-1].step if kept else 0
        if len(kept) == len(entries) and content.endswith(b"\n"):
            return 0
        scratch = self.path.with_suffix(".jsonl.tmp")
        try:
            with scratch.open("wb") as file:
                file.write("".join(map(encode, kept)).encode())
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, self.path)
        except OSError as error:
            scratch.unlink(missing_ok=True)
            raise TrackingError(f"{self.path} cannot be rewritten: {error.strerror}") from None
        return len(entries) - len(kept)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file; a later `log_metrics` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> BufferedWriter:
        """Return the file opened for appending, its torn last line (left by a kill) cut off."""
        if self._file is None:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            content = self.path.read_bytes()
            self._file.truncate(content.rfind(b"\n") + 1)
        return self._file

    def _abandon(self) -> None:
        """Forget a file whose buffered bytes could not be written, without trying to write them again."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                return

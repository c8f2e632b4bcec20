"""The on-disk form of a run's metrics: one JSON object per line, torch-free to read.

A line is `{"step": int, "time": unix seconds, "metrics": {name: value}}`. JSON has no NaN and no infinities, so
these are written as the strings "nan", "inf" and "-inf": the line stays strict JSON for every reader and the
value is not lost. The file is appended to and never seeked into; a process that dies while writing leaves at
most one torn last line, which readers skip and the next writer removes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calm_lightning.errors import TrackingError

JOURNAL_NAME = "metrics.jsonl"
SYSTEM_NAME = "system.jsonl"
"""The same form, for what the machine was doing; its steps count samples."""


@dataclass(frozen=True)
class JournalEntry:
    """What one `log_metrics` call recorded.

    Attributes:
        step: Optimiser steps trained.
        time: When it was recorded, unix seconds.
        metrics: Values by name (`calm_lightning.metrics.names`).
    """

    step: int
    time: float
    metrics: dict[str, float]


def encode(entry: JournalEntry) -> str:
    """Return the entry as one line of strict JSON, newline included."""
    metrics = {name: value if math.isfinite(value) else str(value) for name, value in entry.metrics.items()}
    return json.dumps({"step": entry.step, "time": entry.time, "metrics": metrics}, allow_nan=False) + "\n"


def decode(line: bytes) -> JournalEntry:
    """Return the entry that a line holds.

    Raises:
        ValueError: The line is not an entry.
    """
    value: Any = json.loads(line)
    try:
        metrics = {str(name): float(number) for name, number in value["metrics"].items()}
        return JournalEntry(int(value["step"]), float(value["time"]), metrics)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a journal entry: {error}") from None


def decode_lines(content: bytes, source: Path) -> list[JournalEntry]:
    """Return the entries of complete lines; an unfinished last line is skipped.

    Args:
        content: Bytes of a journal, from the start of a line.
        source: The file, for the error message.

    Raises:
        TrackingError: A complete line is not an entry.
    """
    entries = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            entries.append(decode(line))
        except ValueError:
            raise TrackingError(
                f"{source} line {number} is not a metrics entry: the file was edited or damaged; "
                "delete that line, or delete the run directory to train the run anew"
            ) from None
    return entries


def read_journal(run_dir: Path) -> list[JournalEntry]:
    """Return the entries of a run in the order in which they were logged; none where there is no journal.

    Args:
        run_dir: The run directory.

    Raises:
        TrackingError: The journal is damaged or cannot be read.
    """
    path = Path(run_dir) / JOURNAL_NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise TrackingError(f"{path} cannot be read: {error.strerror}") from None
    return decode_lines(content, path)


def by_step(entries: Iterable[JournalEntry]) -> dict[int, Mapping[str, float]]:
    """Return all metrics of each step, steps ascending; the last value wins where a name was logged twice.

    Several calls may log the same step (the loss and an evaluation); an evaluation is complete only together.
    """
    merged: dict[int, dict[str, float]] = {}
    for entry in entries:
        merged.setdefault(entry.step, {}).update(entry.metrics)
    return {step: merged[step] for step in sorted(merged)}


def append_entries(path: Path, entries: Sequence[JournalEntry]) -> None:
    """Append entries to a file, after cutting off a last line that a killed process left torn.

    Args:
        path: The file; made where there is none.
        entries: What to append.

    Raises:
        OSError: The file cannot be written.
    """
    with path.open("ab+") as file:
        if file.tell() and file.seek(-1, os.SEEK_END) is not None and file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write("".join(map(encode, entries)).encode())

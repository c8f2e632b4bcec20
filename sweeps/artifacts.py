"""Files of a sweep: their names, and writing them whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from calm_lightning.errors import SweepError

FIGURE = "front.png"
PAGE = "front.html"
POINTS = "points.csv"
SUMMARY = "summary.md"
CONFIG = "sweep.yaml"


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file through a temporary name in the same directory.

    Args:
        path: The file.
        write: Called with the temporary path; it writes the content there.

    Returns:
        `path`.

    Raises:
        SweepError: The directory cannot be written to, for example because the disk is full.
    """
    scratch = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(scratch)
        os.replace(scratch, path)
    except OSError as error:
        raise SweepError(f"{path} cannot be written: {error.strerror}; make room and run the command again") from error
    finally:
        scratch.unlink(missing_ok=True)
    return path


def clear_partial(directory: Path) -> None:
    """Remove what a process that was killed while it wrote left behind; only for who alone writes there."""
    for path in directory.glob(".*.partial*"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write a text file, whole or not at all.

    Raises:
        SweepError: As `write_whole`.
    """
    return write_whole(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))

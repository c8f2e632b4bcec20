"""The page as a file: whole or not at all, and never in the place of something else."""

from __future__ import annotations

import os
from pathlib import Path

from calm_lightning.errors import SweepError
from sweeps.artifacts import write_whole
from sweeps.report.sources.report import Report
from sweeps.report.web.page import GENERATOR, write_page

_HEAD_BYTES = 4096


def check_place(place: Path) -> None:
    """Refuse a place for the page before anything is computed.

    Args:
        place: The file.

    Raises:
        SweepError: It is a directory, another file than an earlier page, or cannot be written to.
    """
    if place.is_dir():
        raise SweepError(f"--out {place} is a directory: name the file, for example {place / 'report.html'}")
    parent = next(folder for folder in place.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise SweepError(f"--out {place}: {parent} is no directory that can be written to")
    if place.exists() and not _is_page(place):
        raise SweepError(f"--out {place} exists and is no report of calm: name another file, or move that one away")


def _is_page(place: Path) -> bool:
    try:
        with place.open("rb") as file:
            return GENERATOR.encode() in file.read(_HEAD_BYTES)
    except OSError:
        return False


def save_page(report: Report, place: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        SweepError: The directory cannot be written to.
    """
    write_whole(place, lambda scratch: write_page(scratch, report))

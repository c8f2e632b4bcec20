"""All files of a report, written together: either every one of them is new, or none is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from calm_lightning.errors import SweepError
from sweeps.report.exporting import evaluations_frame, trials_frame, write_frame
from sweeps.report.findings import Findings
from sweeps.report.png.front import draw_front
from sweeps.report.png.history import draw_history
from sweeps.report.png.importance import draw_importance
from sweeps.report.png.parallel import draw_parallel
from sweeps.report.png.slices import draw_slices
from sweeps.report.sources.material import read_sweeps
from sweeps.report.sources.report import make_report
from sweeps.report.web.page import write_page
from sweeps.report.words import budget_line, report_command

PAGE = "report.html"
FIGURES = {
    "front.png": draw_front,
    "history.png": draw_history,
    "slices.png": draw_slices,
    "importance.png": draw_importance,
    "parallel.png": draw_parallel,
}
TABLES = {"evaluations": evaluations_frame, "trials": trials_frame}


def default_place(directories: Sequence[Path]) -> Path:
    """Return where a report on some sweeps goes unless it is told.

    Raises:
        SweepError: There are several sweeps, so that none of their directories is its place.
    """
    if len(directories) > 1:
        raise SweepError("a report on several sweeps has no place of its own: add --out DIRECTORY")
    return directories[0] / "report"


def write_report(findings: Findings, place: Path, out: Path | None = None) -> list[Path]:
    """Write page, figures and tables.

    They are made in a directory beside the place and moved when all are there.

    Args:
        findings: What the sweep shows.
        place: Directory of the report.
        out: `place` if it was asked for, for the command in the page.

    Returns:
        Their paths, the page first.

    Raises:
        SweepError: The directory cannot be written to.
    """
    scratch = place.with_name(f".{place.name}.partial-{os.getpid()}")
    line = budget_line(findings)
    material = read_sweeps(findings.gathered.records)
    page = make_report(material, report_command(findings.gathered, out), findings=findings)
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        write_page(scratch / PAGE, page)
        for name, draw in FIGURES.items():
            draw(scratch / name, findings, line)
        for name, frame_of in TABLES.items():
            frame = frame_of(findings.gathered)
            for ending in (".csv", ".parquet"):
                write_frame(frame, scratch / f"{name}{ending}")
        place.mkdir(parents=True, exist_ok=True)
        names = [PAGE, *FIGURES, *(f"{name}{ending}" for name in TABLES for ending in (".csv", ".parquet"))]
        for name in names:
            os.replace(scratch / name, place / name)
    except OSError as error:
        raise SweepError(f"{place} cannot be written: {error.strerror}; make room and run the command again") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [place / name for name in names]

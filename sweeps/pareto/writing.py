"""Files of fronts and comparisons, each whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sweeps.artifacts import write_text, write_whole
from sweeps.pareto.chosen import Chosen
from sweeps.pareto.comparing import Comparison, comparison_json
from sweeps.pareto.fronts import Fronts, front_json
from sweeps.pareto.page import write_comparison_page, write_front_page
from sweeps.pareto.png import draw_comparison
from sweeps.report.exporting import evaluations_frame, write_frame
from sweeps.report.findings import find
from sweeps.report.png.front import draw_front


def write_fronts(fronts: Fronts, place: Path, command: str) -> list[Path]:
    """Write front.png, front.html, front.csv (every evaluation) and front.json.

    Args:
        fronts: The fronts.
        place: The directory; made where there is none.
        command: What makes them again.

    Returns:
        Their paths.

    Raises:
        SweepError: The directory cannot be written to.
    """
    findings = find(fronts.chosen, importance=False)
    return [
        write_whole(place / "front.png", lambda path: draw_front(path, findings, fronts.chosen.line())),
        write_whole(place / "front.html", lambda path: write_front_page(path, fronts, findings, command)),
        write_frame(_frame(fronts.chosen), place / "front.csv"),
        _write_json(place / "front.json", front_json(fronts)),
    ]


def write_comparison(found: Comparison, place: Path, legend: Sequence[str], command: str) -> list[Path]:
    """Write compare.png, compare.html, compare.csv (every evaluation) and compare.json.

    Args:
        found: The comparison.
        place: The directory; made where there is none.
        legend: What the two names stand for.
        command: What makes them again.

    Returns:
        Their paths.

    Raises:
        SweepError: The directory cannot be written to.
    """
    frames = []
    for name, fronts in zip(found.names, found.fronts, strict=True):
        frame = _frame(fronts.chosen)
        frame.insert(0, "set", name)
        frames.append(frame)
    return [
        write_whole(place / "compare.png", lambda path: draw_comparison(path, found, legend)),
        write_whole(place / "compare.html", lambda path: write_comparison_page(path, found, legend, command)),
        write_frame(pd.concat(frames, ignore_index=True), place / "compare.csv"),
        _write_json(place / "compare.json", comparison_json(found)),
    ]


def _frame(chosen: Chosen) -> pd.DataFrame:
    """Return one row for each evaluation, with the store of its run."""
    frame = evaluations_frame(chosen)
    stores = {run.run_id: run.uri for run in chosen.runs}
    frame["store"] = [stores[run_id] for run_id in frame["mlflow_run_id"]]
    return frame


def _write_json(path: Path, value: dict[str, Any]) -> Path:
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

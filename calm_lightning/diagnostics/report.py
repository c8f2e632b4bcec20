"""What a diagnosis found: numbers in one shape for files and figures, a short table and sentences for people.

One row per number keeps JSON, CSV and figures the same data; the price is that a table is chosen by hand.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calm_lightning.metrics.resampling import mean_errors, sum_by_key

TRUE_TEXT = "true text"
"""Name of the series that a model's own are held against."""


@dataclass(frozen=True)
class Row:
    """One number.

    Attributes:
        diagnosis: The diagnosis it is of.
        series: What was measured, for example "true text" or "CALM T=0.5".
        measure: What was measured of it, unit included where it has one.
        x_name: What it is a function of, or "".
        x: Where, or None.
        value: The number.
        standard_error: Its standard error, or None where it is not known.
    """

    diagnosis: str
    series: str
    measure: str
    x_name: str
    x: float | None
    value: float
    standard_error: float | None = None


@dataclass(frozen=True)
class Finding:
    """A diagnosis.

    Attributes:
        name: Its short name.
        title: The question it answers.
        rows: All its numbers.
        head: Column names of its table.
        table: The cells.
        says: What was found.
        limits: What that does not show.
        marks: Positions that its figure marks, by what they are.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    head: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]
    says: str
    limits: str
    marks: Mapping[str, float]

    def select(self, measure: str, series: str | None = None) -> list[Row]:
        """Return the rows of a measure (and a series), in order."""
        return [row for row in self.rows if row.measure == measure and series in (None, row.series)]

    def series(self, measure: str) -> list[str]:
        """Return the series that have a measure, in order."""
        return list(dict.fromkeys(row.series for row in self.rows if row.measure == measure))

    def value(self, measure: str, series: str, x: float | None = None) -> float:
        """Return one number; that of the first row where no x is given."""
        return next(row.value for row in self.select(measure, series) if x is None or row.x == x)


def grouped_mean(values_P: Tensor, group_P: Tensor) -> tuple[float, float]:
    """Return the mean of values (P,) and its standard error, where values of one group (P,) depend on one another."""
    values_P1 = values_P.detach().double().cpu().unsqueeze(1)
    sums_G2 = sum_by_key(torch.cat((values_P1, torch.ones_like(values_P1)), dim=1), group_P.cpu())
    return float(values_P1.mean()), float(mean_errors(sums_G2[:, :1], sums_G2[:, 1])[0])


def percent(value: float, digits: int = 2) -> str:
    """Return a fraction as a percentage, for sentences."""
    return f"{100 * value:.{digits}f} %"


def cell(value: float, digits: int = 2) -> str:
    """Return a fraction in percent without the sign, for columns whose head says so."""
    return f"{100 * value:.{digits}f}"


def finite(value: float | None) -> float | None:
    """Return a number, or None where it is infinite, undefined or absent."""
    return value if value is not None and math.isfinite(value) else None


def to_dict(findings: Sequence[Finding], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return findings as values that JSON knows.

    Args:
        findings: The diagnoses.
        settings: How they were made: model, text, seed and so on.
    """
    return {
        "settings": dict(settings),
        "findings": [
            {
                "name": one.name,
                "title": one.title,
                "says": one.says,
                "limits": one.limits,
                "marks": dict(one.marks),
                "rows": [_plain(row) for row in one.rows],
            }
            for one in findings
        ],
    }


def _plain(row: Row) -> dict[str, Any]:
    numbers = {"value": finite(row.value), "standard_error": finite(row.standard_error)}
    return {**asdict(row), **numbers}


def write_files(directory: Path, findings: Sequence[Finding], settings: Mapping[str, Any]) -> list[Path]:
    """Write diagnosis.json and rows.csv, each whole or not at all.

    Args:
        directory: Where; made if it is not there.
        findings: The diagnoses.
        settings: How they were made.

    Returns:
        The files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_dict(findings, settings), indent=2, ensure_ascii=False) + "\n"
    table = io.StringIO()
    writer = csv.DictWriter(table, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_plain(row) for one in findings for row in one.rows)
    return list(_write({directory / "diagnosis.json": text, directory / "rows.csv": table.getvalue()}))


def _write(texts: Mapping[Path, str]) -> Iterator[Path]:
    for path, text in texts.items():
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            scratch.write_text(text, encoding="utf-8")
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
        yield path

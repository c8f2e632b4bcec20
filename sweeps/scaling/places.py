"""Sweep directories and tables of evaluations -> series, as long as their scores can be compared."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from calm_lightning.errors import SweepError
from calm_lightning.metrics.names import ScorePoint
from sweeps.front.series import COMPLETE, Series
from sweeps.trials.reading import read_sweep

Read = TypeVar("Read")
_PROTOCOL = ("name", "block_tokens", "start_stride", "corpus", "split", "tokenizer")
"""What must be the same for scores to be comparable; the number of samples moves their errors only."""


def read_places(places: Sequence[Path]) -> list[Series]:
    """Return the trials of several sweeps.

    Args:
        places: Directories of sweeps, or files in the columns of a sweep's `points.csv`.

    Raises:
        SweepError: A place cannot be read, or two runs were scored by different protocols.
    """
    series: list[Series] = []
    for place in places:
        if place.is_dir():
            series += read_sweep(place).series
        elif place.is_file():
            series += read_points(place)
        else:
            raise SweepError(f"{place} does not exist: name the directory of a sweep, or its points.csv")
    _check_protocols(series)
    return series


def read_points(path: Path) -> list[Series]:
    """Return the trials of a table of evaluations, one row each, the rows of a trial together.

    Needed are the columns model, stage, K, parameters, step, train_flops, brier_lm and brier_lm_se; what else
    `points.csv` has is read where it is there. A trial is a model in a run directory.

    Args:
        path: A CSV file.

    Raises:
        SweepError: It is not such a table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SweepError(f"{path} cannot be read as a table of evaluations: {error}") from None
    found = []
    for _, group in groupby(enumerate(rows, start=2), key=lambda row: (row[1].get("model"), row[1].get("run_dir"))):
        found.append(_trial(path, list(group)))
    return found


def _trial(path: Path, rows: Sequence[tuple[int, dict[str, str]]]) -> Series:
    """Return one trial.

    Raises:
        SweepError: A column is missing or a value is no number.
    """
    points = [_read(path, line, partial(_point, row)) for line, row in rows]
    line, first = rows[0]
    return _read(path, line, partial(_series, first, points))


def _read(path: Path, line: int, read: Callable[[], Read]) -> Read:
    """Return what is read from a line.

    Raises:
        SweepError: A column is missing or a value is no number.
    """
    try:
        return read()
    except KeyError as error:
        raise SweepError(f"{path} has no column {error}: give the columns of a sweep's points.csv") from None
    except (TypeError, ValueError) as error:
        raise SweepError(f"{path}, line {line}: {error}; give the columns of a sweep's points.csv") from None


def _series(first: dict[str, str], points: Sequence[ScorePoint]) -> Series:
    if first["stage"] not in ("calm", "baseline"):
        raise ValueError(f"stage {first['stage']!r} is neither calm nor baseline")
    return Series(
        label=first["model"],
        stage=first["stage"],
        values={"model.K": int(first["K"])} if first["K"] else {},
        parameters=int(first["parameters"]),
        points=tuple(sorted(points, key=lambda point: point.step)),
        run_dir=first.get("run_dir") or "",
        autoencoder_dir=first.get("autoencoder_dir") or "",
        mlflow_run_id=first.get("mlflow_run_id") or None,
        text="",
        state=first.get("state") or COMPLETE,
    )


def _point(row: dict[str, str]) -> ScorePoint:
    def number(name: str, otherwise: float = math.nan) -> float:
        return float(row[name]) if row.get(name) else otherwise

    cost, score, error = (float(row[name]) for name in ("train_flops", "brier_lm", "brier_lm_se"))
    one, two, three, four = (number(f"brier_{n}") for n in range(1, 5))
    errors = [number(f"brier_{n}_se") for n in range(1, 5)]
    return ScorePoint(
        step=int(row["step"]),
        train_flops=cost,
        stage_train_flops=number("stage_train_flops", cost),
        inference_flops_per_token=number("inference_flops_per_token"),
        text_tokens=number("text_tokens"),
        seconds=number("seconds"),
        brier_lm=score,
        brier_lm_se=error,
        brier_lm_low=number("brier_lm_low"),
        brier_lm_high=number("brier_lm_high"),
        brier=(one, two, three, four),
        brier_se=(errors[0], errors[1], errors[2], errors[3]),
    )


def _check_protocols(series: Sequence[Series]) -> None:
    """Check that all runs that can still be asked were scored alike.

    Raises:
        SweepError: Two of them were not.
    """
    first: tuple[str, dict[str, object]] | None = None
    for one in series:
        protocol = _protocol(one)
        if protocol is None:
            continue
        if first is None:
            first = one.label, protocol
        for name in _PROTOCOL:
            if protocol.get(name) != first[1].get(name):
                raise SweepError(
                    f"scores of {first[0]} and {one.label} cannot be compared: {name} is {first[1].get(name)} and "
                    f"{protocol.get(name)}; give sweeps that were scored alike"
                )


def _protocol(one: Series) -> dict[str, object] | None:
    """Return how a run was scored, None where its directory does not say."""
    path = Path(one.run_dir) / "result.json"
    if not one.run_dir or not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("protocol")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, dict) else None

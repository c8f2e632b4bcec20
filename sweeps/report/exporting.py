"""Evaluations and trials as tables for other programs: CSV, Parquet, JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from calm_lightning.errors import SweepError
from sweeps.artifacts import write_whole
from sweeps.front.series import SETTINGS, Series, front_points
from sweeps.report.frontier import model_front
from sweeps.report.gathering import Gathered

FORMATS = (".csv", ".parquet", ".jsonl")
_NUMBERS = ("step", "train_flops", "stage_train_flops", "inference_flops_per_token", "text_tokens", "seconds")
_SCORES = ("brier_lm", "brier_lm_se", "brier_lm_low", "brier_lm_high")


def evaluations_frame(gathered: Gathered) -> pd.DataFrame:
    """Return one row for each evaluation, the untrained ones included.

    Columns: sweep, trial, slug, model, seed, state, stage, every swept key and every setting by its name, parameters,
    what `ScorePoint` holds, and three marks: `on_front` (front of all evaluations of single runs),
    `on_inference_front` (of their last ones), `on_model_front` (its model's mean is on the front of models there).
    """
    on_front = {(one.slug, one.seed, point.step) for one, point in front_points(gathered.series)}
    on_inference = {(one.slug, one.seed, point.step) for one, point in front_points(gathered.series, inference=True)}
    on_models = {(model.slug, point.step) for model, point in model_front(gathered.models)}
    keys = _keys(gathered.series)
    rows = []
    for one, sweep in zip(gathered.series, gathered.sweeps, strict=True):
        head = _head(one, sweep, keys)
        for point in one.points:
            row = head | {name: getattr(point, name) for name in (*_NUMBERS, *_SCORES)}
            for n in range(4):
                row |= {f"brier_{n + 1}": point.brier[n], f"brier_{n + 1}_se": point.brier_se[n]}
            place = (one.slug, one.seed, point.step)
            row |= {
                "on_front": place in on_front,
                "on_inference_front": place in on_inference,
                "on_model_front": (one.slug, point.step) in on_models,
            }
            rows.append(row | _tail(one))
    return _frame(rows)


def trials_frame(gathered: Gathered) -> pd.DataFrame:
    """Return one row for each trial with its last evaluation; failed trials have their reason and no numbers."""
    keys = _keys(gathered.series)
    rows = []
    for one, sweep in zip(gathered.series, gathered.sweeps, strict=True):
        row = _head(one, sweep, keys) | {"evaluations": len(one.points), "reason": one.reason}
        row |= {name: getattr(one.final, name) for name in (*_NUMBERS, *_SCORES)}
        row["finished"] = one.finished
        rows.append(row | _tail(one))
    for mark, record in zip(gathered.marks, gathered.records, strict=True):
        for failure in record.failures:
            rows.append(
                {
                    "sweep": record.study,
                    "trial": failure.trial,
                    "model": f"{mark}{failure.label}",
                    "seed": failure.seed,
                    "state": "failed",
                    "reason": failure.reason,
                }
            )
    return _frame(rows).sort_values(["sweep", "trial"], kind="stable", ignore_index=True)


def _keys(series: Sequence[Series]) -> list[str]:
    """Return the swept keys and then the settings that some series has."""
    swept = dict.fromkeys(key for one in series for key in one.values if key != "stage")
    return [*swept, *(key for key in SETTINGS if key not in swept and any(key in one.settings for one in series))]


def _head(one: Series, sweep: str, keys: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "sweep": sweep,
        "trial": one.trial,
        "slug": one.slug,
        "model": one.label,
        "seed": one.seed,
        "state": one.state,
        "stage": one.stage,
    }
    return row | {key: one.setting(key) for key in keys} | {"parameters": one.parameters}


def _tail(one: Series) -> dict[str, Any]:
    return {"run_dir": one.run_dir, "autoencoder_dir": one.autoencoder_dir, "mlflow_run_id": one.mlflow_run_id}


def _frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return rows as columns of one type each: whole numbers stay whole although some are missing."""
    frame = pd.DataFrame(list(rows))
    for name in frame.columns:
        frame[name] = _column([row.get(name) for row in rows])
    return frame


def _column(values: Sequence[Any]) -> Any:
    """Return values as a column: booleans, whole numbers, numbers or, where kinds are mixed, text."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, bool) for value in known):
        return pd.array(values, dtype="boolean")
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known)
    if known and numbers:
        if all(isinstance(value, int) for value in known):
            return pd.array(values, dtype="Int64")
        return pd.array([math.nan if value is None else float(value) for value in values], dtype="float64")
    texts = [
        value if value is None or isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)
        for value in values
    ]
    return pd.array(texts, dtype="string")


def write_frame(frame: pd.DataFrame, path: Path) -> Path:
    """Write a table whole or not at all, in the format of the path's ending, numbers in full precision.

    Args:
        frame: The table.
        path: A file that ends in .csv, .parquet or .jsonl.

    Raises:
        SweepError: The ending is another one, or the file cannot be written.
    """
    check_format(path)
    writers = {
        ".csv": lambda place: frame.to_csv(place, index=False),
        ".parquet": lambda place: frame.to_parquet(place, index=False, engine="pyarrow"),
        ".jsonl": lambda place: place.write_text(_lines(frame), encoding="utf-8"),
    }
    return write_whole(path, writers[path.suffix])


def check_format(path: Path) -> None:
    """Check the ending of a file.

    Raises:
        SweepError: It is not one of `FORMATS`.
    """
    if path.suffix not in FORMATS:
        raise SweepError(f"{path} must end in one of {', '.join(FORMATS)}: the ending says in which format to write")


def _lines(frame: pd.DataFrame) -> str:
    """Return one JSON object per row; what is missing is null."""
    rows = []
    for record in frame.to_dict(orient="records"):
        plain = {str(name): None if pd.isna(value) else value for name, value in record.items()}
        rows.append(json.dumps(plain, ensure_ascii=False))
    return "".join(f"{row}\n" for row in rows)

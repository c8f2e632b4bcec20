"""Statistics of the store: they change how a metric of many runs is looked up, and never get in anybody's way."""

from __future__ import annotations

import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("mlflow")

from calm_lightning.tracking.reading.places import find_place, open_place
from calm_lightning.tracking.serving.sqlite_statistics import refresh_statistics

RUNS, POINTS = 300, 20
QUESTION = "SELECT * FROM metrics WHERE key = 'val/brier_lm' AND run_uuid IN (?, ?, ?) ORDER BY run_uuid, step"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with many runs, written directly: only the tables count here."""
    folder = tmp_path_factory.mktemp("project")
    open_place(find_place(folder), make=True)
    path = folder / "mlruns" / "mlflow.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        for _ in range(RUNS):
            run = uuid.uuid4().hex
            connection.execute(
                "INSERT INTO runs (run_uuid, experiment_id, lifecycle_stage) VALUES (?, 0, 'active')", [run]
            )
            values = [(name, 1.0, 0, step, run, 0) for name in ("val/brier_lm", "train/loss") for step in range(POINTS)]
            connection.executemany(
                "INSERT INTO metrics (key, value, timestamp, step, run_uuid, is_nan) VALUES (?, ?, ?, ?, ?, ?)", values
            )
    return path


def plan(database: Path) -> str:
    with closing(sqlite3.connect(database)) as connection:
        return str(connection.execute(f"EXPLAIN QUERY PLAN {QUESTION}", ["a", "b", "c"]).fetchall())


def test_metrics_are_looked_up_by_run(database: Path) -> None:
    assert "run_uuid=?" not in plan(database)
    assert refresh_statistics(database)
    assert "run_uuid=? AND key=?" in plan(database)


def test_a_store_that_is_being_written_to_is_left_alone(database: Path) -> None:
    with closing(sqlite3.connect(database)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert not refresh_statistics(database)
        writer.rollback()
    assert refresh_statistics(database)


def test_no_store_is_made_where_there_is_none(tmp_path: Path) -> None:
    assert not refresh_statistics(tmp_path / "mlflow.db")
    assert not list(tmp_path.iterdir())


def test_what_is_no_database_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_text("not a database, but long enough to be taken for one" * 100)
    before = path.read_bytes()
    assert not refresh_statistics(path)
    assert path.read_bytes() == before

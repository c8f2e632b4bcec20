"""Statistics for SQLite's query planner, without which the MLflow UI's charts slow down as a store grows.

MLflow asks for one metric of a hundred runs at once. Not knowing how many values a metric has, SQLite reads those of
all runs of the store and throws most of them away; with statistics it looks them up run by run.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

_ROWS_LOOKED_AT = 1000
"""Of each index: milliseconds in a store of any size."""
_PATIENCE_SECONDS = 1.0


def refresh_statistics(database: Path) -> bool:
    """Have SQLite count what is in a store's tables.

    Args:
        database: The store's file.

    Returns:
        Whether it did; not where the file cannot be written or a run holds it: the UI is slower then, nothing else.
    """
    try:
        with closing(
            sqlite3.connect(f"{database.resolve().as_uri()}?mode=rw", _PATIENCE_SECONDS, uri=True)
        ) as connection:
            connection.execute(f"PRAGMA analysis_limit = {_ROWS_LOOKED_AT}")
            connection.execute("ANALYZE")
            connection.commit()
    except sqlite3.Error:
        return False
    return True

"""A sweep's results in MLflow: numbers, files and description on the parent run, the front on its children."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calm_lightning.tracking.parent import ParentRun
from sweeps import artifacts
from sweeps.front.series import front_points
from sweeps.report.tables import front_numbers
from sweeps.trials.reading import SweepRecord


def record_results(parent: ParentRun, record: SweepRecord, files: Sequence[Path]) -> None:
    """Log a finished sweep to its parent run.

    Args:
        parent: The parent run.
        record: The sweep.
        files: Its figures and tables.
    """
    parent.log_metrics(front_numbers(record.series))
    parent.log_files([*files, record.directory / artifacts.CONFIG])
    parent.describe((record.directory / artifacts.SUMMARY).read_text(encoding="utf-8"))
    on_front = {one.trial for one, _ in front_points(record.series)}
    for one in record.series:
        if one.mlflow_run_id:
            tags = {"pareto": "front" if one.trial in on_front else "dominated", "calm.state": one.state}
            if one.reason:
                tags["calm.reason"] = one.reason
            parent.tag_child(one.mlflow_run_id, tags)
    parent.finish()

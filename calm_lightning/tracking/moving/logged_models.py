"""Copies of logged models: their files, their numbers, their status.

A model's description, `MLmodel`, names the model and the run that made it; the copy's names the copies. The ids are of
one length, so the sizes of files stay comparable.
"""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath

from calm_lightning.tracking.moving.destination import Destination
from calm_lightning.tracking.moving.records import Folder, ModelRecord, RunSource
from calm_lightning.tracking.reading.places import answering

_DESCRIPTION = "MLmodel"
_METRICS = 1000  # in a batch, MLflow's own limit


def fill_model(source: RunSource, destination: Destination, model: ModelRecord) -> int:
    """Give the copy of a logged model what it lacks; its status comes last.

    Args:
        source: Where the model is read from.
        destination: Where its copy was begun.
        model: The model.

    Returns:
        The number of things that were missing.

    Raises:
        TrackingError: It cannot be read, or the store does not take it.
    """
    copy_id = destination.ids[model.model_id]
    with answering(destination.place):
        status = destination.client.get_logged_model(copy_id).status.value
    changes = 0
    if status != "READY":  # a model that is ready does not change
        with source.files(model.model_id) as folder:
            changes += _fill_files(destination, copy_id, folder)
    with answering(destination.place):
        changes += _fill_metrics(destination, model, copy_id)
        if status != model.status and (model.status == "READY" or model.status == "FAILED"):
            destination.client.finalize_logged_model(copy_id, model.status)
            changes += 1
    return changes


def _fill_files(destination: Destination, copy_id: str, folder: Folder) -> int:
    there = destination.files.listing(copy_id)
    missing = [file.path for file in folder.files if there.get(file.path) != file.size]
    described = [path for path in missing if PurePosixPath(path).name == _DESCRIPTION]
    with tempfile.TemporaryDirectory(prefix="calm-runs-") as scratch:
        for path in described:
            target = Path(scratch) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            text = (folder.root / path).read_text(encoding="utf-8", errors="surrogateescape")
            target.write_text(destination.translated(text), encoding="utf-8", errors="surrogateescape")
        destination.files.send(copy_id, folder.root, [path for path in missing if path not in described])
        destination.files.send(copy_id, Path(scratch), described)
    return len(missing)


def _fill_metrics(destination: Destination, model: ModelRecord, copy_id: str) -> int:
    """Log the numbers of a model that are missing, each by the copy of the run that had logged it."""
    from mlflow.entities import Metric

    there = destination.client.get_logged_model(copy_id).metrics or []
    known = {(one.key, one.step, one.timestamp, one.run_id) for one in there}
    waiting: dict[str, list[Metric]] = {}
    for one in model.metrics:
        run_id, (step, timestamp, value) = destination.ids.get(one.run_id or ""), one.point
        if run_id is not None and (one.key, step, timestamp, run_id) not in known:
            metric = Metric(
                one.key,
                value,
                timestamp,
                step,
                model_id=copy_id,
                dataset_name=one.dataset_name,
                dataset_digest=one.dataset_digest,
            )
            waiting.setdefault(run_id, []).append(metric)
    for run_id, metrics in waiting.items():
        for start in range(0, len(metrics), _METRICS):
            destination.client.log_batch(run_id, metrics=metrics[start : start + _METRICS])
    return sum(map(len, waiting.values()))

"""Trained models in MLflow: logged once each, loaded with `mlflow.pyfunc`, linked to the runs that made and used them.

A model is found again by its identity and the run that made it. It is begun (PENDING), filled, and only then READY: one
that a killed process left half filled is filled by the next. Only the client's calls are used, none of MLflow's global
state: this runs in a background thread of training.
"""

from __future__ import annotations

import fcntl
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from calm_lightning.tracking.entries import read_journal
from calm_lightning.tracking.models.directory import FinishedRun, model_bytes, read_finished, write_model
from calm_lightning.tracking.moving.run_files import RunFiles
from calm_lightning.tracking.reading.places import find_place
from calm_lightning.tracking.store import IDENTITY_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric

__all__ = ["find_model", "log_model", "model_bytes", "use_models"]

_READY: Literal["READY"] = "READY"
_PENDING = "PENDING"
_REFUSED = re.compile(r"[/:.%\"']")
"""Characters that MLflow does not take in a model's name."""
_LOCK = "mlflow-model.lock"
_SHAPE = {
    "autoencoder": ("K", "l", "vocabulary"),
    "calm": ("K", "l", "N", "M", "head", "d", "layers", "heads", "vocabulary"),
    "baseline": ("d", "layers", "heads", "vocabulary"),
}
"""What a model's page shows as its parameters, by stage."""


def log_model(
    client: MlflowClient, experiment_id: str, run_id: str, run_dir: Path, autoencoder_dir: Path | None, name: str
) -> str:
    """Copy the model of a finished run into the store, unless it is there, and link it to its run and its autoencoder.

    The autoencoder of a language model is logged too, by its own run, if that is in the experiment: so the lineage in
    MLflow goes from the autoencoder to the language model.

    Args:
        client: The MLflow client.
        experiment_id: The experiment of the run.
        run_id: MLflow run id of the run.
        run_dir: The run directory.
        autoencoder_dir: Directory of its autoencoder, for stage "calm".
        name: Name of the model: it loads as `models:/{model id}` and `runs:/{run id}/{name}`. What MLflow takes in no
            name becomes "-".

    Returns:
        The model id.

    Raises:
        TrackingError: The run has not finished or lacks a file, or the store takes no files.
        Exception: Whatever the store does.
    """
    run = read_finished(run_dir)
    below = None
    if run.stage == "calm" and autoencoder_dir is not None:
        below = _autoencoder_model(client, experiment_id, autoencoder_dir)
    with _only_one(run_dir):
        model = _begun(client, experiment_id, run_id, run, _REFUSED.sub("-", name))
        if model.status.value != _READY:
            _fill(client, model, run, autoencoder_dir)
            client.finalize_logged_model(model.model_id, _READY)
        _link_output(client, run_id, model.model_id)
    if below is not None:
        use_models(client, run_id, [below])
    return str(model.model_id)


def find_model(client: MlflowClient, experiment_id: str, identity: str, run_id: str = "") -> str | None:
    """Return the id of the oldest whole model with this identity, None where there is none.

    Args:
        client: The MLflow client.
        experiment_id: The experiment.
        identity: Identity of the run that trained it.
        run_id: Only a model that this run made.
    """
    found = _models(client, experiment_id, identity, run_id)
    return next((str(model.model_id) for model in found if model.status.value == _READY), None)


def use_models(client: MlflowClient, run_id: str, model_ids: Sequence[str]) -> None:
    """Say that a run used models, if that has not been said."""
    from mlflow.entities import LoggedModelInput

    inputs = client.get_run(run_id).inputs
    known = {one.model_id for one in (inputs.model_inputs if inputs else [])}
    fresh = [LoggedModelInput(one) for one in dict.fromkeys(model_ids) if one not in known]
    if fresh:
        client.log_inputs(run_id, models=fresh)


def _models(client: MlflowClient, experiment_id: str, identity: str, run_id: str) -> list[LoggedModel]:
    """Return models of an identity, oldest first."""
    parts = [f"tags.`{IDENTITY_TAG}` = '{identity}'", *([f"source_run_id = '{run_id}'"] if run_id else [])]
    order: list[dict[str, Any]] = [{"field_name": "creation_timestamp", "ascending": True}]
    return list(client.search_logged_models([experiment_id], " AND ".join(parts), order_by=order))


def _begun(client: MlflowClient, experiment_id: str, run_id: str, run: FinishedRun, name: str) -> LoggedModel:
    """Return the model of a run: the whole one, else one that was begun before, else a new one."""
    known = _models(client, experiment_id, run.identity, run_id)
    ready = [model for model in known if model.status.value == _READY]
    pending = [model for model in known if model.status.value == _PENDING]
    kept = next(iter([*ready, *pending]), None)
    for model in pending:
        if kept is not None and model.model_id != kept.model_id:
            client.delete_logged_model(model.model_id)
    if kept is not None:
        return kept
    shape = {key: run.config["model"].get(key) for key in _SHAPE[run.stage]}
    return client.create_logged_model(
        experiment_id,
        name=name,
        source_run_id=run_id,
        tags={IDENTITY_TAG: run.identity, "stage": run.stage, "seed": str(run.config["seed"])},
        params={key: str(value) for key, value in shape.items() if value is not None},
        model_type=f"CALM {run.stage}",
    )


def _fill(client: MlflowClient, model: LoggedModel, run: FinishedRun, autoencoder_dir: Path | None) -> None:
    """Send the files of a model and its last scores."""
    with tempfile.TemporaryDirectory(prefix="calm-model-") as scratch:
        root = Path(scratch) / "model"
        write_model(run, autoencoder_dir, root, model_id=model.model_id, run_id=str(model.source_run_id))
        paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        RunFiles(client, find_place(client.tracking_uri)).send(model.model_id, root, paths)
    known = {metric.key for metric in (client.get_logged_model(model.model_id).metrics or [])}
    fresh = [metric for metric in _scores(client, model, run) if metric.key not in known]
    if fresh:
        client.log_batch(str(model.source_run_id), metrics=fresh)


def _scores(client: MlflowClient, model: LoggedModel, run: FinishedRun) -> list[Metric]:
    """Return the last scores as the model's: of the journal's own step and time, so that the run has them once only."""
    from mlflow.entities import Metric

    inputs = client.get_run(str(model.source_run_id)).inputs
    used = {one.tags[0].value: one.dataset for one in (inputs.dataset_inputs if inputs else []) if one.tags}
    scored_on = used.get("validation")
    dataset = {} if scored_on is None else {"dataset_name": scored_on.name, "dataset_digest": scored_on.digest}
    last = {name: (entry, value) for entry in read_journal(run.directory) for name, value in entry.metrics.items()}
    return [
        Metric(name, value, int(1000 * entry.time), entry.step, model_id=model.model_id, **dataset)
        for name, (entry, value) in last.items()
        if name in run.result["metrics"]
    ]


def _link_output(client: MlflowClient, run_id: str, model_id: str) -> None:
    from mlflow.entities import LoggedModelOutput

    outputs = client.get_run(run_id).outputs
    if model_id not in {one.model_id for one in (outputs.model_outputs if outputs else [])}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])


def _autoencoder_model(client: MlflowClient, experiment_id: str, autoencoder_dir: Path) -> str | None:
    """Return the model of an autoencoder, logged by its own run if it is not there; None where that run is not."""
    identity = read_finished(autoencoder_dir).identity
    if (found := find_model(client, experiment_id, identity)) is not None:
        return found
    runs = client.search_runs(
        [experiment_id], f"tags.`{IDENTITY_TAG}` = '{identity}'", order_by=["attributes.start_time ASC"], max_results=1
    )
    if not runs:
        return None
    info = runs[0].info
    return log_model(client, experiment_id, info.run_id, autoencoder_dir, None, info.run_name or autoencoder_dir.name)


@contextmanager
def _only_one(run_dir: Path) -> Iterator[None]:
    """Let one process at a time log the model of a run directory: two would not see each other's, and log two."""
    try:
        lock = (run_dir / _LOCK).open("a")
    except OSError:  # a directory of somebody else, from which one may log all the same
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)

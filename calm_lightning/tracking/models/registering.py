"""Models in MLflow's registry: under a name, in versions, each model once."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calm_lightning.errors import TrackingError
from calm_lightning.metrics import names
from calm_lightning.tracking.models.directory import read_finished
from calm_lightning.tracking.models.logging import find_model, log_model
from calm_lightning.tracking.reading.places import Place, answering, open_place
from calm_lightning.tracking.reading.store_source import experiment_ids, find_runs, pages
from calm_lightning.tracking.store import IDENTITY_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

_VERSIONS_TAG = "mlflow.modelVersions"
"""MLflow's tag by which a model's page links to its versions in the registry."""
_RUN_DIR_TAG = "calm.run_dir"
_ALIAS = re.compile(r"(?!v\d+$|latest$)[\w-]+", re.ASCII | re.IGNORECASE)
"""MLflow keeps v1, v2, ... and latest for itself."""


@dataclass(frozen=True)
class Registered:
    """A version of a registered model.

    Attributes:
        name: Name in the registry.
        version: Number of the version.
        alias: Alias that was set, "" for none.
        model: Name of the model.
        fresh: Whether the version was made just now.
        place: The store.
    """

    name: str
    version: int
    alias: str
    model: str
    fresh: bool
    place: Place

    @property
    def uri(self) -> str:
        """What MLflow loads: by the alias, where one was given."""
        return f"models:/{self.name}@{self.alias}" if self.alias else f"models:/{self.name}/{self.version}"


def register_directory(
    place: Place, run_dir: Path, autoencoder_dir: Path | None, name: str, alias: str = ""
) -> Registered:
    """Register the model of a finished run directory; it is copied into the store first, if it is not there.

    Args:
        place: The store.
        run_dir: The run directory.
        autoencoder_dir: Directory of its autoencoder, for stage "calm".
        name: Name in the registry; made where there is none.
        alias: Alias for the version, moved from another one if need be; "" sets none.

    Raises:
        TrackingError: The store has no such run, or refuses.
    """
    _check_names(name, alias)
    client = open_place(place)
    finished = read_finished(run_dir)
    with answering(place):
        runs = find_runs(client, place, experiment_ids(client, place), f"tags.`{IDENTITY_TAG}` = '{finished.identity}'")
        if not runs:
            raise TrackingError(
                f"{place.shown} has no run of {run_dir}: send it (calm runs send), or record it (tracking.mlflow=true)"
            )
        for run in runs:
            known = find_model(client, run.info.experiment_id, finished.identity)
            if known is not None:
                return _register(client, place, known, name, alias)
        info = runs[-1].info  # the one that was started first
        made = log_model(
            client, info.experiment_id, info.run_id, run_dir, autoencoder_dir, info.run_name or run_dir.name
        )
        return _register(client, place, made, name, alias)


def register_run(place: Place, word: str, name: str, alias: str = "") -> Registered | Path:
    """Register the model of a run in the store.

    Args:
        place: The store.
        word: Run id, its beginning, run name or MLflow filter that means one run.
        name: As `register_directory`.
        alias: As `register_directory`.

    Returns:
        The version; or, if the run's model was not copied into the store, the run directory that has it.

    Raises:
        TrackingError: No run is meant, or several are, or the model is out of reach, or the store refuses.
    """
    _check_names(name, alias)
    client = open_place(place)
    runs = find_runs(client, place, experiment_ids(client, place), word)
    if len(runs) != 1:
        what = "no run" if not runs else f"{len(runs)} runs"
        raise TrackingError(
            f"{word!r} means {what} in {place.shown}: give a run id (calm runs list), or a run directory"
        )
    (run,) = runs
    with answering(place):
        model_id = _model_of(client, run)
        if model_id is not None:
            return _register(client, place, model_id, name, alias)
    directory = Path(run.data.tags.get(_RUN_DIR_TAG, ""))
    if run.data.tags.get(_RUN_DIR_TAG) and (directory / "result.json").is_file():
        return directory
    raise TrackingError(
        f"run {run.info.run_name} has no model in {place.shown}, and its directory is not on this machine: "
        "name the run directory"
    )


def _check_names(name: str, alias: str) -> None:
    """Refuse names before anything is copied or made.

    Raises:
        TrackingError: MLflow does not take one of them.
    """
    if not name.strip() or set(name) & set("/:'\"%"):
        raise TrackingError(f"{name!r} is no name for a registered model: leave out quotation marks and / : %")
    if alias and not _ALIAS.fullmatch(alias):
        raise TrackingError(
            f"{alias!r} is no alias: use letters, digits, _ and -, but not latest or v1, v2, ..., which MLflow keeps"
        )


def _model_of(client: MlflowClient, run: Run) -> str | None:
    """Return the newest whole model that a run made."""
    found = client.search_logged_models(
        [run.info.experiment_id],
        f"source_run_id = '{run.info.run_id}'",
        order_by=[{"field_name": "creation_timestamp", "ascending": False}],
    )
    return next((str(model.model_id) for model in found if model.status.value == "READY"), None)


def _register(client: MlflowClient, place: Place, model_id: str, name: str, alias: str) -> Registered:
    """Make the version of a model, unless there is one, and set the alias."""
    from mlflow.exceptions import MlflowException

    model = client.get_logged_model(model_id)
    try:
        client.create_registered_model(name, description="CALM: text in, text out (mlflow.pyfunc).")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    by_id = f"models:/{model_id}"
    versions = pages(client.search_model_versions, f"name = '{name}'")
    known = [int(one.version) for one in versions if one.source in (by_id, model.artifact_location)]
    if known:
        version = min(known)
    else:
        # Without a server MLflow would look for the model in its global store, which need not be this one.
        source = by_id if place.served else model.artifact_location
        made = client.create_model_version(
            name, source, model.source_run_id, description=_described(model), model_id=model_id
        )
        version = int(made.version)
    _tell_model(client, model, name, version)
    if alias:
        client.set_registered_model_alias(name, alias, str(version))
    return Registered(name, version, alias, model.name, not known, place)


def _tell_model(client: MlflowClient, model: LoggedModel, name: str, version: int) -> None:
    """Have the model's own page link to its version, as MLflow's `register_model` does."""
    told = json.loads(model.tags.get(_VERSIONS_TAG) or "[]")
    one = {"name": name, "version": version}
    if one not in told:
        client.set_logged_model_tags(model.model_id, {_VERSIONS_TAG: json.dumps([*told, one])})


def _described(model: LoggedModel) -> str:
    scores = {metric.key: metric.value for metric in (model.metrics or [])}
    score = f", BrierLM {scores[names.BRIER_LM]:.2f}" if names.BRIER_LM in scores else ""
    return f"{model.name}{score}"

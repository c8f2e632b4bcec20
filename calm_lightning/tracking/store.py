"""The MLflow store: where it is, how it is opened quietly, how a run is found again.

A run is found by its tags (identity and parent), not by an id kept in a file: whatever was killed, the same
command continues the same MLflow run. The price is one search when a run is attached.
"""

from __future__ import annotations

import fcntl
import getpass
import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calm_lightning.errors import TrackingError
from calm_lightning.tracking.config import TrackingConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient

IDENTITY_TAG = "calm.identity"
PARENT_TAG = "mlflow.parentRunId"
PARAMS_PER_BATCH = 100
_PARAM_LENGTH = 500  # of MLflow's 6000: a parameter is a cell of a table, config.yaml is the full record
_TAG_LENGTH = 7900


def store_dir(work_dir: str | Path) -> Path:
    """Return the directory of the embedded store: `mlruns` beside the work directory."""
    return Path(work_dir).expanduser().resolve().parent / "mlruns"


def tracking_uri(config: TrackingConfig, work_dir: str | Path) -> str:
    """Return the MLflow tracking URI.

    Args:
        config: Its `uri` wins where it is set.
        work_dir: The work directory beside which the embedded SQLite store lies.
    """
    return config.uri or f"sqlite:///{(store_dir(work_dir) / 'mlflow.db').as_posix()}"


def quiet_environment() -> dict[str, str]:
    """Return the variables that keep MLflow from calling home, from asking git questions and from waiting long."""
    return {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # whoever calls tries again, and says so
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }


def require_mlflow() -> None:
    """Check that the package is installed, without importing it.

    Raises:
        TrackingError: It is not.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise TrackingError(
            "MLflow is not installed: run pip install 'calm-lightning[tracking]', or set tracking.mlflow=false"
        )


_EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "CALM runs. Sweeps are parents, their models children; filter by tags, for example "
    "`tags.K = '4' and tags.pareto = 'front'`. BrierLM is `val/brier_lm`, higher is better.",
}
"""What the UI says of the experiment, and that it holds training runs rather than traces of a chat application."""


@dataclass(frozen=True)
class Store:
    """An opened store and the experiment in it.

    Attributes:
        client: The MLflow client.
        uri: Tracking URI.
        experiment_id: The experiment's id.
    """

    client: MlflowClient
    uri: str
    experiment_id: str

    def find(self, identity: str, parent_run_id: str | None = None) -> str | None:
        """Return the id of the run with this identity and parent that was started first, None where there is none.

        Args:
            identity: Value of the tag `calm.identity`.
            parent_run_id: MLflow run id of the parent, None for a run of its own.
        """
        found = self.client.search_runs(
            [self.experiment_id],
            filter_string=f"tags.`{IDENTITY_TAG}` = '{identity}'",
            order_by=["attributes.start_time ASC"],
        )
        run_ids = [run.info.run_id for run in found if run.data.tags.get(PARENT_TAG) == parent_run_id]
        return str(run_ids[0]) if run_ids else None

    def find_anywhere(self, identity: str) -> str | None:
        """Return the id of the run with this identity that was started first, whatever run it is below.

        Args:
            identity: Value of the tag `calm.identity`.
        """
        found = self.client.search_runs(
            [self.experiment_id],
            filter_string=f"tags.`{IDENTITY_TAG}` = '{identity}'",
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
        return str(found[0].info.run_id) if found else None

    def attach(
        self, identity: str, name: str, tags: Mapping[str, str], parent_run_id: str | None, started: float
    ) -> tuple[str, bool]:
        """Find the run with this identity and parent, or create it, and mark it as running.

        Args:
            identity: Value of the tag `calm.identity`.
            name: Name shown in the UI.
            tags: Further tags; they replace older values of the same names.
            parent_run_id: MLflow run id of the parent, None for a run of its own.
            started: When it began, unix seconds; a run that is found keeps its own.

        Returns:
            The MLflow run id, and whether the run was made just now.
        """
        all_tags = {**tags, IDENTITY_TAG: identity}
        if parent_run_id is not None:
            all_tags[PARENT_TAG] = parent_run_id
        run_id = self.find(identity, parent_run_id)
        if run_id is not None:
            self.client.update_run(run_id, status="RUNNING")
            self.log_tags(run_id, all_tags)
            return run_id, False
        user = {"mlflow.user": _user(), "mlflow.source.name": "calm", "mlflow.source.type": "LOCAL"}
        made = self.client.create_run(
            self.experiment_id, int(1000 * started), tags=clip_tags({**user, **all_tags}), run_name=name
        )
        return str(made.info.run_id), True

    def log_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in clip_tags(tags).items()])

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Log parameters that the run does not have yet (MLflow forbids changing one).

        Args:
            run_id: MLflow run id.
            params: A nested mapping, for example a resolved configuration.
        """
        from mlflow.entities import Param

        known = self.client.get_run(run_id).data.params
        fresh = [Param(key, value) for key, value in flatten(params) if key not in known]
        for start in range(0, len(fresh), PARAMS_PER_BATCH):
            self.client.log_batch(run_id, params=fresh[start : start + PARAMS_PER_BATCH])

    def logged(self, run_id: str) -> set[tuple[str, int]]:
        """Return which (metric, step) pairs the store already has."""
        names = self.client.get_run(run_id).data.metrics
        return {(name, int(point.step)) for name in names for point in self.client.get_metric_history(run_id, name)}


def open_store(config: TrackingConfig, work_dir: str | Path) -> Store:
    """Open the store; the first time this makes the SQLite schema, which takes a second or two.

    Args:
        config: URI and experiment name.
        work_dir: As `tracking_uri`.

    Raises:
        TrackingError: MLflow is not installed.
    """
    require_mlflow()
    for key, value in quiet_environment().items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)  # a store that fails is told of in a sentence of our own
    uri, location = tracking_uri(config, work_dir), None
    if not config.uri:
        directory = store_dir(work_dir)
        directory.mkdir(parents=True, exist_ok=True)
        location = (directory / "artifacts").as_uri()
        _make_database(directory)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(config.experiment)
    if experiment is not None:
        return Store(client, uri, experiment.experiment_id)
    try:
        made = client.create_experiment(config.experiment, artifact_location=location, tags=_EXPERIMENT_TAGS)
        return Store(client, uri, made)
    except MlflowException:
        # Another process made it in the meantime, or this is a real failure and the next line repeats it.
        experiment = client.get_experiment_by_name(config.experiment)
        if experiment is None:
            raise
        return Store(client, uri, experiment.experiment_id)


def _make_database(directory: Path) -> None:
    """Make the embedded store's database, whole or not at all.

    MLflow makes its schema in dozens of steps, and cannot open a file in which a killed process got halfway. So it is
    made under another name, by one process at a time.

    Args:
        directory: The store's directory.
    """
    database = directory / "mlflow.db"
    if database.is_file():
        return
    with (directory / "mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if database.is_file():
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        scratch = directory / ".mlflow.db.partial"
        for left in directory.glob(f"{scratch.name}*"):  # by a process that was killed, with its SQLite journal
            left.unlink()
        make: Any = SqlAlchemyStore
        made = make(f"sqlite:///{scratch.as_posix()}", str(directory / "artifacts"))
        made.engine.dispose()
        os.replace(scratch, database)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield ("a.b", text) for every leaf of a nested mapping, long texts cut; None reads "null"."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            text = "null" if value is None else str(value)
            yield f"{prefix}{key}", text if len(text) <= _PARAM_LENGTH else text[: _PARAM_LENGTH - 3] + "..."


def clip_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags with values short enough for every store."""
    return {key: str(value)[:_TAG_LENGTH] for key, value in tags.items()}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return "unknown"

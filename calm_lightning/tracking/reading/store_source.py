"""Runs read from a store, chosen by id, name, MLflow filter or experiment, with the runs that belong to them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from calm_lightning.errors import TrackingError
from calm_lightning.tracking.moving.records import DatasetRecord, Folder, History, ModelMetric, ModelRecord, RunRecord
from calm_lightning.tracking.moving.run_files import RunFiles
from calm_lightning.tracking.reading.places import Place, answering, open_place
from calm_lightning.tracking.store import PARENT_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

COPIED_FROM = "calm.copied_from"
"""Tag of a copied run or model: its id where it was recorded first."""
RUN_TAGS = (PARENT_TAG, "calm.autoencoder_run", "calm.model_run")
"""Tags whose value is the id of another run."""
_USED_RUN_TAGS = RUN_TAGS[1:]
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_START_OF_ID = re.compile(r"[0-9a-f]{6,31}")
_FILTER = re.compile(r"[=<>]|\b(i?like|in|is)\b", re.IGNORECASE)
_PAGE = 1000


class StoreSource:
    """The chosen runs of a store. Made by `choose`.

    Args:
        client: The opened store.
        place: Where it is.
        run_ids: The runs.
    """

    def __init__(self, client: MlflowClient, place: Place, run_ids: Sequence[str]) -> None:
        self._client, self._place = client, place
        self._files = RunFiles(client, place)
        self._experiments: dict[str, Any] = {}
        self.run_ids = tuple(run_ids)

    @classmethod
    def choose(
        cls, place: Place, selection: Sequence[str], *, experiments: Sequence[str] = (), children: bool = True
    ) -> StoreSource:
        """Return the chosen runs of a store.

        Args:
            place: The store.
            selection: Run ids, run names and MLflow filters, each adding runs; all runs where there is none.
            experiments: Names of the experiments to look in; all where there is none.
            children: Add the children of every run, the autoencoders' runs that they name and the models' runs that an
                evaluation names.

        Raises:
            TrackingError: The store cannot be opened, a filter cannot be read, or nothing is found.
        """
        client = open_place(place)
        found: dict[str, Run] = {}
        ids = experiment_ids(client, place, experiments)
        for word in selection or [""]:
            chosen = find_runs(client, place, ids, word)
            if not chosen:
                raise TrackingError(
                    f"no run in {place.shown} is meant by {word!r}" if word else f"{place.shown} has no runs"
                )
            found |= {run.info.run_id: run for run in chosen}
        if children:
            with answering(place):
                _add_relatives(client, found)
        return cls(client, place, tuple(found))

    def run(self, run_id: str) -> RunRecord:
        """Return a run.

        Raises:
            TrackingError: The store fails, or the run is not one that MLflow makes today.
        """
        with answering(self._place):
            run = self._client.get_run(run_id)
            experiment = self._experiment(run.info.experiment_id)
            models = list(self._models(run))
            try:
                return _record(run, experiment, models)
            except ValidationError as error:
                raise TrackingError(
                    f"run {run_id} in {self._place.shown} cannot be copied: {in_words(error)}"
                ) from None

    def histories(self, run_id: str) -> Iterator[History]:
        """Yield all metric histories of a run.

        Raises:
            TrackingError: The store fails.
        """
        with answering(self._place):
            names = sorted(self._client.get_run(run_id).data.metrics)
        for name in names:
            with answering(self._place):
                points = self._client.get_metric_history(run_id, name)
            yield History(key=name, points=[(int(one.step), int(one.timestamp), float(one.value)) for one in points])

    def files(self, owner: str) -> AbstractContextManager[Folder]:
        """Return the files of a run or a logged model, on this machine while the context lasts.

        Raises:
            TrackingError: They cannot be had.
        """
        return self._files.folder(owner)

    def _experiment(self, experiment_id: str) -> Any:
        if experiment_id not in self._experiments:
            self._experiments[experiment_id] = self._client.get_experiment(experiment_id)
        return self._experiments[experiment_id]

    def _models(self, run: Run) -> Iterator[LoggedModel]:
        """Yield the logged models that a run made or used, whichever of them are still there."""
        from mlflow.exceptions import MlflowException

        ids = {model.model_id for model in (run.outputs.model_outputs if run.outputs else [])}
        ids |= {model.model_id for model in (run.inputs.model_inputs if run.inputs else [])}
        made = self._client.search_logged_models(
            [run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'"
        )
        known = {model.model_id: model for model in made}
        yield from known.values()
        for model_id in sorted(ids - set(known)):
            try:
                yield self._client.get_logged_model(model_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise


def in_words(error: ValidationError) -> str:
    """Return the first thing that is wrong with a record."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"


def experiment_ids(client: MlflowClient, place: Place, names: Sequence[str] = ()) -> list[str]:
    """Return the ids of experiments.

    Args:
        client: The opened store.
        place: Where it is.
        names: Their names; all experiments where there is none.

    Raises:
        TrackingError: There is no such experiment.
    """
    with answering(place):
        known = {one.name: one.experiment_id for one in pages(client.search_experiments)}
    missing = [name for name in names if name not in known]
    if missing:
        raise TrackingError(
            f"there is no experiment {missing[0]!r} in {place.shown}: it has {', '.join(sorted(known))}"
        )
    return [known[name] for name in names] if names else list(known.values())


def pages(search: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Any]:
    """Yield the results of one of MLflow's searches, page by page."""
    token = None
    while True:
        page = search(*arguments, **options, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def find_runs(client: MlflowClient, place: Place, ids: Sequence[str], word: str) -> list[Run]:
    """Return the runs that one word of a selection means.

    Args:
        client: The opened store.
        place: Where it is.
        ids: Ids of the experiments to look in.
        word: A run id or the first six or more of its characters, a run name, or an MLflow filter; "" means all runs.

    Raises:
        TrackingError: It is a filter that MLflow does not understand.
    """
    if _RUN_ID.fullmatch(word):
        return _search(client, place, ids, f"attributes.run_id = '{word}'")
    if not word or _FILTER.search(word):
        return _search(client, place, ids, word)
    if "'" in word and '"' in word:
        raise TrackingError(f"{word} is neither a run id nor a filter, and no run can be found by such a name")
    quote = '"' if "'" in word else "'"
    named = _search(client, place, ids, f"attributes.run_name = {quote}{word}{quote}")
    if named or not _START_OF_ID.fullmatch(word):
        return named
    return [run for run in _search(client, place, ids, "") if run.info.run_id.startswith(word)]


def _search(client: MlflowClient, place: Place, ids: Sequence[str], filter_string: str) -> list[Run]:
    from mlflow.exceptions import MlflowException

    with answering(place):
        try:
            return list(pages(client.search_runs, list(ids), filter_string=filter_string, max_results=_PAGE))
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise TrackingError(
                f"MLflow cannot read the filter {filter_string!r} ({reason}): write it like "
                "\"tags.K = '4' and metrics.`val/brier_lm` > 5\""
            ) from None


def _add_relatives(client: MlflowClient, found: dict[str, Run]) -> None:
    """Add children and the runs that tags name, and theirs, until nothing is added."""
    from mlflow.exceptions import MlflowException

    waiting = list(found.values())
    everywhere = [one.experiment_id for one in pages(client.search_experiments)]
    while waiting:
        run = waiting.pop()
        below = f"tags.`{PARENT_TAG}` = '{run.info.run_id}'"
        fresh = list(pages(client.search_runs, everywhere, filter_string=below, max_results=_PAGE))
        for name in _USED_RUN_TAGS:
            used = run.data.tags.get(name, "")
            if _RUN_ID.fullmatch(used) and used not in found:
                try:
                    fresh.append(client.get_run(used))
                except MlflowException as error:
                    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                        raise
        for one in fresh:
            if one.info.run_id not in found and one.info.lifecycle_stage == "active":
                found[one.info.run_id] = one
                waiting.append(one)


def _record(run: Run, experiment: Any, models: list[LoggedModel]) -> RunRecord:
    """Return a run as plain values."""
    tags = {str(key): str(value) for key, value in run.data.tags.items()}
    inputs, outputs = run.inputs, run.outputs
    return RunRecord(
        run_id=run.info.run_id,
        origin=tags.get(COPIED_FROM, run.info.run_id),
        experiment=experiment.name,
        experiment_id=run.info.experiment_id,
        experiment_tags={str(key): str(value) for key, value in experiment.tags.items()},
        name=run.info.run_name or "",
        status=run.info.status,
        user=run.info.user_id or "",
        started=run.info.start_time,
        ended=run.info.end_time,
        tags=tags,
        params=dict(run.data.params),
        metrics=sorted(run.data.metrics),
        datasets=[_dataset(one) for one in (inputs.dataset_inputs if inputs else [])],
        models=[_model(one) for one in models],
        model_inputs=[one.model_id for one in (inputs.model_inputs if inputs else [])],
        model_outputs=[(one.model_id, one.step) for one in (outputs.model_outputs if outputs else [])],
    )


def _dataset(given: Any) -> DatasetRecord:
    dataset = given.dataset
    return DatasetRecord(
        name=dataset.name,
        digest=dataset.digest,
        source_type=dataset.source_type,
        source=dataset.source,
        schema_text=dataset.schema,
        profile=dataset.profile,
        tags={tag.key: tag.value for tag in given.tags},
    )


def _model(model: LoggedModel) -> ModelRecord:
    return ModelRecord(
        model_id=model.model_id,
        name=model.name,
        type=model.model_type or None,
        status=model.status.value,
        run_id=model.source_run_id or None,
        tags={str(key): str(value) for key, value in model.tags.items()},
        params={str(key): str(value) for key, value in model.params.items()},
        metrics=[
            ModelMetric(
                key=one.key,
                point=(int(one.step), int(one.timestamp), float(one.value)),
                run_id=one.run_id or None,
                dataset_name=one.dataset_name or None,
                dataset_digest=one.dataset_digest or None,
            )
            for one in model.metrics or []
        ],
    )

"""The store that runs are copied into: what of them it has already, and how a run is begun there.

A copy is found again by a tag that names the run it is a copy of, and that tag is set in the very request that makes
the run. So there is no moment at which a killed copy leaves a run that the next one does not recognise.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from calm_lightning.errors import TrackingError
from calm_lightning.tracking.moving.records import ModelRecord, RunRecord
from calm_lightning.tracking.moving.run_files import RunFiles
from calm_lightning.tracking.reading.places import Place, answering, open_place
from calm_lightning.tracking.reading.store_source import COPIED_FROM, experiment_ids

if TYPE_CHECKING:
    from mlflow.entities import Run

_ID = re.compile(r"(?<![0-9a-zA-Z-])(?:m-)?[0-9a-f]{32}(?![0-9a-zA-Z])")
_EXPERIMENT_LINK = re.compile(r"(#/experiments/)(\d+)(?=/)")
_USER = "mlflow.user"


class Destination:
    """A store that runs are copied into.

    Args:
        place: The store; an SQLite store is made where there is none.
        into: Name of the experiment for all runs; "" leaves each in the experiment of the same name.

    Raises:
        TrackingError: It cannot be opened.
    """

    def __init__(self, place: Place, into: str = "") -> None:
        self.place, self._into = place, into
        self.client = open_place(place, make=True)
        self.files = RunFiles(self.client, place)
        self.ids: dict[str, str] = {}
        self._known = experiment_ids(self.client, place)
        self._experiments: dict[str, str] = {}
        self._experiment_ids: dict[str, str] = {}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes of this machine from copying into an SQLite store at the same time.

        Two that look for a copy, do not find it and make it would make it twice.

        Raises:
            TrackingError: Another process copies into the store.
        """
        if self.place.directory is None:
            yield
            return
        directory = os.open(self.place.directory, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(directory)
            raise TrackingError(f"another process copies runs into {self.place.shown}: wait for it") from None
        try:
            yield
        finally:
            os.close(directory)

    def begin(self, run: RunRecord) -> tuple[str, bool, bool]:
        """Find the copy of a run, or make an empty one.

        Args:
            run: The run.

        Returns:
            Its id here; whether it was made just now; whether it is no copy but the very run that was recorded first.

        Raises:
            TrackingError: The store fails.
        """
        experiment = self._experiment(run)
        with answering(self.place):
            found = self._original(run) or self._copy_of(run.origin, [experiment])
            made = found is None
            if found is None:
                user = run.tags.get(_USER, run.user)
                tags = {COPIED_FROM: run.origin, **({_USER: user} if user else {})}
                created = self.client.create_run(experiment, run.started, tags, run.name or None)
                found = str(created.info.run_id)
        self.ids[run.run_id] = self.ids[run.origin] = found
        self._experiment_ids[run.experiment_id] = experiment
        return found, made, found == run.origin

    def begin_model(self, model: ModelRecord, run: RunRecord) -> None:
        """Find the copy of a logged model, or make an empty one.

        Args:
            model: The model.
            run: A run that has been begun, into whose experiment it goes.

        Raises:
            TrackingError: The store fails.
        """
        origin = model.tags.get(COPIED_FROM, model.model_id)
        with answering(self.place):
            found = self.client.search_logged_models(self._everywhere(), f"tags.`{COPIED_FROM}` = '{origin}'")
            model_id = min((one.model_id for one in found), default=None)
            if model_id is None:
                tags = {key: self.translated(value) for key, value in model.tags.items()} | {COPIED_FROM: origin}
                maker, params = self.ids.get(model.run_id or ""), dict(model.params)
                made = self.client.create_logged_model(
                    self._experiment(run), model.name, maker, tags, params, model.type
                )
                model_id = made.model_id
        self.ids[model.model_id] = self.ids[origin] = str(model_id)

    def translated(self, text: str) -> str:
        """Return a text with the ids of runs, models and experiments exchanged for those they have here."""
        text = _ID.sub(lambda match: self.ids.get(match[0], match[0]), text)
        return _EXPERIMENT_LINK.sub(lambda match: match[1] + self._experiment_ids.get(match[2], match[2]), text)

    def look_up(self, origins: Iterable[str]) -> None:
        """Learn the ids of runs that were copied here at another time, whatever experiment they are in.

        Raises:
            TrackingError: The store fails.
        """
        unknown = sorted(set(origins) - set(self.ids))
        with answering(self.place):
            for origin in unknown:
                found = self._copy_of(origin, self._everywhere())
                if found is not None:
                    self.ids[origin] = found

    def run(self, run_id: str) -> Run:
        """Return a run of this store.

        Raises:
            TrackingError: The store fails.
        """
        with answering(self.place):
            return self.client.get_run(run_id)

    def _everywhere(self) -> list[str]:
        """Return the ids of all experiments, each once."""
        return list(dict.fromkeys([*self._known, *self._experiments.values()]))

    def _original(self, run: RunRecord) -> str | None:
        """Return the run itself, where it is copied back to the store that it was recorded in."""
        found = self.client.search_runs(self._known, f"attributes.run_id = '{run.origin}'", max_results=1)
        return run.origin if found else None

    def _copy_of(self, origin: str, experiments: Sequence[str]) -> str | None:
        found = self.client.search_runs(list(experiments), f"tags.`{COPIED_FROM}` = '{origin}'", max_results=100)
        return min((str(run.info.run_id) for run in found), default=None)

    def _experiment(self, run: RunRecord) -> str:
        """Return the id of the experiment for a run, made where there is none of its name."""
        name = self._into or run.experiment
        if name not in self._experiments:
            with answering(self.place):
                self._experiments[name] = self._find_or_make(name, {} if self._into else run.experiment_tags)
        return self._experiments[name]

    def _find_or_make(self, name: str, tags: Mapping[str, str]) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            directory = self.place.directory
            location = (directory / "artifacts").as_uri() if directory is not None else None
            try:
                return str(self.client.create_experiment(name, location, dict(tags)))
            except MlflowException:
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"experiment {name!r} in {self.place.shown} has been deleted: restore it in the UI, or name another "
                "experiment with --into"
            )
        return str(found.experiment_id)

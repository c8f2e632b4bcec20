"""Mirror: makes one MLflow run equal to a run's directory, whatever was sent before and by whom.

The directory is the truth (`metrics.jsonl`, `system.jsonl`, the outbox) and MLflow its copy. The store itself is
asked which (metric, step) pairs it has, and values are sent with the journal's own times, so nothing is there twice.
The trade-off: a value that a resumed run logs again at the same step keeps its first value in MLflow.
"""

from __future__ import annotations

import re
from pathlib import Path

from calm_lightning.errors import TrackingError
from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.entries import JOURNAL_NAME, SYSTEM_NAME
from calm_lightning.tracking.outbox.links import resolve_links
from calm_lightning.tracking.outbox.outbox import FINISHED, RUNNING, Outbox, OutboxPlace
from calm_lightning.tracking.outbox.tail import Tail
from calm_lightning.tracking.serving.views import write_views
from calm_lightning.tracking.store import Store, open_store

_METRICS_PER_BATCH = 1000  # MLflow's own limit
NOTE_TAG = "mlflow.note.content"
_AWAY = re.compile("Connection refused|NewConnectionError|Max retries exceeded|timed out")


class ParentMissingError(TrackingError):
    """The parent run is not in the store yet: whoever owns it has to send it first."""


class Mirror:
    """Sends one outbox. Not safe for use by several threads at once.

    Args:
        place: Where the outbox lies.
        outbox: The outbox; `run_id` and `sent_files` are filled in.
    """

    def __init__(self, place: OutboxPlace, outbox: Outbox) -> None:
        self._place, self.outbox = place, outbox
        self._store: Store | None = None
        self._sent: set[tuple[str, int]] = set()
        self._words: tuple[dict[str, str], str] | None = None
        self._told_children: dict[str, dict[str, str]] = {}
        self._tails = [Tail(place.directory / name) for name in (JOURNAL_NAME, SYSTEM_NAME)]

    def forget(self) -> None:
        """Take nothing for granted any more: the next `send` asks the store what it has."""
        self._store = None

    def send(self) -> None:
        """Send what has changed since the last time.

        Raises:
            ParentMissingError: The parent run is not in the store.
            TrackingError: The journal is damaged.
            Exception: Whatever the store does.
        """
        store, run_id = self._attach()
        self._send_numbers(store, run_id)
        self._send_words(store, run_id)
        self._send_files(store, run_id)
        self._send_children(store)

    def close(self) -> None:
        """Send the rest, the model too, and end the MLflow run as the outbox says.

        Raises:
            Exception: As `send`.
        """
        self._words = None  # a run that a description names may have come since
        self.send()
        store, run_id = self._attach()
        outbox = self.outbox
        if outbox.model is not None and outbox.status == FINISHED:
            from calm_lightning.tracking.models.logging import log_model

            below = Path(outbox.model) if outbox.model else None
            log_model(store.client, store.experiment_id, run_id, self._place.directory, below, outbox.name)
        if outbox.status != RUNNING:
            ended = None if outbox.ended is None else int(1000 * outbox.ended)
            store.client.set_terminated(run_id, outbox.status, ended)

    def _attach(self) -> tuple[Store, str]:
        """Return the opened store and the run's id, asking the store what it already has."""
        outbox = self.outbox
        if self._store is None or outbox.run_id is None:
            store = open_store(TrackingConfig(uri=outbox.uri, experiment=outbox.experiment), self._place.work_dir)
            parent = None
            if outbox.parent and (parent := self._parent(store)) is None:
                raise ParentMissingError(f"the parent run of {outbox.name} is not in the store yet")
            run_id, made = store.attach(outbox.identity, outbox.name, outbox.tags, parent, outbox.started)
            store.log_params(run_id, outbox.params)
            if outbox.datasets:
                from calm_lightning.tracking.models.datasets import log_datasets

                log_datasets(store.client, run_id, outbox.datasets)
            self._sent = set() if made else store.logged(run_id)
            if made:
                outbox.sent_files = {}
            self._words, self._told_children = None, {}
            for tail in self._tails:
                tail.rewind()
            self._store, outbox.run_id = store, run_id
        return self._store, outbox.run_id

    def _parent(self, store: Store) -> str | None:
        """Return the parent run: a sweep's, or of an evaluation the model's, which may itself be below a sweep."""
        return store.find(self.outbox.parent) or store.find_anywhere(self.outbox.parent)

    def _send_numbers(self, store: Store, run_id: str) -> None:
        from mlflow.entities import Metric

        for tail in self._tails:
            entries, place = tail.read()
            metrics = []
            for entry in entries:
                for name, value in entry.metrics.items():
                    if (name, entry.step) not in self._sent:
                        self._sent.add((name, entry.step))
                        metrics.append(Metric(name, value, int(1000 * entry.time), entry.step))
            for start in range(0, len(metrics), _METRICS_PER_BATCH):
                store.client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_BATCH])
            tail.advance(place)

    def _send_words(self, store: Store, run_id: str) -> None:
        """Send tags and description, if they have changed; only then are the runs looked up that they name."""
        outbox = self.outbox
        if self._words == (outbox.tags, outbox.description):
            return
        words, tags = (dict(outbox.tags), outbox.description), dict(outbox.tags)
        for tag, identity in outbox.links.items():
            if (found := self._find(store, "run", identity)) is not None:
                tags[tag] = found
        if outbox.description:
            views: dict[str, str] = {}
            if "(view:" in outbox.description:
                views = write_views(store.client, store.experiment_id, outbox.tags.get("study", ""))

            def find(kind: str, target: str) -> str | None:
                return views.get(target) if kind == "view" else self._find(store, kind, target)

            tags[NOTE_TAG] = resolve_links(outbox.description, store.experiment_id, run_id, find)
        store.log_tags(run_id, tags)
        self._words = words

    def _find(self, store: Store, kind: str, target: str) -> str | None:
        """Return the MLflow run id of a run by its identity, or of a child by the number of its trial."""
        if kind == "trial":
            child = self.outbox.children.get(target)
            return None if child is None else self._child_id(child["directory"])
        if self.outbox.parent and (beside := store.find(target, store.find(self.outbox.parent))):
            return beside
        return store.find(target) or store.find_anywhere(target)

    def _child_id(self, directory: str) -> str | None:
        """Return the MLflow run id that a child's own outbox has, None where it has not been sent yet."""
        child = OutboxPlace(Path(directory), self.outbox.identity).read()
        return None if child is None else child.run_id

    def _send_files(self, store: Store, run_id: str) -> None:
        """Copy the files that are new or have changed."""
        outbox = self.outbox
        for name in outbox.files:
            path = self._place.directory / name
            state = _state(path)
            if state is None or outbox.sent_files.get(name) == state:
                continue
            if path.is_dir():
                store.client.log_artifacts(run_id, str(path), path.name)
            else:
                store.client.log_artifact(run_id, str(path))
            outbox.sent_files = {**outbox.sent_files, name: state}  # another thread may be writing the old ones down

    def _send_children(self, store: Store) -> None:
        """Set the tags of children that have changed; of those that are not in the store yet, another time."""
        for trial, child in self.outbox.children.items():
            if self._told_children.get(trial) == child["tags"]:
                continue
            run_id = self._child_id(child["directory"])
            if run_id is not None:
                store.log_tags(run_id, child["tags"])
                self._told_children[trial] = dict(child["tags"])

    @property
    def complete(self) -> bool:
        """Whether everything that waits for other runs has been sent, too."""
        return all(trial in self._told_children for trial in self.outbox.children)


def _state(path: Path) -> str | None:
    """Return what tells a changed file from the same one, None where there is none."""
    try:
        parts = sorted(path.rglob("*")) if path.is_dir() else [path]
        return " ".join(f"{part.name}:{stat.st_size}:{stat.st_mtime_ns}" for part in parts for stat in (part.stat(),))
    except OSError:
        return None


def in_one_line(error: BaseException) -> str:
    """Return why a store failed, in one short line."""
    if _AWAY.search(str(error)):
        return "nothing answers there"
    return re.sub(r"\s+", " ", str(error)).strip()[:300] or type(error).__name__

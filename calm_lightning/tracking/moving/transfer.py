"""Copies runs from a store or an archive into another store, whole, once, however often it is killed and run again.

First every run is begun at its destination, so that all ids are known there; then each is filled with what it lacks.
What is compared is the content (metrics by step, time and value, files by hash), so a second copy of a run that went on
meanwhile adds what is new, and one of a run that did not adds nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from calm_lightning.tracking.moving.destination import Destination
from calm_lightning.tracking.moving.logged_models import fill_model
from calm_lightning.tracking.moving.records import Folder, ModelRecord, RunRecord, RunSource, digest_of
from calm_lightning.tracking.reading.places import Place, answering
from calm_lightning.tracking.reading.store_source import COPIED_FROM, RUN_TAGS
from calm_lightning.tracking.store import PARENT_TAG

if TYPE_CHECKING:
    from mlflow.entities import Run

FILES_TAG = "calm.copied_files"
"""Tag of a copied run: hash of the files it was given, with "partial" after it until all have arrived."""
_METRICS, _PARAMS, _TAGS = 1000, 100, 100  # MLflow's own limits
_BATCH_CHARACTERS = 200_000  # of MLflow's million bytes, since a character can take six
_ENDED = ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True)
class Copied:
    """What became of one run.

    Attributes:
        run_id: Its id at the destination.
        name: Its name.
        what: "copied", "completed" (there was a part of it, or it went on), "unchanged" (nothing was missing) or
            "original" (it was copied back to where it was recorded, and left alone).
    """

    run_id: str
    name: str
    what: str


def copy_runs(
    source: RunSource, place: Place, *, into: str = "", progress: Callable[[int, int, str], None]
) -> list[Copied]:
    """Copy runs into a store.

    Args:
        source: The runs.
        place: The store; an SQLite store is made where there is none.
        into: Name of the experiment for all of them; "" leaves each in the experiment of the same name.
        progress: Told before each run: runs done, all runs, name of the next one.

    Returns:
        What became of each run, in the source's order.

    Raises:
        TrackingError: A run cannot be read, or the store does not take it; running the same again goes on.
    """
    destination = Destination(place, into)
    with destination.alone():
        return _copy(source, destination, progress)


def _copy(source: RunSource, destination: Destination, progress: Callable[[int, int, str], None]) -> list[Copied]:
    records = [source.run(run_id) for run_id in source.run_ids]
    begun = [destination.begin(record) for record in records]
    destination.look_up(record.tags[key] for record in records for key in RUN_TAGS if key in record.tags)
    models = _owned_models(records)
    for record in records:
        for model in models[record.run_id]:
            destination.begin_model(model, record)
    done = []
    for number, (record, (copy_id, made, original)) in enumerate(zip(records, begun, strict=True)):
        progress(number, len(records), record.name)
        changes = 0 if original else _fill(source, destination, record, models[record.run_id], copy_id)
        what = "original" if original else "copied" if made else "completed" if changes else "unchanged"
        done.append(Copied(copy_id, record.name, what))
    progress(len(records), len(records), "")
    return done


def _owned_models(records: Sequence[RunRecord]) -> dict[str, list[ModelRecord]]:
    """Return which models are copied with which run: with the one that made them, else the first that used them."""
    makers, seen = {record.run_id for record in records}, set()
    owned: dict[str, list[ModelRecord]] = {}
    for record in records:
        own = [model for model in record.models if model.run_id == record.run_id or model.run_id not in makers]
        owned[record.run_id] = [model for model in own if model.model_id not in seen]
        seen |= {model.model_id for model in own}
    return owned


def _fill(
    source: RunSource, destination: Destination, record: RunRecord, models: Sequence[ModelRecord], copy_id: str
) -> int:
    """Give a copy what it lacks; its status comes last. Returns the number of things that were missing."""
    copy = destination.run(copy_id)
    changes = sum(fill_model(source, destination, model) for model in models)
    with answering(destination.place):
        changes += _fill_params(destination, record, copy)
        changes += _fill_metrics(source, destination, record, copy)
        changes += _fill_links(destination, record, copy)
    with source.files(record.run_id) as folder:
        changes += _fill_files(destination, copy, folder)
    with answering(destination.place):
        changes += _fill_tags(destination, record, copy)
        changes += _fill_state(destination, record, copy)
    return changes


def _fill_params(destination: Destination, record: RunRecord, copy: Run) -> int:
    from mlflow.entities import Param

    missing = [(key, value) for key, value in record.params.items() if key not in copy.data.params]
    for batch in batches(missing, _PARAMS):
        destination.client.log_batch(copy.info.run_id, params=[Param(key, value) for key, value in batch])
    return len(missing)


def _fill_metrics(source: RunSource, destination: Destination, record: RunRecord, copy: Run) -> int:
    """Log the values that are missing, a thousand at a time."""
    from mlflow.entities import Metric

    waiting: list[Metric] = []
    missing = 0
    for history in source.histories(record.run_id):
        known = set()
        if history.key in copy.data.metrics:
            there = destination.client.get_metric_history(copy.info.run_id, history.key)
            known = {(one.step, one.timestamp, stored(one.value)) for one in there}
        for step, timestamp, value in history.points:
            if (step, timestamp, stored(value)) not in known:
                waiting.append(Metric(history.key, value, timestamp, step))
                missing += 1
        while len(waiting) >= _METRICS:
            destination.client.log_batch(copy.info.run_id, metrics=waiting[:_METRICS])
            del waiting[:_METRICS]
    if waiting:
        destination.client.log_batch(copy.info.run_id, metrics=waiting)
    return missing


def stored(value: float) -> float | str:
    """Return a value as SQL stores compare it: infinities are the largest numbers there, and NaN equals NaN."""
    if math.isnan(value):
        return "nan"
    return math.copysign(sys.float_info.max, value) if math.isinf(value) else value


def _fill_links(destination: Destination, record: RunRecord, copy: Run) -> int:
    """Log datasets and the links to models that are missing."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, LoggedModelOutput

    inputs, outputs, client, run_id = copy.inputs, copy.outputs, destination.client, copy.info.run_id
    known = {(one.dataset.name, one.dataset.digest) for one in (inputs.dataset_inputs if inputs else [])}
    datasets = [
        DatasetInput(
            Dataset(one.name, one.digest, one.source_type, one.source, one.schema_text, one.profile),
            [InputTag(key, value) for key, value in one.tags.items()],
        )
        for one in record.datasets
        if (one.name, one.digest) not in known
    ]
    used = {one.model_id for one in (inputs.model_inputs if inputs else [])}
    uses = [destination.ids[model_id] for model_id in record.model_inputs if model_id in destination.ids]
    models = [LoggedModelInput(model_id) for model_id in uses if model_id not in used]
    if datasets or models:
        client.log_inputs(run_id, datasets, models)
    made = {(one.model_id, one.step) for one in (outputs.model_outputs if outputs else [])}
    makes = [(destination.ids[one], step) for one, step in record.model_outputs if one in destination.ids]
    results = [LoggedModelOutput(model_id, step) for model_id, step in makes if (model_id, step) not in made]
    if results:
        client.log_outputs(run_id, results)
    return len(datasets) + len(models) + len(results)


def _fill_files(destination: Destination, copy: Run, folder: Folder) -> int:
    """Send the files that are missing.

    A tag says which files a copy was given, by their hash. Where it says so, they are there; where it says that they
    were being sent, those with the right size have arrived; where it says something else, all are sent.
    """
    if not folder.files:
        return 0
    run_id, digest = copy.info.run_id, digest_of(folder.files)
    before, partial = copy.data.tags.get(FILES_TAG, ""), f"{digest} partial"
    if before == digest:
        return 0
    there = destination.files.listing(run_id) if before == partial else {}
    with answering(destination.place):
        destination.client.set_tag(run_id, FILES_TAG, partial)
    missing = [file.path for file in folder.files if there.get(file.path) != file.size]
    destination.files.send(run_id, folder.root, missing)
    with answering(destination.place):
        destination.client.set_tag(run_id, FILES_TAG, digest)
    return max(1, len(missing))


def _fill_tags(destination: Destination, record: RunRecord, copy: Run) -> int:
    from mlflow.entities import RunTag

    wanted = {
        key: destination.translated(value) for key, value in record.tags.items() if key not in (COPIED_FROM, FILES_TAG)
    }
    parent = record.tags.get(PARENT_TAG)
    if parent is not None and parent not in destination.ids:
        del wanted[PARENT_TAG]  # a run of another store: the UI would ask for it in vain
    there = copy.data.tags
    fresh = [(key, value) for key, value in wanted.items() if there.get(key) != value]
    for batch in batches(fresh, _TAGS):
        destination.client.log_batch(copy.info.run_id, tags=[RunTag(key, value) for key, value in batch])
    return len(fresh)


def _fill_state(destination: Destination, record: RunRecord, copy: Run) -> int:
    """Set name, status and end; the start is set when a run is made."""
    client, info, changes = destination.client, copy.info, 0
    if record.name and info.run_name != record.name:
        client.update_run(info.run_id, name=record.name)
        changes += 1
    if (info.status, info.end_time) == (record.status, record.ended):
        return changes
    if record.status in _ENDED and record.ended is not None:
        client.set_terminated(info.run_id, record.status, record.ended)
    else:
        client.update_run(info.run_id, status=record.status)
    return changes + 1


def batches(pairs: Sequence[tuple[str, str]], count: int) -> Iterator[list[tuple[str, str]]]:
    """Yield texts in lots that a store takes in one request.

    Args:
        pairs: Names and values.
        count: The most that a lot may have.
    """
    lot: list[tuple[str, str]] = []
    characters = 0
    for key, value in pairs:
        if lot and (len(lot) == count or characters + len(key) + len(value) > _BATCH_CHARACTERS):
            yield lot
            lot, characters = [], 0
        lot.append((key, value))
        characters += len(key) + len(value)
    if lot:
        yield lot

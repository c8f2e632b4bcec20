"""Language models chosen from one or more stores, with all their evaluations.

A selection is a text:

| text | runs |
|---|---|
| `tags.K = '4' and params.`optim.lr` = '0.001'` | those that MLflow's filter finds |
| `k4-sweet-spot` or `k4-sweet-spot-sample-1a2b3c4d` | those of a study (a sweep), by its name or how that begins |
| a run's name, its id or the first six characters of that | that run; of a sweep's run those below it |
| nothing | all |
| `STORE::TEXT` | as `TEXT`, in another store: a tracking URI, a work directory, a directory that has `mlruns` |

Only language models with evaluations count: parents, autoencoders and evaluation runs are passed over. Runs of one
identity (a copy in another store, a run that two sweeps share) are the same run and count once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from calm_lightning.errors import TrackingError
from calm_lightning.metrics import names
from calm_lightning.metrics.names import ScorePoint
from calm_lightning.tracking.reading.histories import histories
from calm_lightning.tracking.reading.places import Place, answering, find_place, open_place, place_beside
from calm_lightning.tracking.reading.store_source import COPIED_FROM, experiment_ids, find_runs, pages
from calm_lightning.tracking.store import IDENTITY_TAG, PARENT_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_NO_MODELS = ("sweep", "autoencoder", "evaluation")
"""Stages whose runs are no language models."""
_STORE = re.compile(r"(?P<store>(?:\[[^\]]*\]|(?!::).)+)::(?P<text>.*)", re.DOTALL)
"""A store and a text; the brackets are those of an IPv6 address."""
_OPERATOR = re.compile(r"['\"`=<>]|\b(i?like|in|is)\b", re.IGNORECASE)
_MOST_VALUES = 8
_MEASURED = (
    *(names.BRIER_LM, names.BRIER_LM_SE, names.BRIER_LM_LOW, names.BRIER_LM_HIGH, *names.BRIER_N, *names.BRIER_N_SE),
    *(names.TRAIN_FLOPS, names.TRAIN_FLOPS_TOTAL, names.TEXT_TOKENS, names.SECONDS, names.INFERENCE_FLOPS_PER_TOKEN),
)
"""What an evaluation consists of."""

Progress = Callable[[int, int, str], None]
"""Is told how much of how much is done, and of which selection."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as MLflow has it.

    Attributes:
        run_id: MLflow run id.
        name: Its name.
        experiment: Name of its experiment.
        uri: Tracking URI of its store.
        status: "RUNNING", "FINISHED", "FAILED" or "KILLED".
        parent_run_id: The run it is a part of, None for none.
        tags: Its tags.
        params: Its parameters: the resolved configuration, flat.
        metrics: Last values.
        started: Unix seconds, None where that is not known.
        ended: Unix seconds, None while it runs.
        points: All evaluations by rising step; none for autoencoders.
        experiment_id: Id of its experiment.
    """

    run_id: str
    name: str
    experiment: str
    uri: str
    status: str
    parent_run_id: str | None
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    started: float | None
    ended: float | None
    points: tuple[ScorePoint, ...]
    experiment_id: str = ""

    def tag(self, name: str) -> str:
        """Return a tag by its plain name, "" where there is none; older runs have `calm.` before it."""
        return self.tags.get(name) or self.tags.get(f"calm.{name}", "")

    @property
    def identity(self) -> str:
        """What is equal for all copies of a run."""
        return self.tags.get(IDENTITY_TAG) or self.tags.get(COPIED_FROM) or self.run_id


def split_selection(text: str, default: Place) -> tuple[Place, str]:
    """Return the store of a selection and what it says without the store.

    Args:
        text: The selection.
        default: The store where it names none.
    """
    match = _STORE.fullmatch(text)
    if match is None or re.search(r"['\"`=<>]", match["store"]):
        return default, text.strip()
    return find_store(match["store"].strip()), match["text"].strip()


def find_store(text: str) -> Place:
    """Return the store that is meant by a URI, a file, a directory that has `mlruns`, or a work directory beside it."""
    place = find_place(text)
    if place.directory is not None and not (place.directory / "mlflow.db").is_file():
        beside = place_beside(text)
        if Path(text).is_dir() and beside.directory is not None and (beside.directory / "mlflow.db").is_file():
            return beside
    return place


def select_runs(
    selections: Sequence[str],
    default: Place,
    *,
    experiments: Sequence[str] = (),
    progress: Progress | None = None,
) -> list[TrackedRun]:
    """Return the language models that some selections mean together, those started first in front.

    Args:
        selections: The selections, see the head of this module; [""] means all runs of the default store.
        default: The store of selections that name none.
        experiments: Names of the experiments to look in; all where there is none.
        progress: Is told of what is read.

    Raises:
        TrackingError: A store cannot be opened or does not answer, a filter cannot be read, or nothing is found.
    """
    found: dict[str, TrackedRun] = {}
    for selection in selections:
        place, text = split_selection(selection, default)
        client = open_place(place)
        ids = experiment_ids(client, place, experiments)
        chosen = [run for run in _chosen(client, place, ids, text) if _is_model(run)]
        if not chosen:
            raise TrackingError(_nothing(client, place, ids, text))
        told = None if progress is None else partial(_tell, progress, selection)
        for run in _read(client, place, chosen, told):
            if run.points:
                found[run.identity] = _better(found.get(run.identity), run)
    if not found:
        raise TrackingError("none of the chosen runs has a whole evaluation yet: wait for the first one")
    return sorted(found.values(), key=lambda run: (run.started or 0.0, run.name, run.run_id))


def read_run(word: str, default: Place) -> TrackedRun:
    """Return one run of any kind: an autoencoder, a sweep's, a model's.

    Args:
        word: Its id, the first six or more characters of that, or its name, perhaps with a store before it.
        default: The store where it names none.

    Raises:
        TrackingError: It is not there, or several are meant.
    """
    place, text = split_selection(word, default)
    client = open_place(place)
    found = find_runs(client, place, experiment_ids(client, place), text)
    if len(found) != 1:
        several = f"{len(found)} runs in {place.shown} are meant by {word!r}: give the id of one of them"
        raise TrackingError(several if found else f"no run in {place.shown} is meant by {word!r}")
    return _read(client, place, found, None)[0]


def _tell(progress: Progress, what: str, done: int, of: int) -> None:
    progress(done, of, what)


def _better(before: TrackedRun | None, after: TrackedRun) -> TrackedRun:
    """Return which of two copies of a run is kept: the one with more evaluations, else the first."""
    return after if before is None or len(after.points) > len(before.points) else before


def _is_model(run: Run) -> bool:
    tags = run.data.tags
    return names.BRIER_LM in run.data.metrics and (tags.get("stage") or tags.get("calm.stage")) not in _NO_MODELS


def _chosen(client: MlflowClient, place: Place, ids: Sequence[str], text: str) -> list[Run]:
    """Return the runs that a text means, of all kinds."""
    if not text or _OPERATOR.search(text):
        return find_runs(client, place, ids, text)
    if in_study := _of_study(client, place, ids, text):
        return in_study
    found = find_runs(client, place, ids, text)
    below = [f"tags.`{PARENT_TAG}` = '{run.info.run_id}'" for run in found if not _is_model(run)]
    return [*found, *(run for filter_string in below for run in find_runs(client, place, ids, filter_string))]


def _of_study(client: MlflowClient, place: Place, ids: Sequence[str], name: str) -> list[Run]:
    """Return the runs of a study, by its name or how that begins.

    Raises:
        TrackingError: Several studies begin so.
    """
    for tag in ("study", "calm.study"):
        runs = find_runs(client, place, ids, f"tags.`{tag}` LIKE '{name}%'")
        studies = {str(run.data.tags[tag]) for run in runs}
        if name in studies:
            return [run for run in runs if run.data.tags[tag] == name]
        whole_words = sorted(study for study in studies if study.startswith(f"{name}-"))
        if len(whole_words) > 1:
            raise TrackingError(
                f"{name!r} begins the names of {len(whole_words)} studies in {place.shown} ({_listed(whole_words)}): "
                f"give the whole name of one of them, or \"tags.{tag} LIKE '{name}%'\" for all"
            )
        if whole_words:
            return [run for run in runs if run.data.tags[tag] == whole_words[0]]
    return []


def _read(
    client: MlflowClient, place: Place, runs: Sequence[Run], progress: Callable[[int, int], None] | None
) -> list[TrackedRun]:
    """Return runs with their evaluations."""
    scored = [run.info.run_id for run in runs if _is_model(run)]
    with answering(place):
        experiments = {one.experiment_id: one.name for one in pages(client.search_experiments)}
        steps = histories(client, scored, _MEASURED, progress)
    return [
        TrackedRun(
            run_id=run.info.run_id,
            name=run.info.run_name or "",
            experiment=experiments.get(run.info.experiment_id, run.info.experiment_id),
            uri=place.uri,
            status=run.info.status,
            parent_run_id=run.data.tags.get(PARENT_TAG),
            tags={str(key): str(value) for key, value in run.data.tags.items()},
            params={str(key): str(value) for key, value in run.data.params.items()},
            metrics={str(key): float(value) for key, value in run.data.metrics.items()},
            started=_seconds(run.info.start_time),
            ended=_seconds(run.info.end_time),
            points=_points(steps.get(run.info.run_id, {})),
            experiment_id=run.info.experiment_id,
        )
        for run in runs
    ]


def _points(steps: dict[int, dict[str, float]]) -> tuple[ScorePoint, ...]:
    """Return the evaluations that are whole: of a run that is being sent, the last one may not be."""
    whole = [(step, steps[step]) for step in sorted(steps) if all(name in steps[step] for name in _MEASURED)]
    return tuple(point for step, values in whole if (point := ScorePoint.from_metrics(step, values)) is not None)


def _seconds(milliseconds: int | None) -> float | None:
    return None if not milliseconds else milliseconds / 1000


def _nothing(client: MlflowClient, place: Place, ids: Sequence[str], text: str) -> str:
    """Return the sentence for a selection without a language model: what is there instead."""
    wanted = f"no language model in {place.shown} is meant by {text!r}" if text else f"{place.shown} has none"
    models = [run for run in find_runs(client, place, ids, "") if _is_model(run)]
    if not models:
        return f"{wanted}: there is no run with a BrierLM yet, so train something first (calm reproduce k4-sweet-spot)"
    there = []
    for tag in ("stage", "study", "K"):
        values = {run.data.tags.get(tag) or run.data.tags.get(f"calm.{tag}", "") for run in models} - {""}
        if values:
            there.append(f"{tag} {_listed(sorted(values, key=_by_size))}")
    return f"{wanted}: its {len(models)} language models have {'; '.join(there) or 'no tags of this platform'}"


def _by_size(text: str) -> tuple[float, str]:
    """Return what to sort values by: numbers by size, before words."""
    return (float(text), "") if text.replace(".", "", 1).isdigit() else (float("inf"), text)


def _listed(values: Iterable[str]) -> str:
    known = list(values)
    more = f" and {len(known) - _MOST_VALUES} more" if len(known) > _MOST_VALUES else ""
    return ", ".join(known[:_MOST_VALUES]) + more

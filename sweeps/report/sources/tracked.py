"""Runs of an MLflow store -> reported runs; what the store does not have is left empty."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from calm_lightning.errors import TrackingError
from calm_lightning.metrics import names
from calm_lightning.tracking.moving.run_files import RunFiles
from calm_lightning.tracking.reading.histories import histories
from calm_lightning.tracking.reading.places import Place, answering, open_place
from calm_lightning.tracking.reading.selection import TrackedRun
from calm_lightning.tracking.tags import AUTOENCODER_RUN_TAG
from sweeps.cache.records import CONFIG, RESULT
from sweeps.front.series import PRUNED
from sweeps.front.tracked import parsed
from sweeps.report.sources.folders import (
    ENVIRONMENT,
    SAMPLE,
    environment_of,
    is_run,
    protocol_of,
    read_environment,
    read_folder,
)
from sweeps.report.sources.run import (
    AUTOENCODER,
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    UNFINISHED,
    ReportedRun,
    evaluations_of,
    metrics_of,
)

_STATES = {"RUNNING": RUNNING, "FINISHED": FINISHED, "FAILED": FAILED, "KILLED": UNFINISHED}
_TAGS = ("study", "trial", "model", "slug", "seed", "corpus", "K", "l", "N", "M", "head")
_RESTORED = (
    *(names.VAL_ACCURACY_MEAN, names.VAL_ACCURACY_SAMPLED, names.VAL_CROSS_ENTROPY, names.VAL_KL, names.TEXT_TOKENS),
    *(names.TRAIN_FLOPS, names.TRAIN_FLOPS_TOTAL, names.SECONDS),
)
"""What an autoencoder's curve consists of."""


class _RunTexts(RunFiles):
    """Small text files of runs, without the models that lie beside them."""

    def read(self, run_id: str, wanted: Sequence[str]) -> dict[str, str]:
        """Return those of the wanted files that a run has.

        Raises:
            TrackingError: The store fails.
        """
        repository = self._repository(run_id, self._location(run_id))
        with answering(self._place), tempfile.TemporaryDirectory(prefix="calm-report-") as scratch:
            there = {str(info.path) for info in repository.list_artifacts()}
            found = [name for name in wanted if name in there]
            for name in found:
                repository.download_artifacts(name, scratch)
            return {name: (Path(scratch) / name).read_text(encoding="utf-8", errors="replace") for name in found}


def folder_at_hand(run: TrackedRun) -> Path | None:
    """Return the run directory of a run where it is on this machine and still that run's."""
    place, identity = run.tags.get("calm.run_dir", ""), run.tags.get("calm.identity", "")
    if not place or not identity or not is_run(Path(place)):
        return None
    return Path(place) if Path(place).name.endswith(f"-{identity[:10]}") else None


def read_tracked(run: TrackedRun, place: Place) -> ReportedRun:
    """Return a run from its directory where that is at hand, which has everything, else from its store.

    Args:
        run: The run.
        place: The store it was found in.

    Raises:
        SweepError: A file of its directory is damaged.
        TrackingError: The store fails.
    """
    folder = folder_at_hand(run)
    return _as_ended(read_folder(folder) if folder is not None else _read_store(run, place), run)


def _as_ended(own: ReportedRun, run: TrackedRun) -> ReportedRun:
    """Return a run with what only MLflow knows: its place in a sweep, and that the sweep stopped it."""
    tags = {**own.tags, **{name: run.tag(name) for name in _TAGS if run.tag(name)}}
    if run.tag("state") == PRUNED:
        return replace(own, tags=tags, state=STOPPED, reason=run.tag("reason") or "stopped early")
    return replace(own, tags=tags)


def _read_store(run: TrackedRun, place: Place) -> ReportedRun:
    """Return a run as its store has it.

    Raises:
        TrackingError: The store fails.
    """
    client = open_place(place)
    try:
        texts = _RunTexts(client, place).read(run.run_id, (CONFIG, RESULT, ENVIRONMENT, SAMPLE))
    except (TrackingError, OSError):
        texts = {}  # a store whose files lie elsewhere still has numbers, parameters and tags
    stage, identity = run.tag("stage"), run.tags.get("calm.identity", "")
    resolved, result = _config(texts.get(CONFIG, ""), run.params), _mapping(texts.get(RESULT, ""))
    evaluations: dict[int, Mapping[str, float]] = {point.step: metrics_of(point) for point in run.points}
    if stage == AUTOENCODER:
        with answering(place):
            evaluations = evaluations_of(histories(client, [run.run_id], _RESTORED, lambda done, of: None)[run.run_id])
    facts, packages = read_environment(texts.get(ENVIRONMENT, ""))
    protocol = result.get("protocol") if isinstance(result.get("protocol"), dict) else protocol_of(resolved, run.tags)
    return ReportedRun(
        name=run.name or run.run_id,
        stage=stage,
        state=_STATES.get(run.status, UNFINISHED),
        resolved=resolved,
        evaluations=evaluations,
        points=run.points,
        identity=identity,
        protocol=protocol or {},
        environment=environment_of(run.tags, facts, protocol or {}, resolved),
        packages=packages,
        text=texts.get(SAMPLE, ""),
        autoencoder=run.tag(AUTOENCODER),
        mlflow_run_id=run.run_id,
        store=place.shown,
        tags=run.tags,
        ended=run.ended,
    )


def autoencoder_run_of(run: TrackedRun) -> str:
    """Return the MLflow run id of the autoencoder that a run uses, "" where it names none."""
    return run.tags.get(AUTOENCODER_RUN_TAG, "")


def _config(text: str, params: Mapping[str, str]) -> dict[str, Any]:
    """Return the resolved configuration: the file where the run has it, else its parameters."""
    found = _mapping(text)
    if found:
        return found
    nested: dict[str, Any] = {}
    for key, value in params.items():
        section = nested
        *above, last = key.split(".")
        for name in above:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                break
        else:
            section[last] = parsed(value)
    return nested


def _mapping(text: str) -> dict[str, Any]:
    """Return the mapping that a YAML or JSON text is, empty where it is none."""
    try:
        found = json.loads(text) if text.startswith("{") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}

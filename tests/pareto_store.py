"""MLflow stores with runs as the platform logs them, whose learning curves are known exactly."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from calm_lightning.config import RunConfig, load_config
from calm_lightning.metrics import names
from calm_lightning.tracking.reading.places import Place, find_place, open_place
from calm_lightning.tracking.store import flatten

AUTOENCODER_FLOPS = 2e12
STEP_FLOPS = {None: 4e10, 1: 5e10, 2: 2.5e10, 4: 1.5e10, 8: 1e10}
PER_TOKEN = {None: 4e6, 1: 5e6, 2: 3e6, 4: 2e6, 8: 1.5e6}
STEPS = (0, 100, 200, 400, 800, 1600)


def score(K: int | None, flops: float) -> float:
    """The true learning curve: a straight line over the logarithm of training FLOPs, steeper for larger K."""
    start, slope = {None: (12.3, 2.0), 1: (12.4, 1.5), 2: (12.3, 2.2), 4: (12.2, 2.5), 8: (12.4, 1.8)}[K]
    return max(0.0, slope * (math.log10(max(flops, 1.0)) - start))


def new_store(directory: Path) -> Place:
    """An empty SQLite store in `directory`/mlruns."""
    place = find_place(directory)
    assert place.directory is not None
    place.directory.mkdir(parents=True)
    shutil.copy(_empty_store(), place.directory)
    return place


@cache
def _empty_store() -> Path:
    """A store to copy: making its tables anew takes seconds."""
    place = find_place(tempfile.mkdtemp())
    open_place(place, make=True)
    return Path(place.uri.removeprefix("sqlite:///"))


@cache
def _config(stage: str) -> RunConfig:
    return load_config([f"sample-{stage}"], stage=stage)


def _params(stage: str, K: int | None, seed: int, changes: Mapping[str, Any]) -> dict[str, str]:
    values = dict(flatten(asdict(_config(stage))))
    values |= {"model.vocabulary": "257", "seed": str(seed)}
    if K is not None:
        values |= {"model.K": str(K), "model.l": str(32 * K), "autoencoder_run": f"runs/autoencoder/K{K}-s{seed}"}
    return values | {key: str(value) for key, value in changes.items()}


def evaluation_metrics(step: int, K: int | None, shift: float, se: float, below: float) -> list[Metric]:
    """What one evaluation logs."""
    flops = step * STEP_FLOPS[K] + below
    value = max(0.0, score(K, flops) + shift) if step else 0.0
    logged = {
        names.BRIER_LM: value,
        names.BRIER_LM_SE: se,
        names.BRIER_LM_LOW: max(0.0, value - 1.96 * se),
        names.BRIER_LM_HIGH: value + 1.96 * se,
        names.TRAIN_FLOPS: flops - below,
        names.TRAIN_FLOPS_TOTAL: flops,
        names.TEXT_TOKENS: 6144.0 * step,
        names.SECONDS: 0.05 * step,
        names.INFERENCE_FLOPS_PER_TOKEN: PER_TOKEN[K],
        **dict.fromkeys(names.BRIER_N, value),
        **dict.fromkeys(names.BRIER_N_SE, se),
    }
    return [Metric(name, number, 1_700_000_000_000 + step, step) for name, number in logged.items()]


def add_run(
    place: Place,
    K: int | None,
    *,
    seed: int = 0,
    shift: float = 0.0,
    se: float = 0.1,
    steps: Iterable[int] = STEPS,
    study: str = "",
    experiment: str = "calm",
    parent: str = "",
    tags: Mapping[str, str] | None = None,
    params: Mapping[str, Any] | None = None,
    status: str = "FINISHED",
) -> str:
    """Log a language model, the token baseline where K is None, and return its run id."""
    client = open_place(place)
    stage = "baseline" if K is None else "calm"
    slug = stage if K is None else f"K{K}"
    own = {
        "stage": stage,
        "seed": str(seed),
        "calm.identity": f"{study}/{slug}/{seed}/{shift}/{sorted((params or {}).items())}",
    }
    if K is not None:
        own |= {"K": str(K), "l": str(32 * K)}
    if study:
        label = "baseline" if K is None else f"CALM K={K}"
        own |= {"study": study, "slug": slug, "model": label, "trial": str(10 * (K or 0) + seed), "state": "complete"}
    if parent:
        own["mlflow.parentRunId"] = parent
    run_id = _begin(client, experiment, f"{stage}-{slug}-s{seed}", own | dict(tags or {}))
    values = [Param(key, value) for key, value in _params(stage, K, seed, params or {}).items()]
    for start in range(0, len(values), 100):
        client.log_batch(run_id, params=values[start : start + 100])
    below = 0.0 if K is None else AUTOENCODER_FLOPS
    metrics = [metric for step in steps for metric in evaluation_metrics(step, K, shift, se, below)]
    client.log_batch(run_id, metrics=[*metrics, Metric("train/loss", 1.0, 1_700_000_000_000, 1)])
    if status != "RUNNING":
        client.set_terminated(run_id, status)
    return run_id


def add_other(
    place: Place, stage: str, *, study: str = "", experiment: str = "calm", brier: float | None = None
) -> str:
    """Log a run that is no language model and return its id."""
    client = open_place(place)
    tags = {"stage": stage, "calm.identity": f"{study}/{stage}"} | ({"study": study} if study else {})
    run_id = _begin(client, experiment, study if stage == "sweep" else stage, tags)
    if brier is not None:
        client.log_batch(run_id, metrics=[Metric(names.BRIER_LM, brier, 0, 0)])
    client.set_terminated(run_id)
    return run_id


def add_sweep(place: Place, study: str, Ks: Sequence[int | None], *, seeds: int = 1, experiment: str = "calm") -> str:
    """Log a sweep with its models, whose seeds scatter by 0.1, and return its run's id."""
    parent = add_other(place, "sweep", study=study, experiment=experiment)
    for K in Ks:
        for seed in range(seeds):
            shift = 0.1 * (seed - (seeds - 1) / 2)
            add_run(place, K, seed=seed, shift=shift, study=study, experiment=experiment, parent=parent)
    return parent


def _begin(client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str]) -> str:
    known = client.get_experiment_by_name(experiment)
    experiment_id = known.experiment_id if known else client.create_experiment(experiment)
    run_id = client.create_run(experiment_id, run_name=name).info.run_id
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    return str(run_id)

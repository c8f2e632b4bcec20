"""Runs of a store as rows of a table: what was trained, how well, at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from calm_lightning.metrics.names import BRIER_LM, BRIER_LM_SE, TRAIN_FLOPS, TRAIN_FLOPS_TOTAL
from calm_lightning.tracking.reading.places import Place, open_place
from calm_lightning.tracking.reading.store_source import experiment_ids, find_runs
from calm_lightning.tracking.store import PARENT_TAG

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class RunRow:
    """One run.

    Attributes:
        run_id: MLflow run id.
        name: Its name.
        experiment_id: Id of its experiment.
        parent_run_id: The run it is a part of, "" for none.
        stage: "autoencoder", "calm", "baseline", "evaluation" or "sweep"; "" where the run is not of this platform.
        K: Tokens per chunk, "" where it has none; so have `l`, the latent dimension, `N`, the head's samples in the
            loss, and `head`, the kind of head.
        l: See `K`.
        N: See `K`.
        head: See `K`.
        brier_lm: Last BrierLM, percent, None where there is none.
        brier_lm_se: Its standard error.
        train_flops: Training FLOPs, those of the autoencoder included.
        status: MLflow's status in small letters.
        study: The sweep it belongs to, "" for none.
        pareto: "front", "dominated" or "".
        started: Unix milliseconds, None where that is not known.
    """

    run_id: str
    name: str
    experiment_id: str
    parent_run_id: str
    stage: str
    K: str
    l: str
    N: str
    head: str
    brier_lm: float | None
    brier_lm_se: float | None
    train_flops: float | None
    status: str
    study: str
    pareto: str
    started: int | None


def list_runs(place: Place, word: str = "", experiments: Sequence[str] = ()) -> list[RunRow]:
    """Return runs of a store, those started last first.

    Args:
        place: The store.
        word: A run id or its beginning, a run name or an MLflow filter; "" means all runs.
        experiments: Names of the experiments to look in; all where there is none.

    Raises:
        TrackingError: The store cannot be opened, or the filter cannot be read.
    """
    client = open_place(place)
    return [_row(run) for run in find_runs(client, place, experiment_ids(client, place, experiments), word)]


def _row(run: Run) -> RunRow:
    tags, metrics = run.data.tags, run.data.metrics

    def tag(name: str) -> str:
        return str(tags.get(name) or tags.get(f"calm.{name}", ""))  # runs of earlier versions have the prefix

    return RunRow(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        experiment_id=run.info.experiment_id,
        parent_run_id=tags.get(PARENT_TAG, ""),
        stage=tag("stage"),
        K=tag("K"),
        l=tag("l"),
        N=tag("N"),
        head=tag("head"),
        brier_lm=metrics.get(BRIER_LM),
        brier_lm_se=metrics.get(BRIER_LM_SE),
        train_flops=metrics.get(TRAIN_FLOPS_TOTAL, metrics.get(TRAIN_FLOPS)),
        status=run.info.status.lower(),
        study=tag("study"),
        pareto=tag("pareto"),
        started=run.info.start_time,
    )

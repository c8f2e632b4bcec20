"""Series of runs that MLflow has, whichever sweep or command trained them.

MLflow's tags and parameters hold the resolved configuration of a run, so its point of the search space can be told
without the sweep. Runs are one model where only the seed differs: the parameters that change numbers are equal, the
corpus, what their autoencoders cost, and in sweeps the slug, which knows how autoencoders were trained.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from calm_lightning.flops.parameters import baseline_parameters, calm_parameters
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.stages.trainer_keys import NOT_IN_IDENTITY
from calm_lightning.tracking.reading.selection import TrackedRun
from sweeps.front.series import COMPLETE, SETTINGS, Series

UNFINISHED = "unfinished"
"""State of a run that is still being trained, or was left in the middle."""

_OF_BASELINE = ("model.d", "model.layers", "optim.lr")
_PLACES = ("seed", "name", "stage", "work_dir", "autoencoder_run", "checkpoint_steps")
_MACHINE = ("corpus", "shards_at", "workers", "record_batches", "on_bad_shard", "cache_dir", "cache_gb", "retries")
_SAME_NUMBERS = frozenset(
    [*_PLACES, *(f"data.{name}" for name in (*_MACHINE, "timeout")), *(f"trainer.{name}" for name in NOT_IN_IDENTITY)]
)
"""Parameters that may differ between seeds of one model."""


def series_of(run: TrackedRun) -> Series:
    """Return the series of a language model's run.

    Its swept keys are those that its label names; without a label, as runs outside sweeps are, there are none.

    Args:
        run: The run, with at least one evaluation.
    """
    stage = run.tag("stage") or run.params.get("stage", "calm")
    label = run.tag("model")
    state = run.tag("state")
    ended_well = run.status == "FINISHED"
    seed = int(run.params.get("seed", run.tag("seed") or 0))
    return Series(
        label=label or run.name.removesuffix(f"-s{seed}"),
        stage=stage,
        values=_values(label, run.params),
        parameters=_parameters(stage, run.params),
        points=run.points,
        run_dir=run.tag("run_dir"),
        autoencoder_dir=run.params.get("autoencoder_run", ""),
        mlflow_run_id=run.run_id,
        text="",
        slug=_slug(run, stage),
        seed=seed,
        trial=int(run.tag("trial") or 0),
        state=state or (COMPLETE if ended_well else UNFINISHED),
        settings=_settings(stage, run.params),
        reason=run.tag("reason") or ("" if state or ended_well else f"MLflow has it as {run.status.lower()}"),
        finished=run.ended,
    )


def _slug(run: TrackedRun, stage: str) -> str:
    """Return what is equal for the seeds of one model, and differs between any two models."""
    same = {key: value for key, value in run.params.items() if key not in _SAME_NUMBERS and key[:9] != "tracking."}
    last = run.points[-1] if run.points else None
    below = round(last.train_flops - last.stage_train_flops, -3) if last else 0.0
    text = json.dumps([stage, same, run.tag("corpus"), below], sort_keys=True)
    return f"{run.tag('slug') or stage}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _values(label: str, params: Mapping[str, str]) -> dict[str, Any]:
    """Return the swept keys: a label of a sweep is "CALM K=4, lr=0.001", with the last part of each key."""
    found: dict[str, Any] = {}
    for part in label.partition(" ")[2].split(", "):
        name, equals, text = part.partition("=")
        if equals:
            key = name if "." in name else _key(name, params)
            found[key] = parsed(params[key]) if key in params else parsed(text)
    return found


def _key(name: str, params: Mapping[str, str]) -> str:
    """Return the key that a last part is short for: one of `SETTINGS` before others."""
    ends = f".{name}"
    return next((key for key in (*SETTINGS, *sorted(params)) if key.endswith(ends) and key in params), name)


def _settings(stage: str, params: Mapping[str, str]) -> dict[str, Any]:
    keys = _OF_BASELINE if stage == "baseline" else SETTINGS
    return {key: parsed(params[key]) for key in keys if key in params}


def _parameters(stage: str, params: Mapping[str, str]) -> int:
    """Return the trained parameters, counted from the shape; 0 where MLflow has no shape."""
    shape = {
        one.name: parsed(params[f"model.{one.name}"])
        for one in fields(LanguageModelConfig)
        if f"model.{one.name}" in params
    }
    model = replace(LanguageModelConfig(), **shape)
    if model.vocabulary is None:
        return 0
    count = baseline_parameters if stage == "baseline" else calm_parameters
    return sum(count(model, model.vocabulary).values())


def parsed(text: str) -> Any:
    """Return the value that a parameter's text stands for: "null" is None, "0.15" a number, the rest text."""
    if text == "null":
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

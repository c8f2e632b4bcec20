"""One run as a report needs it, wherever it was read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from calm_lightning.config import RunConfig, merge
from calm_lightning.errors import ConfigError
from calm_lightning.metrics import names
from calm_lightning.metrics.names import TEXT_TOKENS, ScorePoint

FINISHED, UNFINISHED, RUNNING, STOPPED, FAILED = "finished", "unfinished", "being trained", "stopped early", "failed"
AUTOENCODER = "autoencoder"


@dataclass(frozen=True)
class ReportedRun:
    """A run of one stage.

    Attributes:
        name: Readable name.
        stage: "autoencoder", "calm" or "baseline".
        state: `FINISHED`, `UNFINISHED`, `RUNNING`, `STOPPED` or `FAILED`.
        resolved: The resolved configuration as nested mappings; empty where it is not known.
        evaluations: Everything that was logged at the steps of evaluations, by rising step.
        points: Every evaluation of a language model by rising step; none for autoencoders.
        identity: SHA-256 of everything that changes its numbers; "" where it is not known.
        protocol: How it was scored, as far as that is known (`calm_lightning.metrics.protocol`).
        environment: What it was made with: commit, machine, versions, by name.
        packages: Every installed package, one a line; "" where it is not known.
        text: A sample of generated text.
        run_dir: Its run directory on this machine, "" where it is not at hand.
        autoencoder: Identity of the autoencoder that it uses, "" for none.
        autoencoder_dir: Run directory of that autoencoder, "" where it is not at hand.
        mlflow_run_id: MLflow run id, "" where it was not recorded.
        store: MLflow store that it was read from; "" where it was read from its directory.
        tags: Tags of its MLflow run: study, trial, label and point, where it belongs to a sweep.
        reason: Why it is not finished, "" where it is or where that is not known.
        ended: When it ended, unix seconds; None where that is not known.
    """

    name: str
    stage: str
    state: str
    resolved: Mapping[str, Any]
    evaluations: Mapping[int, Mapping[str, float]]
    points: tuple[ScorePoint, ...] = ()
    identity: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    packages: str = ""
    text: str = ""
    run_dir: str = ""
    autoencoder: str = ""
    autoencoder_dir: str = ""
    mlflow_run_id: str = ""
    store: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    ended: float | None = None

    @property
    def key(self) -> str:
        """What is equal for one run however it was named."""
        return self.identity or self.run_dir or self.mlflow_run_id

    @property
    def seed(self) -> int:
        """The one seed of the run."""
        return int(self.resolved.get("seed", self.tags.get("seed", 0)) or 0)

    @property
    def trained(self) -> bool:
        """Whether there is an evaluation after some training."""
        return max(self.evaluations, default=0) > 0

    @property
    def steps(self) -> int:
        """Optimiser steps at the last evaluation."""
        return max(self.evaluations, default=0)

    @property
    def planned_steps(self) -> int | None:
        """Optimiser steps that it is to be trained, None where that is not known."""
        steps = self.section("trainer").get("max_steps")
        return int(steps) if isinstance(steps, (int, float)) else None

    @property
    def last(self) -> Mapping[str, float]:
        """Everything that was logged at the last evaluation."""
        return self.evaluations[self.steps] if self.evaluations else {}

    @property
    def text_tokens(self) -> float:
        """Text tokens trained on at the last evaluation; NaN where that was not logged."""
        return self.last.get(TEXT_TOKENS, math.nan)

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a section of the configuration, empty where it is not known."""
        found = self.resolved.get(name)
        return found if isinstance(found, Mapping) else {}

    def config(self) -> RunConfig | None:
        """Return the configuration as a typed value; None where it is unknown or of another version of the schema."""
        if not self.resolved:
            return None
        try:
            return merge(RunConfig, [(self.name, OmegaConf.create(dict(self.resolved)))])
        except ConfigError:
            return None

    def state_in_words(self) -> str:
        """Return the state, with how far training came where it has not finished."""
        if self.state == FINISHED:
            return self.state
        steps = f"{self.steps:,}" + (f" of {self.planned_steps:,}" if self.planned_steps else "")
        return f"{self.state} after {steps} steps"


def evaluations_of(steps: Mapping[int, Mapping[str, float]]) -> dict[int, Mapping[str, float]]:
    """Return the steps at which a run was evaluated, out of all that it logged."""
    return {
        step: values
        for step, values in steps.items()
        if TEXT_TOKENS in values and any(name.startswith("val/") for name in values)
    }


def metrics_of(point: ScorePoint) -> dict[str, float]:
    """Return an evaluation as it was logged, as far as reports look at it."""
    return {
        names.BRIER_LM: point.brier_lm,
        names.TEXT_TOKENS: point.text_tokens,
        names.SECONDS: point.seconds,
        names.TRAIN_FLOPS: point.stage_train_flops,
        names.TRAIN_FLOPS_TOTAL: point.train_flops,
    }

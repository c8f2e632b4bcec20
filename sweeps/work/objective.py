"""One trial: train the autoencoder of a point (or find it trained), then its language model, keep the evaluations.

Training is a parameter (`Execute`), so this room needs neither torch nor Lightning to be imported or tested.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from calm_lightning.config import RunConfig
from calm_lightning.errors import SweepError
from calm_lightning.flops.count import for_stage
from calm_lightning.metrics.names import ScorePoint
from sweeps.front.series import Series
from sweeps.space.points import Point


class Outcome(Protocol):
    """What a sweep needs to know of a finished run (`calm_lightning.run.RunResult` has it)."""

    @property
    def run_dir(self) -> Path:
        """The run directory."""

    @property
    def points(self) -> tuple[ScorePoint, ...]:
        """All evaluations of a language model, the untrained one included."""

    @property
    def text(self) -> str:
        """A sample of generated text."""

    @property
    def mlflow_run_id(self) -> str | None:
        """MLflow run id."""


class Execute(Protocol):
    """Trains one run, or continues it, or finds it finished."""

    def __call__(
        self,
        config: RunConfig,
        *,
        parent_run_id: str | None = None,
        tags: dict[str, str] | None = None,
        progress: bool = True,
    ) -> Outcome:
        """Return the finished run."""


class Objective:
    """Trains points.

    Args:
        execute: Trains one run.
        vocabulary: Vocabulary size V of the corpus.
        parent_run_id: MLflow run id of the study's parent run.
        study: Name of the study, a tag of every run.
        announce: Told what is trained next: the point's label, and which of its stages.
    """

    def __init__(
        self,
        execute: Execute,
        *,
        vocabulary: int,
        parent_run_id: str | None,
        study: str,
        announce: Callable[[str, str], None],
    ) -> None:
        self._execute, self._announce = execute, announce
        self._vocabulary, self._parent, self._study = vocabulary, parent_run_id, study

    def __call__(self, point: Point, trial: int) -> Series:
        """Train one point.

        Args:
            point: The point.
            trial: Number of the Optuna trial, a tag of the runs.

        Returns:
            Its evaluations.

        Raises:
            SweepError: The run was never evaluated.
        """
        autoencoder_dir = ""
        if point.autoencoder is not None:
            autoencoder_dir = str(self._run(point.autoencoder, point, trial).run_dir)
        outcome = self._run(point.language_model(autoencoder_dir), point, trial)
        if not outcome.points:
            raise SweepError(f"{point.label} was never evaluated: {outcome.run_dir} holds no BrierLM")
        return Series(
            label=point.label,
            stage=point.stage,
            values=point.values,
            parameters=parameters(point, self._vocabulary),
            points=tuple(outcome.points),
            run_dir=str(outcome.run_dir),
            autoencoder_dir=autoencoder_dir,
            mlflow_run_id=outcome.mlflow_run_id,
            text=outcome.text,
        )

    def quietly(self, point: Point, trial: int) -> Series:
        """Do the same without announcing anything, for points that have finished."""
        silent = Objective(
            self._execute,
            vocabulary=self._vocabulary,
            parent_run_id=self._parent,
            study=self._study,
            announce=lambda label, what: None,
        )
        return silent(point, trial)

    def _run(self, config: RunConfig, point: Point, trial: int) -> Outcome:
        self._announce(point.label, config.stage if config.stage == "autoencoder" else "language model")
        tags = {"calm.study": self._study, "calm.trial": str(trial), "calm.point": point.label}
        return self._execute(config, parent_run_id=self._parent, tags=tags, progress=True)


def parameters(point: Point, vocabulary: int) -> int:
    """Return the trained parameters of a point's language model, its autoencoder left out."""
    config = point.model
    V = config.model.vocabulary or vocabulary
    return for_stage(config.stage, config.model, config.autoencoder, V, config.data.block_tokens).parameters_total

"""One trial: have the autoencoder of a point, which is trained once for all, train the language model, keep its scores.

Training is a parameter (`Execute`), so this room needs neither torch nor Lightning to be imported or tested.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from calm_lightning.config import RunConfig
from calm_lightning.errors import BusyError, SweepError
from calm_lightning.metrics.names import ScorePoint
from calm_lightning.stages.watch import RunStopped, Watch
from sweeps.budget.rule import report_of
from sweeps.cache.stage_cache import CacheUse, StageCache
from sweeps.front.series import SETTINGS, Series
from sweeps.space.points import AUTOENCODER, Point

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 10.0


class Outcome(Protocol):
    """What a sweep needs to know of a finished run (`calm_lightning.run.RunResult` has it)."""

    @property
    def run_dir(self) -> Path:
        """The run directory."""

    @property
    def points(self) -> tuple[ScorePoint, ...]:
        """All evaluations of a language model, the untrained one included."""

    @property
    def train_flops(self) -> float:
        """Training FLOPs, those of the autoencoder it uses included."""

    @property
    def text(self) -> str:
        """A sample of generated text."""

    @property
    def mlflow_run_id(self) -> str | None:
        """MLflow run id."""


class Execute(Protocol):
    """Trains one run, or continues it, or finds it finished (`calm_lightning.run.execute`)."""

    def __call__(
        self,
        config: RunConfig,
        *,
        parent: str = "",
        tags: dict[str, str] | None = None,
        progress: bool = True,
        watch: Watch | None = None,
    ) -> Outcome:
        """Return the finished run."""


class Place(Protocol):
    """Where a run is or will be (`calm_lightning.run.RunPlace`)."""

    @property
    def run_dir(self) -> Path:
        """The run directory."""

    @property
    def identity(self) -> str:
        """SHA-256 of everything that changes the run's numbers."""


class Objective:
    """Trains points.

    Args:
        execute: Trains one run.
        locate: Says where a run is or will be.
        cache: The autoencoders that are there, and who trains those that are not.
        vocabulary: Vocabulary size V of the corpus.
        parent: Identity of the study's MLflow run, "" where the sweep is not recorded there.
        study: Name of the study, a tag of every run.
    """

    def __init__(
        self,
        execute: Execute,
        locate: Callable[[RunConfig], Place],
        cache: StageCache,
        *,
        vocabulary: int,
        parent: str,
        study: str,
    ) -> None:
        self._execute, self._locate, self._cache = execute, locate, cache
        self._vocabulary, self._parent, self._study = vocabulary, parent, study

    def __call__(self, point: Point, trial: int, watch: TrialWatch) -> Series:
        """Train one point.

        Args:
            point: The point, with its seeds.
            trial: Number of the trial, a tag of the runs.
            watch: Is told what is trained and of every evaluation; may stop it.

        Returns:
            Its evaluations.

        Raises:
            SweepError: The run was never evaluated.
            RunStopped: The watch stopped it.
        """
        below = ""
        if point.autoencoder is not None:
            below = self._autoencoder(point, trial, watch)
        config = point.language_model(below)
        place = self._locate(config)
        watch.begins(config, place.run_dir)
        outcome = self._run(config, point, trial, watch)
        if not outcome.points:
            raise SweepError(f"{point.label} was never evaluated: {outcome.run_dir} holds no BrierLM")
        return self.series(
            point, trial, outcome.points, str(outcome.run_dir), below, outcome.mlflow_run_id, text=outcome.text
        )

    def series(
        self,
        point: Point,
        trial: int,
        points: tuple[ScorePoint, ...],
        run_dir: str,
        autoencoder_dir: str,
        mlflow_run_id: str | None,
        *,
        text: str = "",
        **more: Any,
    ) -> Series:
        """Return what a sweep keeps of a model.

        Args:
            point: The point, with its seeds.
            trial: Number of the trial.
            points: Its evaluations.
            run_dir: The language model's run directory.
            autoencoder_dir: Its autoencoder's run directory.
            mlflow_run_id: MLflow run id.
            text: A sample of generated text.
            more: Further attributes of the series: state, reason.
        """
        return Series(
            label=point.label,
            stage=point.stage,
            values=point.values,
            parameters=report_of(point.model, self._vocabulary).parameters_total,
            points=tuple(points),
            run_dir=run_dir,
            autoencoder_dir=autoencoder_dir,
            mlflow_run_id=mlflow_run_id,
            text=text,
            slug=point.slug,
            seed=point.model.seed,
            trial=trial,
            settings=settings(point),
            **more,
        )

    def _autoencoder(self, point: Point, trial: int, watch: TrialWatch) -> str:
        """Return the run directory of the point's trained autoencoder."""
        assert point.autoencoder is not None

        def train(config: RunConfig) -> Outcome:
            watch.begins(config, self._locate(config).run_dir)
            return self._run(config, point, trial, watch)

        outcome, use = self._cache.obtain(point.autoencoder, train)
        watch.has_autoencoder(use)
        return str(outcome.run_dir)

    def _run(self, config: RunConfig, point: Point, trial: int, watch: TrialWatch) -> Outcome:
        """Train one run; while another process is at it (a user's, or one that is taken for dead), wait."""
        tags = {
            "study": self._study,
            "trial": str(trial),
            "model": point.label,
            "slug": point.slug,
        }
        pause = _FIRST_PAUSE
        while True:
            try:
                return self._execute(config, parent=self._parent, tags=tags, progress=False, watch=watch)
            except BusyError:
                if watch.interrupted():
                    raise RunStopped("interrupted") from None
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)


class TrialWatch(Watch, Protocol):
    """What a trial asks of its watcher, beside what a run asks."""

    def begins(self, config: RunConfig, run_dir: Path) -> None:
        """Take note of the run that is trained next."""

    def has_autoencoder(self, use: CacheUse) -> None:
        """Take note of the trial's autoencoder."""


def settings(point: Point) -> dict[str, Any]:
    """Return the keys that reports compare by; the baseline has none of the continuous model's."""
    keys = [key for key in SETTINGS if point.autoencoder is not None or key in _OF_BASELINE]
    found = {key: _value(point.model, key) for key in keys}
    if point.autoencoder is not None:
        found["model.l"] = point.model.model.latent_width()
        found |= {key: _value(point.autoencoder, key) for key in keys if key.startswith(f"{AUTOENCODER}.")}
    return found


def _value(config: RunConfig, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


_OF_BASELINE = ("model.d", "model.layers", "optim.lr")

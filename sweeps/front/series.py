"""Series: what a sweep keeps of one model, namely all its evaluations and where its run is.

It is plain JSON, so that a study's database alone is enough to draw the figure again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from calm_lightning.metrics.names import ScorePoint
from sweeps.front.pareto import front

COMPLETE, PRUNED = "complete", "pruned"
SETTINGS = (
    *("model.K", "model.l", "model.N", "model.M", "model.alpha", "model.head", "model.input", "model.noise"),
    *("model.d", "model.layers", "autoencoder.beta", "autoencoder.kl_clip", "autoencoder.drop_token"),
    *("autoencoder.drop_latent", "autoencoder.d", "optim.lr"),
)
"""Keys of a run's configuration that reports compare by; the baseline has those of its own only."""


@dataclass(frozen=True)
class Series:
    """The evaluations of one model.

    Attributes:
        label: How tables and figures call the model.
        stage: "calm" or "baseline".
        values: Swept keys and their values.
        parameters: Trained parameters, the autoencoder's left out.
        points: All evaluations by rising step; step 0 is the untrained model.
        run_dir: The language model's run directory.
        autoencoder_dir: Its autoencoder's run directory; "" for the baseline.
        mlflow_run_id: MLflow run id, None where it was not recorded.
        text: A sample of generated text.
        slug: The point of the search space, seeds apart: series of one slug differ in their seed only.
        seed: The one seed of its runs.
        trial: Number of the Optuna trial.
        state: "complete", or "pruned" where training was stopped early; its evaluations count all the same.
        settings: What reports compare by, swept or not: `SETTINGS` and their values.
        reason: Why it was stopped; "" where it was not.
        finished: When its trial ended, unix seconds; None where that is not known.
    """

    label: str
    stage: str
    values: dict[str, Any]
    parameters: int
    points: tuple[ScorePoint, ...]
    run_dir: str
    autoencoder_dir: str
    mlflow_run_id: str | None
    text: str
    slug: str = ""
    seed: int = 0
    trial: int = 0
    state: str = COMPLETE
    settings: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    finished: float | None = None

    @property
    def K(self) -> int | None:
        """Tokens per chunk, None for the baseline or where it is not known."""
        return self.setting("model.K")

    def setting(self, key: str) -> Any:
        """Return the value of a key of `SETTINGS` or of a swept key, None where the model has none."""
        return self.values.get(key, self.settings.get(key))

    @property
    def final(self) -> ScorePoint:
        """The last evaluation."""
        return self.points[-1]

    @property
    def untrained(self) -> ScorePoint | None:
        """The evaluation before training, None where there is none."""
        return self.points[0] if self.points[0].step == 0 else None

    @property
    def trained(self) -> tuple[ScorePoint, ...]:
        """The evaluations after some training."""
        return tuple(point for point in self.points if point.step > 0)

    def to_json(self) -> dict[str, Any]:
        """Return the series as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Series:
        """Return the series that `to_json` wrote."""
        points = []
        for entry in value["points"]:
            brier = {name: tuple(entry[name]) for name in ("brier", "brier_se")}
            points.append(ScorePoint(**{**entry, **brier}))
        return cls(**{**value, "points": tuple(points)})

    def learned(self) -> float | None:
        """Return how far Brier-1 rose above the untrained model's, in standard errors of the difference.

        The two evaluations are treated as independent although they share their positions, which overstates the error
        where blocks that are easy for one model are easy for the other. None where there is no untrained evaluation.
        """
        before, after = self.untrained, self.final
        if before is None or before is after:
            return None
        gain, error = after.brier[0] - before.brier[0], math.hypot(before.brier_se[0], after.brier_se[0])
        return gain / error if error > 0 else math.copysign(math.inf, gain) if gain else 0.0


def front_points(series: Sequence[Series], inference: bool = False) -> list[tuple[Series, ScorePoint]]:
    """Return the Pareto front of all models, by rising cost.

    Training costs rise with every evaluation, so all of them compete. Using a model costs the same after every
    evaluation, so there only its last one does. Untrained models and evaluations whose BrierLM is 0 are left out:
    they cost least and say nothing.

    Args:
        series: The models.
        inference: Take inference FLOPs per token as the cost and last evaluations only; otherwise training FLOPs and
            all evaluations.
    """
    offered = [(one, point) for one in series for point in (one.trained[-1:] if inference else one.trained)]
    candidates = [(one, point) for one, point in offered if point.brier_lm > 0]
    plane = [
        (point.inference_flops_per_token if inference else point.train_flops, point.brier_lm) for _, point in candidates
    ]
    return [candidates[index] for index in front(plane)]

"""Series: what a sweep keeps of one model, namely all its evaluations and where its run is.

It is plain JSON, so that a study's database alone is enough to draw the figure again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from calm_lightning.metrics.names import ScorePoint
from sweeps.pareto import front


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

    @property
    def K(self) -> int | None:
        """Tokens per chunk, None for the baseline or where K is not swept."""
        return self.values.get("model.K")

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

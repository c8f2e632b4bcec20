"""The fronts of chosen models, over training and over inference FLOPs, with what errors say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.front.comparison import volume
from sweeps.front.intervals import Estimate
from sweeps.front.redraws import Cloud
from sweeps.pareto.chosen import Chosen, link
from sweeps.report.frontier import cloud_of, front_shares, model_front
from sweeps.report.seeds import MeanPoint, Model

TRAINING, INFERENCE = "training", "inference"


@dataclass(frozen=True)
class Front:
    """The front over one kind of cost.

    Attributes:
        kind: "training" or "inference".
        standing: Its models and evaluations by rising cost.
        shares: Share of redraws in which a model is on it, by slug.
        reference: Cost that with BrierLM 0 is the reference point of the hypervolume.
        volume: Hypervolume, decades of cost times percent.
    """

    kind: str
    standing: tuple[tuple[Model, MeanPoint], ...]
    shares: Mapping[str, float]
    reference: float
    volume: Estimate

    @property
    def leaders(self) -> list[tuple[Model, MeanPoint, int]]:
        """The models on it with their highest evaluation there and the number of those, by rising cost."""
        counts: dict[str, int] = {}
        for model, _ in self.standing:
            counts[model.slug] = counts.get(model.slug, 0) + 1
        highest = {model.slug: (model, point) for model, point in self.standing}
        return [(model, point, counts[slug]) for slug, (model, point) in highest.items()]

    def cost(self, point: MeanPoint) -> float:
        """Return what an evaluation costs."""
        return cost(point, self.kind)


@dataclass(frozen=True)
class Fronts:
    """Both fronts of chosen models.

    Attributes:
        chosen: The runs.
        models: The models.
        training: Over training FLOPs, all evaluations.
        inference: Over inference FLOPs per token, last evaluations; None where no last one scores above 0.
    """

    chosen: Chosen
    models: tuple[Model, ...]
    training: Front | None
    inference: Front | None

    @property
    def both(self) -> list[Front]:
        """The fronts that are there."""
        return [one for one in (self.training, self.inference) if one is not None]


def cost(point: MeanPoint, kind: str) -> float:
    """Return training FLOPs, or inference FLOPs per token."""
    return point.inference_flops_per_token if kind == INFERENCE else point.train_flops


def fronts_of(chosen: Chosen, reference: float | None = None) -> Fronts:
    """Return the fronts of chosen models.

    Args:
        chosen: The runs.
        reference: Training cost that with BrierLM 0 is the reference point of the hypervolume; None takes the largest.
    """
    models = chosen.models
    training = _front(models, TRAINING, reference)
    return Fronts(chosen, tuple(models), training, _front(models, INFERENCE, None))


def _front(models: Sequence[Model], kind: str, reference: float | None) -> Front | None:
    inference = kind == INFERENCE
    cloud = cloud_of(models, inference)
    if cloud is None:
        return None
    worst = reference or largest_cost(models, kind)
    return Front(
        kind, tuple(model_front(models, inference)), front_shares(models, inference), worst, volume(cloud, worst)
    )


def largest_cost(models: Sequence[Model], kind: str) -> float:
    """Return the largest cost of an evaluation."""
    return max(cost(point, kind) for model in models for point in model.curve)


def cloud(models: Sequence[Model], kind: str) -> Cloud | None:
    """Return the evaluations that may stand on a front, None where there are none."""
    return cloud_of(models, kind == INFERENCE)


def estimate_json(estimate: Estimate) -> dict[str, float]:
    """Return an estimate as plain JSON values."""
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def front_json(fronts: Fronts) -> dict[str, Any]:
    """Return fronts as plain JSON values."""
    return {
        "title": fronts.chosen.title,
        "models": len(fronts.models),
        "runs": len(fronts.chosen.series),
        **{front.kind: _side_json(fronts.chosen, front) for front in fronts.both},
    }


def _side_json(chosen: Chosen, front: Front) -> dict[str, Any]:
    return {
        "reference_flops": front.reference,
        "hypervolume": estimate_json(front.volume),
        "front": [
            {
                "model": model.label,
                "stage": model.stage,
                "values": model.runs[0].values,
                "step": point.step,
                "flops": front.cost(point),
                "brier_lm": point.score,
                "low": point.low,
                "high": point.high,
                "seeds": point.seeds,
                "share_of_redraws": front.shares[model.slug],
                "runs": [run_json(chosen, one.mlflow_run_id) for one in model.runs],
            }
            for model, point in front.standing
        ],
    }


def run_json(chosen: Chosen, run_id: str | None) -> dict[str, Any]:
    """Return where a run is, as plain JSON values."""
    run = next(one for one in chosen.runs if one.run_id == run_id)
    place = {"run_id": run.run_id, "name": run.name, "experiment": run.experiment, "store": run.uri}
    return {**place, "url": link(run) or None}

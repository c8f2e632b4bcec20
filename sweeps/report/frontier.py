"""The front of models, and how far its points owe their place to luck."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sweeps.front.pareto import front, hypervolume
from sweeps.front.redraws import Cloud, moves
from sweeps.report.seeds import MeanPoint, Model

REDRAWS = 400
"""How often the scores are drawn anew."""
SEED = 20251027


def model_front(models: Sequence[Model], inference: bool = False) -> list[tuple[Model, MeanPoint]]:
    """Return the Pareto front of models, by rising cost.

    A model with several seeds stands there with its means, a model with one seed with its run: whoever draws the front
    must tell the two apart. Means over survivors are left out, and scores of 0.

    Args:
        models: The models.
        inference: Take inference FLOPs per token as the cost, and last evaluations only; otherwise training FLOPs and
            all evaluations.
    """
    offered = _offered(models, inference)
    plane = [(_cost(point, inference), point.score) for _, point in offered]
    return [offered[index] for index in front(plane)]


def _offered(models: Sequence[Model], inference: bool) -> list[tuple[Model, MeanPoint]]:
    """Return the evaluations that may stand on the front."""
    offered = [(model, point) for model in models for point in model.admitted()]
    return [(model, point) for model, point in offered if point is model.final] if inference else offered


def _cost(point: MeanPoint, inference: bool) -> float:
    return point.inference_flops_per_token if inference else point.train_flops


def reference_cost(models: Sequence[Model]) -> float:
    """Return the largest training cost of the models: with BrierLM 0 the reference point of hypervolumes."""
    return max((point.train_flops for model in models for point in model.curve), default=0.0)


def volume(models: Sequence[Model], reference: float) -> float:
    """Return the hypervolume of the front of models, decades of training FLOPs times percent."""
    return hypervolume([(point.train_flops, point.score) for _, point in model_front(models)], (reference, 0.0))


def cloud_of(models: Sequence[Model], inference: bool = False) -> Cloud | None:
    """Return the evaluations that may stand on the front with their errors, None where there are none.

    Args:
        models: The models.
        inference: As for `model_front`.
    """
    place = {model.slug: number for number, model in enumerate(models)}
    offered = _offered(models, inference)
    offered.sort(key=lambda pair: (_cost(pair[1], inference), -pair[1].score))
    if not offered:
        return None
    freedoms = [min([point.freedom for point in model.curve if point.whole], default=np.inf) for model in models]
    points = [point for _, point in offered]
    return Cloud(
        keys=tuple(model.slug for model in models),
        freedom=np.array(freedoms),
        owner=np.array([place[model.slug] for model, _ in offered]),
        cost=np.array([_cost(point, inference) for point in points]),
        score=np.array([point.score for point in points]),
        error=np.array([point.se for point in points]),
        evaluation=np.array([point.evaluation_se for point in points]),
    )


def front_shares(models: Sequence[Model], inference: bool = False) -> Mapping[str, float]:
    """Return in which share of redraws each model has an evaluation on the front, by slug.

    Every redraw moves all evaluations of a model by one draw of Student's t times their standard errors: they share
    weights and texts, so their errors go together. A share near 1 is a place that the errors do not question; models
    that dominate each other by less than their errors share the place. The draws are the same every time.

    Args:
        models: The models.
        inference: As for `model_front`.
    """
    cloud = cloud_of(models, inference)
    if cloud is None:
        return {model.slug: 0.0 for model in models}
    held = np.zeros(len(models))
    for move in moves([float(freedom) for freedom in cloud.freedom], REDRAWS, SEED):
        drawn = cloud.score + cloud.error * move[cloud.owner]
        held[np.unique(cloud.owner[_on_front(cloud.cost, drawn)])] += 1
    return {model.slug: float(count) / REDRAWS for model, count in zip(models, held, strict=True)}


def _on_front(costs: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return which points of rising cost no other dominates; scores of 0 and below never count."""
    order = np.lexsort((-scores, costs))
    ranked = scores[order]
    before = np.concatenate(([0.0], np.maximum.accumulate(ranked)[:-1]))
    kept = np.zeros(len(scores), dtype=bool)
    kept[order] = ranked > np.maximum(before, 0.0)
    return kept

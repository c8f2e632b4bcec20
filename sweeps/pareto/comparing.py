"""Two selections compared: hypervolumes over one reference, and what A costs less than B at equal BrierLM."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from calm_lightning.errors import SweepError
from sweeps.front.comparison import Saving, common_range, saving, stepwise_saving, volume, volume_difference
from sweeps.front.intervals import Estimate
from sweeps.front.redraws import Cloud, reach
from sweeps.pareto.chosen import Chosen
from sweeps.pareto.fronts import (
    INFERENCE,
    TRAINING,
    Front,
    Fronts,
    cloud,
    estimate_json,
    front_json,
    fronts_of,
    largest_cost,
)


@dataclass(frozen=True)
class Side:
    """The comparison over one kind of cost.

    Attributes:
        kind: "training" or "inference".
        a: The points of A.
        b: The points of B.
        reach_a: Scores of the first and the last point of A's front.
        reach_b: The same of B's.
        reference: Cost that with BrierLM 0 is the reference point of both hypervolumes.
        volume_a: A's hypervolume, decades of cost times percent.
        volume_b: B's.
        difference: A's minus B's.
        mean: The mean saving over the scores that both fronts have, or over those asked for; None where there are none.
        at: The saving at the score asked for, None where none was or it is not on both fronts.
        at_stepwise: The same without interpolation.
        top: The lower one of the two highest scores, percent.
        top_stepwise: The saving for scoring at least that, without interpolation.
    """

    kind: str
    a: Cloud
    b: Cloud
    reach_a: tuple[float, float]
    reach_b: tuple[float, float]
    reference: float
    volume_a: Estimate
    volume_b: Estimate
    difference: Estimate
    mean: Saving | None
    at: Saving | None
    at_stepwise: float | None
    top: float
    top_stepwise: float | None


@dataclass(frozen=True)
class Comparison:
    """Two selections compared.

    Attributes:
        names: What the two are called.
        fronts: Their fronts.
        training: The comparison over training FLOPs.
        inference: Over inference FLOPs per token.
        level: The score that was asked for, None where none was.
        shared: Models that are in both.
    """

    names: tuple[str, str]
    fronts: tuple[Fronts, Fronts]
    training: Side
    inference: Side
    level: float | None
    shared: int

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both comparisons."""
        return self.training, self.inference

    @property
    def single(self) -> bool:
        """Whether a model was trained with one seed only."""
        return any(model.single for fronts in self.fronts for model in fronts.models)


def compare(
    a: Chosen,
    b: Chosen,
    *,
    names: tuple[str, str] = ("A", "B"),
    level: float | None = None,
    low: float | None = None,
    high: float | None = None,
    reference: float | None = None,
) -> Comparison:
    """Compare two selections.

    Args:
        a: The first.
        b: The second.
        names: What they are called.
        level: A score at which the saving is given too, percent.
        low: Lowest score of the mean saving, percent; None takes the lowest that both fronts have.
        high: Highest score; None takes the highest that both fronts have.
        reference: Training cost that with BrierLM 0 is the reference point of hypervolumes; None takes the largest.

    Raises:
        SweepError: A selection has no score above 0, or the fronts do not have the scores asked for.
    """
    models = a.models, b.models
    sides = []
    for kind in (TRAINING, INFERENCE):
        clouds = [cloud(one, kind) for one in models]
        for name, one in zip(names, clouds, strict=True):
            if one is None:
                raise SweepError(f"no model of {name} scores above 0 yet, so that there is no front to compare")
        of_a, of_b = clouds
        assert of_a is not None
        assert of_b is not None
        worst = (reference if kind == TRAINING else None) or max(largest_cost(one, kind) for one in models)
        sides.append(_side(kind, (of_a, of_b), worst, level, (low, high)))
    training, inference = sides
    fronts = fronts_of(a, training.reference), fronts_of(b, training.reference)
    shared = len({model.slug for model in models[0]} & {model.slug for model in models[1]})
    return Comparison(names, fronts, training, inference, level, shared)


def _side(
    kind: str,
    clouds: tuple[Cloud, Cloud],
    reference: float,
    level: float | None,
    span: tuple[float | None, float | None],
) -> Side:
    a, b = clouds
    reaches = [(float(low[0]), float(high[0])) for low, high in (reach(one, one.score[None]) for one in clouds)]
    asked = None if span == (None, None) else _asked(a, b, span, kind)
    top = min(last for _, last in reaches)
    overlaps = span == (None, None) or asked is not None
    return Side(
        kind=kind,
        a=a,
        b=b,
        reach_a=reaches[0],
        reach_b=reaches[1],
        reference=reference,
        volume_a=volume(a, reference),
        volume_b=volume(b, reference),
        difference=volume_difference(a, b, reference),
        mean=saving(a, b, asked) if overlaps else None,
        at=None if level is None else saving(a, b, (level, level)),
        at_stepwise=None if level is None else stepwise_saving(a, b, level),
        top=top,
        top_stepwise=stepwise_saving(a, b, top),
    )


def _asked(a: Cloud, b: Cloud, span: tuple[float | None, float | None], kind: str) -> tuple[float, float] | None:
    """Return the scores that the mean saving is asked over, None where the fronts do not have them.

    Raises:
        SweepError: They are not on both fronts over training FLOPs.
    """
    first, last = (float(end[0]) for end in common_range(a, b, (a.score[None], b.score[None])))
    low, high = span[0] if span[0] is not None else first, span[1] if span[1] is not None else last
    if kind == INFERENCE:  # its fronts have other scores: what was asked for is cut to them
        low, high = max(low, first), min(high, last)
        return (low, high) if low <= high else None
    if math.isnan(first):
        return None
    if not first - 1e-9 <= low <= high <= last + 1e-9:
        raise SweepError(
            f"BrierLM {low:g} to {high:g} is not on both fronts: choose --from and --to within {first:.2f} and "
            f"{last:.2f}"
        )
    return low, high


def comparison_json(found: Comparison) -> dict[str, Any]:
    """Return a comparison as plain JSON values."""
    return {
        "a": {"name": found.names[0], **front_json(found.fronts[0])},
        "b": {"name": found.names[1], **front_json(found.fronts[1])},
        "models_in_both": found.shared,
        **{side.kind: _side_json(side, found.level) for side in found.sides},
    }


def _side_json(side: Side, level: float | None) -> dict[str, Any]:
    at = {"brier_lm": level, "saving": _saving_json(side.at), "stepwise": side.at_stepwise}
    return {
        "reference_flops": side.reference,
        "hypervolume_a": estimate_json(side.volume_a),
        "hypervolume_b": estimate_json(side.volume_b),
        "hypervolume_difference": estimate_json(side.difference),
        "scores_a": list(side.reach_a),
        "scores_b": list(side.reach_b),
        "mean_saving": _saving_json(side.mean),
        "best_common": {"brier_lm": side.top, "stepwise": side.top_stepwise},
        "at": None if level is None else at,
    }


def _saving_json(one: Saving | None) -> dict[str, Any] | None:
    if one is None:
        return None
    return {
        **estimate_json(one.share),
        "stepwise": one.stepwise,
        "from_brier_lm": one.low,
        "to_brier_lm": one.high,
        "flops_a": 10**one.log10_cost_a,
        "flops_b": 10**one.log10_cost_b,
        "redraws_covered": one.covered,
    }


def front_of(fronts: Fronts, kind: str) -> Front | None:
    """Return the front over one kind of cost."""
    return fronts.inference if kind == INFERENCE else fronts.training

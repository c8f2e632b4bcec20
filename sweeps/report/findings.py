"""Everything a report says, computed once from the sweeps; tables, figures and page only show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sweeps.front.series import front_points
from sweeps.report.ablations import Ablation, ablations
from sweeps.report.comparisons import SWEEP, free_keys
from sweeps.report.frontier import front_shares, model_front, reference_cost, volume
from sweeps.report.gathering import Gathered
from sweeps.report.history import Moment, history, times_known
from sweeps.report.importance import Importance, importances
from sweeps.report.seeds import MeanPoint, Model
from sweeps.report.slices import Slice, slice_keys, slice_of

MOST_SLICES = 6
"""Keys that slices are made for."""


@dataclass(frozen=True)
class Findings:
    """What was found.

    Attributes:
        gathered: The sweeps.
        models: The models.
        sweep_of: Name of the study by a model's slug.
        free: The chosen keys that differ among the CALM models.
        front: The front of models over training FLOPs, by rising cost.
        inference_front: The front of last evaluations over inference FLOPs.
        shares: Share of redraws in which a model is on the front, by slug.
        reference: The largest training cost: with BrierLM 0 the reference point of hypervolumes.
        hypervolume: Of the front of models, decades of training FLOPs times percent.
        runs_hypervolume: Of the front of all evaluations of single runs.
        moments: The front after every trial.
        in_time: Whether the order of `moments` is that in which trials ended, rather than that of their numbers.
        slices: Scores along the chosen keys.
        unsliced: Chosen keys beyond the number that slices are made for.
        ablations: The paper's ablations.
        importances: What results depend on.
    """

    gathered: Gathered
    models: tuple[Model, ...]
    sweep_of: Mapping[str, str]
    free: tuple[str, ...]
    front: tuple[tuple[Model, MeanPoint], ...]
    inference_front: tuple[tuple[Model, MeanPoint], ...]
    shares: Mapping[str, float]
    reference: float
    hypervolume: float
    runs_hypervolume: float
    moments: tuple[Moment, ...]
    in_time: bool
    slices: tuple[Slice, ...]
    unsliced: tuple[str, ...]
    ablations: tuple[Ablation, ...]
    importances: tuple[Importance, ...]

    @property
    def several_seeds(self) -> bool:
        """Whether a model was trained with more than one seed."""
        return any(not model.single for model in self.models)

    @property
    def runs_front(self) -> list[tuple[float, float]]:
        """The front of all evaluations of single runs, as (training FLOPs, BrierLM)."""
        return [(point.train_flops, point.brier_lm) for _, point in front_points(self.gathered.series)]

    @property
    def leaders(self) -> list[Model]:
        """The models on the front, each once, by rising cost of their first evaluation there."""
        return list({model.slug: model for model, _ in self.front}.values())


def find(gathered: Gathered, *, importance: bool = True) -> Findings:
    """Return what some sweeps show.

    Args:
        gathered: The sweeps.
        importance: Whether importances are computed, which takes seconds.
    """
    models, sweep_of = gathered.models, gathered.sweep_of
    reference, moments = reference_cost(models), history(gathered.series)
    keys = slice_keys(models, sweep_of)
    return Findings(
        gathered=gathered,
        models=tuple(models),
        sweep_of=sweep_of,
        free=tuple(key for key in free_keys(models, sweep_of) if key != SWEEP),
        front=tuple(model_front(models)),
        inference_front=tuple(model_front(models, inference=True)),
        shares=front_shares(models),
        reference=reference,
        hypervolume=volume(models, reference),
        runs_hypervolume=moments[-1].hypervolume,
        moments=tuple(moments),
        in_time=times_known(gathered.series),
        slices=tuple(slice_of(models, key, sweep_of) for key in keys[:MOST_SLICES]),
        unsliced=tuple(keys[MOST_SLICES:]),
        ablations=tuple(ablations(models, sweep_of)),
        importances=tuple(importances(models, sweep_of)) if importance else (),
    )

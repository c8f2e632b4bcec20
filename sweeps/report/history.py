"""How the front grew: its hypervolume after every finished trial, and over the training FLOPs that were spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.front.pareto import front, hypervolume
from sweeps.front.series import Series


@dataclass(frozen=True)
class Moment:
    """The front after one more trial.

    Attributes:
        trials: Trials that had ended.
        spent: Training FLOPs that they had taken together, an autoencoder that several share counted once.
        hypervolume: Of the front of all their evaluations, decades of training FLOPs times percent.
        size: Evaluations on that front.
        best: The highest BrierLM on it, percent; 0 where there is none.
        label: The model of the trial that ended.
        state: How it ended, "complete" or "pruned".
        ended: When it ended, unix seconds, None where that is not known.
    """

    trials: int
    spent: float
    hypervolume: float
    size: int
    best: float
    label: str
    state: str
    ended: float | None


def in_order(series: Sequence[Series]) -> list[Series]:
    """Return series in the order in which they ended, or by trial number where that is not known of all."""
    if any(one.finished is None for one in series):
        return sorted(series, key=lambda one: one.trial)
    return sorted(series, key=lambda one: (one.finished or 0.0, one.trial))


def times_known(series: Sequence[Series]) -> bool:
    """Return whether it is known of all series when they ended."""
    return all(one.finished is not None for one in series)


def history(series: Sequence[Series], reference: float | None = None) -> list[Moment]:
    """Return the moments at which trials ended, in their order.

    Every run counts by itself here, since seeds end one after another.

    Args:
        series: The models.
        reference: Training cost that with BrierLM 0 is the reference point of hypervolumes. None takes the largest one
            of the whole sweep, so that the last hypervolume is that of the front of all evaluations.
    """
    if reference is None:
        reference = max((point.train_flops for one in series for point in one.trained), default=0.0)
    moments: list[Moment] = []
    standing: list[tuple[float, float]] = []
    paid: set[str] = set()
    spent = 0.0
    for number, one in enumerate(in_order(series), start=1):
        spent += one.final.stage_train_flops
        if not one.autoencoder_dir or one.autoencoder_dir not in paid:
            spent += one.final.train_flops - one.final.stage_train_flops
            paid.add(one.autoencoder_dir)
        plane = standing + [(point.train_flops, point.brier_lm) for point in one.trained if point.brier_lm > 0]
        standing = [plane[index] for index in front(plane)]
        volume, best = hypervolume(standing, (reference, 0.0)), max((score for _, score in standing), default=0.0)
        ended = one.finished
        moments.append(Moment(number, spent, volume, len(standing), best, one.label, one.state, ended))
    return moments

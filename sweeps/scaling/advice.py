"""Fit -> advice: which K a budget wants, how sure that is, and whether it beats the token baseline there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calm_lightning.errors import SweepError
from sweeps.scaling.crossing import AHEAD, BEHIND, Crossing, crossing
from sweeps.scaling.fitting import Fit
from sweeps.scaling.predicting import (
    Prediction,
    log_scores,
    optima,
    predict,
    predict_baseline,
    probabilities_best,
    short,
)

Floats = NDArray[np.float64]
CLEAR = 0.9
"""Probability from which one K is called the best."""
_TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class Choice:
    """One K at a budget.

    Attributes:
        K: Tokens per chunk.
        prediction: Its score.
        probability_best: Probability that it has the highest score of all choices.
        expected_loss: Share of the best choice's score that choosing it gives up, in the mean over draws.
        probability_beats_baseline: Probability that it scores higher than the baseline; None without a baseline.
        crossing: From which budget on it does; None without a baseline.
    """

    K: int
    prediction: Prediction
    probability_best: float
    expected_loss: float
    probability_beats_baseline: float | None
    crossing: Crossing | None


@dataclass(frozen=True)
class Advice:
    """Which K for a budget.

    Attributes:
        budget: Training FLOPs, the autoencoder's included.
        choices: The values of K that were observed, ascending.
        best: The K of smallest expected loss.
        optimum: The best K between the observed ones, as a real number; None where K plays no part in the law.
        optimum_low: Lower end of its 95 % interval.
        optimum_high: Upper end.
        at_lowest: Probability that the optimum is the smallest observed K or lies below it.
        at_highest: Probability that it is the largest or lies above it.
        baseline: The baseline's score at the budget, None where it has no curve or the budget is too far from it.
        verdict: The answer in words.
    """

    budget: float
    choices: tuple[Choice, ...]
    best: int
    optimum: float | None
    optimum_low: float | None
    optimum_high: float | None
    at_lowest: float
    at_highest: float
    baseline: Prediction | None
    verdict: str


def advise(fit: Fit, budget: float, parameters: float | None = None) -> Advice:
    """Say which K a budget wants.

    Args:
        fit: The law.
        budget: Training FLOPs, the autoencoder's included.
        parameters: Parameters of the model; None takes those of the sweep's models of each K.

    Raises:
        SweepError: The budget lies too far beyond what was observed.
    """
    at = np.array([budget])
    predictions = [predict(fit, budget, K, parameters) for K in fit.Ks]
    best, loss = (found[:, 0] for found in probabilities_best(fit, at, parameters))
    reference = _reference(fit, budget)
    choices = tuple(
        Choice(
            K,
            prediction,
            float(best[place]),
            float(loss[place]),
            _beats(fit, at, K, parameters) if reference else None,
            _crossing(fit, K, parameters),
        )
        for place, (K, prediction) in enumerate(zip(fit.Ks, predictions, strict=True))
    )
    estimate, draws = optima(fit, at)
    known = bool(np.isfinite(estimate[0]))
    low, high = np.quantile(draws[:, 0], _TAILS) if known else (math.nan, math.nan)
    chosen = min(choices, key=lambda choice: choice.expected_loss).K
    return Advice(
        budget=budget,
        choices=choices,
        best=chosen,
        optimum=float(estimate[0]) if known else None,
        optimum_low=float(low) if known else None,
        optimum_high=float(high) if known else None,
        at_lowest=float(np.mean(draws <= fit.Ks[0] * (1 + 1e-9))),
        at_highest=float(np.mean(draws >= fit.Ks[-1] * (1 - 1e-9))),
        baseline=reference,
        verdict=_verdict(fit, budget, parameters, choices, chosen, known, reference),
    )


def _reference(fit: Fit, budget: float) -> Prediction | None:
    try:
        return predict_baseline(fit, budget)
    except SweepError:
        return None


def _beats(fit: Fit, at: Floats, K: int, parameters: float | None) -> float:
    return float(np.mean(log_scores(fit, at, K, parameters) > log_scores(fit, at, None)))


def _crossing(fit: Fit, K: int, parameters: float | None) -> Crossing | None:
    try:
        return crossing(fit, K, parameters)
    except SweepError:
        return None


def _verdict(
    fit: Fit,
    budget: float,
    parameters: float | None,
    choices: Sequence[Choice],
    best: int,
    matters: bool,
    reference: Prediction | None,
) -> str:
    """Return the answer in words, with what it rests on."""
    chosen = next(choice for choice in choices if best == choice.K)
    shown = chosen.prediction
    at = f"At {short(budget)} training FLOPs"
    score = f"{_name(fit)} {shown.value:.3g} [{shown.low:.3g}, {shown.high:.3g}]"
    if not matters:
        return f"{at} every K gets {score}: the law has no term for K."
    if chosen.probability_best >= CLEAR:
        parts = [f"{at} K = {best} is best (probability {chosen.probability_best:.2f}): {score}."]
    else:
        rivals = _rivals(choices)
        parts = [
            f"{at} no K is clearly best: {' and '.join(f'K = {one.K} ({one.probability_best:.2f})' for one in rivals)} "
            f"cannot be told apart. K = {best} loses least in the mean, {chosen.expected_loss:.1%} of the best score: "
            f"{score}."
        ]
    if best in (fit.Ks[0], fit.Ks[-1]):
        beyond = "smaller" if best == fit.Ks[0] else "larger"
        parts.append(f"It is the {beyond[:-2]}est K observed: a {beyond} one may be better.")
    if shown.extrapolated:
        low, high = fit.flops[best]
        parts.append(f"This is an extrapolation: K = {best} was observed at {short(low)} to {short(high)} FLOPs.")
        parts += _other_form(fit, budget, parameters)
    return " ".join([*parts, _against_baseline(fit, chosen, reference)])


def _other_form(fit: Fit, budget: float, parameters: float | None) -> list[str]:
    """Return what the law would say with a ceiling instead of without one, or the other way round."""
    if fit.rival is None:
        return []
    sizes = [parameters or fit.parameters[K] for K in fit.Ks]
    design = fit.rival.design(np.full(len(fit.Ks), budget), np.array(fit.Ks, dtype=float), np.array(sizes))
    values, _ = fit.rival.expected(design)
    place = int(values.argmax())
    form = "With" if fit.rival.law.ceiling else "Without"
    difference = sum(fit.rival.held_out) - sum(fit.curve.held_out)
    return [
        f"{form} a ceiling ({difference:+.1f} nats on left-out trials) the law gives K = {fit.Ks[place]} there, "
        f"{10 ** values[place]:.3g}."
    ]


def _rivals(choices: Sequence[Choice]) -> list[Choice]:
    """Return the fewest choices that together hold the best one with the probability that counts as clear."""
    ranked, total = [], 0.0
    for choice in sorted(choices, key=lambda one: -one.probability_best):
        ranked.append(choice)
        total += choice.probability_best
        if total >= CLEAR:
            break
    return ranked


def _name(fit: Fit) -> str:
    target = fit.settings.target
    return "BrierLM" if target == "brier_lm" else target.replace("brier_", "Brier-")


def _against_baseline(fit: Fit, chosen: Choice, reference: Prediction | None) -> str:
    """Return how the chosen K stands to the baseline."""
    if fit.baseline is None:
        return f"Nothing is said about the baseline: {fit.no_baseline}."
    if reference is None or chosen.probability_beats_baseline is None:
        now = "The baseline was not observed near this budget"
    else:
        now = (
            f"It beats the baseline's {reference.value:.3g} [{reference.low:.3g}, {reference.high:.3g}] with "
            f"probability {chosen.probability_beats_baseline:.2f}"
        )
    return f"{now}{_crossing_words(chosen.crossing)}."


def _crossing_words(where: Crossing | None) -> str:
    if where is None:
        return ""
    low, high = where.window
    if where.state == AHEAD:
        return f"; its law lies above the baseline's all the way from {short(low)} to {short(high)} FLOPs"
    if where.state == BEHIND:
        return f"; its law does not overtake the baseline's below {short(high)} FLOPs"
    beyond = ", beyond what was observed" if where.extrapolated else ""
    return f"; it overtakes the baseline at {crossing_interval(where)} FLOPs{beyond}"


def crossing_interval(where: Crossing) -> str:
    """Return where two laws cross, with its interval; an end beyond what was looked at is given as such."""
    if where.flops is None:
        return "-"
    low = f"{where.low:.2g}" if where.low else f"< {where.window[0]:.2g}"
    high = f"{where.high:.2g}" if where.high else f"> {where.window[1]:.2g}"
    return f"{where.flops:.2g} [{low}, {high}]".replace("e+", "e")

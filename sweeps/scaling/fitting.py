"""Series -> Fit: the laws that the points can carry, the one that predicts best, the baseline beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calm_lightning.errors import SweepError
from sweeps.front.series import PRUNED, Series
from sweeps.scaling.curve import Curve, fit_curve
from sweeps.scaling.laws import LETTERS, MEANINGS, Centre, Law, names, offered, without_K
from sweeps.scaling.mixed import Curves, condition, degrees_of_freedom
from sweeps.scaling.observations import Observations, sufficient, sufficient_baseline
from sweeps.scaling.settings import AUTO, FitSettings

WORST_CONDITION = 30.0
"""Condition number of a scaled design from which its coefficients cannot be told apart (`mixed.condition`)."""
SIZES_DIFFER = 1.5
"""Factor between the largest and the smallest model of one K from which parameters are a variable of their own."""
Range = tuple[float, float]


@dataclass(frozen=True)
class Coefficient:
    """One coefficient with its 95 % interval.

    Attributes:
        letter: Its letter in the law.
        value: Its estimate.
        low: Lower end of its interval.
        high: Upper end.
        meaning: What it says.
    """

    letter: str
    value: float
    low: float
    high: float
    meaning: str


@dataclass(frozen=True)
class Candidate:
    """A law that was tried.

    Attributes:
        law: Its name.
        held_out_density: Log density that it gives left-out trials, nats over all trials; higher is better.
        held_out_factor: Typical factor between the scores of a left-out trial and their prediction.
    """

    law: str
    held_out_density: float
    held_out_factor: float


@dataclass(frozen=True)
class Fit:
    """A scaling law in K, and the baseline's curve where there is one.

    Attributes:
        settings: How it was fitted.
        curve: The law of the CALM models.
        rival: The same law with a ceiling if it has none, without one if it has; None where the points cannot carry it.
            It shows how much an extrapolation owes to the form of the law.
        baseline: The law of the token baseline, None where there is none.
        no_baseline: Why there is none; "" otherwise.
        coefficients: The law's coefficients with intervals.
        candidates: Every law that the points can carry, best predictions of left-out trials first.
        flops: Training FLOPs that each K was evaluated at, lowest and highest.
        parameters: Parameters of each K's models, geometric mean.
        sizes: Parameters of the smallest and of the largest model.
        baseline_flops: Training FLOPs that the baseline was evaluated at.
        baseline_parameters: Parameters of the baseline, geometric mean.
        trials: CALM trials used.
        pruned: How many of them were stopped early.
        evaluations: Evaluations of CALM models used.
        left_out: What was left out and why, one phrase each.
        notes: What a reader must know about these points, one sentence each.
    """

    settings: FitSettings
    curve: Curve
    rival: Curve | None
    baseline: Curve | None
    no_baseline: str
    coefficients: tuple[Coefficient, ...]
    candidates: tuple[Candidate, ...]
    flops: dict[int, Range]
    parameters: dict[int, float]
    sizes: Range
    baseline_flops: Range
    baseline_parameters: float
    trials: int
    pruned: int
    evaluations: int
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def Ks(self) -> tuple[int, ...]:
        """The values of K that were fitted, ascending."""
        return tuple(sorted(self.flops))


def fit(series: Sequence[Series], settings: FitSettings | None = None) -> Fit:
    """Fit BrierLM, or another score, against training FLOPs, K and, where it was varied, the number of parameters.

    Args:
        series: The trials of one or several sweeps, scored by the same protocol.
        settings: What is fitted and what the points must be able to carry.

    Raises:
        SweepError: The points cannot support a fit; the sentence says what is missing.
    """
    settings = settings or FitSettings()
    observed = sufficient(series, settings)
    centre = _centre(observed)
    curves = _carried(observed, centre, settings)
    chosen = _choose(curves, settings)
    baseline, no_baseline, reference = _baseline(series, settings, chosen)
    ranges = {K: _range(observed, K) for K in observed.Ks}
    return Fit(
        settings=settings,
        curve=chosen,
        rival=_rival(chosen, curves),
        baseline=baseline,
        no_baseline=no_baseline,
        coefficients=_coefficients(chosen),
        candidates=_candidates(curves),
        flops=ranges,
        parameters={K: _size(observed, K) for K in observed.Ks},
        sizes=(float(10 ** observed.p.min()), float(10 ** observed.p.max())),
        baseline_flops=_range(reference, None) if reference else (0.0, 0.0),
        baseline_parameters=_size(reference, None) if reference else 0.0,
        trials=len(observed.series),
        pruned=sum(one.state == PRUNED for one in observed.series),
        evaluations=len(observed.y),
        left_out=observed.left_out,
        notes=_notes(observed, chosen, curves),
    )


def _centre(observed: Observations) -> Centre:
    """Return the middle of what was observed, where level and slopes are nearly uncorrelated."""
    Ks = np.log2(observed.Ks) if observed.Ks else np.zeros(1)
    return Centre(float(observed.x.min() + observed.x.max()) / 2, float(Ks.mean()), float(observed.p.mean()))


def _range(observed: Observations, K: int | None) -> Range:
    costs = 10 ** observed.x[observed.of_K(K)]
    return float(costs.min()), float(costs.max())


def _size(observed: Observations, K: int | None) -> float:
    return float(10 ** observed.p[observed.of_K(K)].mean())


def _sizes(observed: Observations) -> dict[int, float]:
    """Return the factor between the largest and the smallest model of every K."""
    return {K: float(10 ** np.ptp(observed.p[observed.of_K(K)])) for K in observed.Ks}


def _carried(observed: Observations, centre: Centre, settings: FitSettings) -> list[Curve]:
    """Return every law that the points can carry, fitted.

    Raises:
        SweepError: There is none in which K has an optimum.
    """
    x, k, p = observed.x - centre.x, observed.k - centre.k, observed.p - centre.p
    trials = Curves(observed.trial, x, observed.error)
    sized = sum(factor >= SIZES_DIFFER for factor in _sizes(observed).values()) >= 2
    found, reasons = [], []
    for law in offered(sized):
        design = law.design(x, k, p)
        worst, free = condition(design), degrees_of_freedom(trials, design)
        if worst > WORST_CONDITION:
            reasons.append("FLOPs, K and parameters vary together, so that their effects cannot be told apart")
        elif free < 1 or len(observed.y) <= len(law.coefficients):
            reasons.append(f"{len(observed.series)} trials are too few for {len(law.coefficients)} coefficients")
        else:
            found.append(fit_curve(law, observed, centre))
    if not any("kk" in curve.law.terms for curve in found):
        raise SweepError(
            f"these points cannot support a scaling law in K: {'; '.join(dict.fromkeys(reasons))}; train every K at "
            f"overlapping budgets and with more seeds"
        )
    return found


def _choose(curves: Sequence[Curve], settings: FitSettings) -> Curve:
    """Return the law asked for or, among those with the richest dependence on K, the one that predicts best.

    Terms of K stay in the law even where simpler ones predict left-out trials as well. Dropping what a few trials
    cannot show would turn "not known" into "zero", and the bands around a K would no longer hold it (docs/scaling.md
    has the numbers); whether there is a ceiling, and whether parameters matter, is left to the trials.

    Raises:
        SweepError: The points cannot carry the law that is asked for.
    """
    if settings.law != AUTO:
        for curve in curves:
            if curve.law.name == settings.law:
                return curve
        raise SweepError(
            f"these points cannot support the law {settings.law!r}: choose one of "
            f"{names([curve.law for curve in curves])}, or {AUTO}"
        )
    terms = [set(curve.law.terms) - {"p"} for curve in curves]
    richest = max(terms, key=len)
    return max(
        (curve for curve, mine in zip(curves, terms, strict=True) if mine == richest),
        key=lambda curve: sum(curve.held_out),
    )


def _rival(chosen: Curve, curves: Sequence[Curve]) -> Curve | None:
    law = chosen.law
    others = [one for one in curves if one.law.terms == law.terms and one.law.ceiling != law.ceiling]
    return others[0] if others else None


def _baseline(
    series: Sequence[Series], settings: FitSettings, chosen: Curve
) -> tuple[Curve | None, str, Observations | None]:
    """Return the baseline's curve, or why there is none.

    Its few trials cannot show their own scatter, so that of the CALM trials is taken for it.
    """
    if not any(one.stage == "baseline" for one in series):
        return None, "there is no baseline among these trials", None
    try:
        observed = sufficient_baseline(series, settings)
    except SweepError as error:
        return None, str(error), None
    centre = _centre(observed)
    curves = [fit_curve(law, observed, centre, chosen.scatter, chosen.df) for law in without_K()]
    if len(observed.series) == 1:  # nothing is left to predict it from
        return curves[0], "", observed
    return max(curves, key=lambda curve: sum(curve.held_out)), "", observed


def _coefficients(curve: Curve) -> tuple[Coefficient, ...]:
    half = curve.quantile() * np.sqrt(np.diag(curve.covariance))
    return tuple(
        Coefficient(LETTERS[term], value, value - float(width), value + float(width), MEANINGS[term])
        for term, value, width in zip(curve.law.coefficients, curve.theta, half, strict=True)
    )


def _candidates(curves: Sequence[Curve]) -> tuple[Candidate, ...]:
    tried = [Candidate(curve.law.name, sum(curve.held_out), curve.held_out_factor) for curve in curves]
    return tuple(sorted(tried, key=lambda one: -one.held_out_density))


def _without_K(law: Law) -> bool:
    return "k" not in law.terms


def _notes(observed: Observations, chosen: Curve, curves: Sequence[Curve]) -> tuple[str, ...]:
    """Return what a reader must know about these points."""
    notes = []
    blind = [curve for curve in curves if _without_K(curve.law)]
    if blind and not _without_K(chosen.law):
        best = max(blind, key=lambda curve: sum(curve.held_out))
        if sum(best.held_out) >= sum(chosen.held_out):
            notes.append(
                f"A law without K ({best.law.name}) predicts left-out trials as well: these trials do not show that K "
                f"matters."
            )
    if "p" not in chosen.law.terms:
        varied = [f"{factor:.2g}-fold at K = {K}" for K, factor in _sizes(observed).items() if factor >= SIZES_DIFFER]
        if varied:
            notes.append(f"Sizes of models vary {', '.join(varied)}, and the law has no term for it.")
    others = sorted({key for K in observed.Ks for key in _varied([one for one in observed.series if one.K == K])})
    if others:
        notes.append(
            f"{', '.join(others)} vary among trials of one K and are not in the law: what they do counts as scatter "
            f'between trials; points "envelope" follow the best of them.'
        )
    shared = [K for K in observed.Ks if _shares_autoencoder([one for one in observed.series if one.K == K])]
    if shared:
        notes.append(
            f"Trials of K = {', '.join(map(str, shared))} share an autoencoder: how well it happened to turn out is "
            f"not in the bands."
        )
    return tuple(notes)


def _varied(trials: Sequence[Series]) -> list[str]:
    """Return the swept keys in which trials of one K differ."""
    keys = {key for one in trials for key in one.values}
    return [key for key in keys if len({repr(one.setting(key)) for one in trials}) > 1]


def _shares_autoencoder(trials: Sequence[Series]) -> bool:
    used = [one.autoencoder_dir for one in trials if one.autoencoder_dir]
    return len(set(used)) < len(used)

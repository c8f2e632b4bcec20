"""A fit in words and numbers: the terminal's tables and the JSON document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sweeps.report.tables import scientific
from sweeps.scaling.advice import Advice, crossing_interval
from sweeps.scaling.crossing import AHEAD, BEHIND, Crossing
from sweeps.scaling.fitting import Fit
from sweeps.scaling.predicting import Prediction, short

NAMES = {"brier_lm": "BrierLM", **{f"brier_{n}": f"Brier-{n}" for n in range(1, 5)}}
"""How tables and figures call the targets."""


def law_in_words(fit: Fit) -> str:
    """Return the law as a formula, with the values of its centre."""
    law, centre = fit.curve.law, fit.curve.centre
    parts = {"1": "a", "x": "b x", "k": "c k", "kk": "d k^2", "xk": "e x k", "p": "f p"}
    power = " + ".join(parts[term] for term in law.terms)
    name = NAMES[fit.settings.target]
    score = f"log10 {name} = {power}" if not law.ceiling else f"1 / {name} = 10^-({power}) + w"
    where = [f"x = log10(FLOPs / {scientific(10**centre.x)})"]
    where += [f"k = log2(K / {2**centre.k:.3g})"] if "k" in law.terms else []
    where += [f"p = log10(parameters / {scientific(10**centre.p)})"] if "p" in law.terms else []
    return f"{score}, {', '.join(where)}"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], bold: int | None = None) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left")
    for place, row in enumerate(rows):
        table.add_row(*row, style="bold" if place == bold else None)
    return table


def coefficient_table(fit: Fit) -> Table:
    """Return the law's coefficients with their 95 % intervals."""
    rows = [(one.letter, f"{one.value:.3f}", f"{one.low:.3f}, {one.high:.3f}", one.meaning) for one in fit.coefficients]
    table = _table(f"Law: {fit.curve.law.name}", ("", "value", "95 %", "meaning"), rows)
    table.columns[3].justify = "left"
    return table


def law_table(fit: Fit) -> Table:
    """Return the laws that were tried, and how well each predicts trials that it has not seen."""
    best = max(one.held_out_density for one in fit.candidates)
    rows = [(one.law, f"{one.held_out_density - best:+.1f}", f"{one.held_out_factor:.3f}") for one in fit.candidates]
    chosen = [one.law for one in fit.candidates].index(fit.curve.law.name)
    return _table("Predicting left-out trials", ("law", "log density, nats", "typical factor"), rows, chosen)


def interval(prediction: Prediction) -> str:
    """Return a score with its band, marked where it is an extrapolation."""
    mark = " *" if prediction.extrapolated else ""
    return f"{prediction.value:.2f} [{prediction.low:.2f}, {prediction.high:.2f}]{mark}"


def _overtakes(where: Crossing | None) -> str:
    if where is None:
        return "-"
    low, high = where.window
    if where.state == AHEAD:
        return f"ahead from {short(low)}"
    if where.state == BEHIND:
        return f"not below {short(high)}"
    return crossing_interval(where)


def advice_table(fit: Fit, advice: Advice) -> Table:
    """Return what each K gives at a budget."""
    name, against = NAMES[fit.settings.target], any(choice.crossing for choice in advice.choices)
    head = ["K", f"{name} [95 %]", "best", "gives up"]
    head += ["beats baseline", "overtakes it at FLOPs [95 %]"] if against else []
    rows = []
    for choice in advice.choices:
        row = [str(choice.K), interval(choice.prediction), f"{choice.probability_best:.2f}"]
        row += [f"{choice.expected_loss:.1%}"]
        beats = choice.probability_beats_baseline
        row += ["-" if beats is None else f"{beats:.2f}", _overtakes(choice.crossing)] if against else []
        rows.append(row)
    if advice.baseline is not None:
        rows.append(["baseline", interval(advice.baseline), *[""] * (len(head) - 2)])
    bold = [choice.K for choice in advice.choices].index(advice.best)
    return _table(f"{short(advice.budget)} training FLOPs", head, rows, bold)


def optimum_in_words(advice: Advice) -> str:
    """Return the best K as a real number, and how often it lies at an end of what was observed."""
    if advice.optimum is None:
        return "The law has no term for K."
    sentence = f"Best K between the observed ones: {advice.optimum:.2f} [{advice.optimum_low:.2f}, "
    sentence += f"{advice.optimum_high:.2f}]"
    ends = [
        f"the {which} with probability {share:.2f}"
        for which, share in (("smallest", advice.at_lowest), ("largest", advice.at_highest))
        if share >= 0.01
    ]
    return f"{sentence}{'; ' + ' and '.join(ends) if ends else ''}."


def used(fit: Fit) -> list[str]:
    """Return what the fit rests on, one sentence each."""
    lows, highs = zip(*fit.flops.values(), strict=True)
    scatter = fit.curve.scatter
    pruned = f", {fit.pruned} of them stopped early" if fit.pruned else ""
    sentences = [
        f"{fit.evaluations} evaluations ({fit.settings.points}) of {fit.trials} trials{pruned}; "
        f"K = {', '.join(map(str, fit.Ks))}; {short(min(lows))} to {short(max(highs))} FLOPs; R2 {fit.curve.r2:.3f}.",
        f"Scatter around the law: a factor of {10**scatter.trial:.3f} between trials, {10**scatter.point:.3f} between "
        f"evaluations; {fit.curve.df} degrees of freedom.",
    ]
    if fit.left_out:
        sentences.append(f"Left out: {'; '.join(fit.left_out)}.")
    return [*sentences, *fit.notes]


def to_document(fit: Fit, advice: Sequence[Advice]) -> dict[str, Any]:
    """Return fit and advice as JSON values; what is not a finite number is null."""
    document = {"law": law_in_words(fit), "fit": asdict(fit), "advice": [asdict(one) for one in advice]}
    plain = _plain(document)
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

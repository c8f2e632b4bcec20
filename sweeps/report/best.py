"""Which model to take at a budget of training FLOPs, how sure that is, and how to repeat it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from calm_lightning.errors import SweepError
from sweeps.report.comparisons import shown
from sweeps.report.findings import Findings
from sweeps.report.grids import Grid
from sweeps.report.seeds import Difference, MeanPoint, Model, difference
from sweeps.report.slices import at_flops
from sweeps.report.tables import scientific
from sweeps.report.words import train_commands


@dataclass(frozen=True)
class Standing:
    """A model and the evaluation it is judged by.

    Attributes:
        model: The model.
        point: Its highest evaluation within the budget.
    """

    model: Model
    point: MeanPoint


@dataclass(frozen=True)
class Choice:
    """The best model within a budget.

    Attributes:
        budget: Training FLOPs that may be spent.
        best: The model with the highest mean score.
        second: The next one, None where there is no other.
        gap: How far the best lies above the second, None where there is none.
        level: The same with both curves read off at exactly the budget, None where one of them does not reach it. The
            steps between evaluations play no part there.
        candidates: Models with a score within the budget.
    """

    budget: float
    best: Standing
    second: Standing | None
    gap: Difference | None
    level: Difference | None
    candidates: int


def choose(models: Sequence[Model], budget: float) -> Choice:
    """Return the model with the highest mean BrierLM among evaluations that cost at most a budget.

    Means over survivors and scores of 0 are left out, as on the front.

    Args:
        models: The models.
        budget: Training FLOPs.

    Raises:
        SweepError: No model has a score within the budget.
    """
    found = []
    for model in models:
        inside = [point for point in model.admitted() if point.train_flops <= budget * (1 + 1e-9)]
        if inside:
            found.append(Standing(model, max(inside, key=lambda point: point.score)))
    if not found:
        cheapest = min((point.train_flops for model in models for point in model.admitted()), default=None)
        if cheapest is None:
            raise SweepError("no model of this sweep scores above 0 yet, so that none is best: train longer or wait")
        raise SweepError(
            f"no model scores above 0 for {scientific(budget)} training FLOPs; the cheapest that does costs "
            f"{scientific(cheapest)}: give a --budget of that or more"
        )
    ordered = sorted(found, key=lambda one: (-one.point.score, one.point.train_flops))
    second = ordered[1] if len(ordered) > 1 else None
    gap = difference(ordered[0].point, second.point) if second else None
    level = _level(ordered[0].model, second.model, budget) if second else None
    return Choice(budget, ordered[0], second, gap, level, len(ordered))


def _level(best: Model, second: Model, budget: float) -> Difference | None:
    """Return the difference of two models at exactly a budget, by interpolation between evaluations of all seeds."""
    here, there = (at_flops([point for point in model.curve if point.whole], budget) for model in (best, second))
    return None if here is None or there is None else difference(here, there)


def stretches(findings: Findings) -> list[tuple[float, float, Model, MeanPoint]]:
    """Return which model of the front is best from which budget to which: (from, below, model, its last evaluation)."""
    found: list[tuple[float, float, Model, MeanPoint]] = []
    for number, (model, point) in enumerate(findings.front, start=1):
        end = findings.front[number][1].train_flops if number < len(findings.front) else float("inf")
        if found and found[-1][2] is model:
            found[-1] = (found[-1][0], end, model, point)
        else:
            found.append((point.train_flops, end, model, point))
    return found


def stretches_grid(findings: Findings) -> Grid:
    """Return the front as a table: from which budget on which model is best."""
    rows = [
        (scientific(low), model.label, f"{point.score:.2f} [{point.low:.2f}, {point.high:.2f}]", str(point.seeds))
        for low, _, model, point in stretches(findings)
    ]
    notes = ("BrierLM: the highest of its evaluations before the next row's budget.",)
    return Grid(
        "Best model by budget",
        ("from FLOPs", "model", "BrierLM [95 %]", "seeds"),
        tuple(rows),
        notes,
        wraps=frozenset({1}),
    )


def verdict(choice: Choice) -> str:
    """Return whether the best differs from the next, as a sentence."""
    if choice.second is None or choice.gap is None:
        return "No other model has a score within this budget."
    doubt = ""
    if choice.gap.single:
        doubt = "; with one seed only, what another seed would change is not in this interval"
    sentence = f"It lies {_sized(choice.gap)} above the next, {choice.second.model.label}, {_sure(choice.gap)}{doubt}."
    if choice.level is not None:
        level = f"{_sized(choice.level)}, {_sure(choice.level)}"
        sentence += f" Read off both curves at exactly {scientific(choice.budget)} training FLOPs: {level}."
    return sentence


def _sized(gap: Difference) -> str:
    return f"{gap.value:.2f} [{gap.low:.2f}, {gap.high:.2f}] percent"


def _sure(gap: Difference) -> str:
    return "a significant difference" if gap.significant else "no significant difference (the interval holds 0)"


def described(choice: Choice) -> list[str]:
    """Return the choice in sentences."""
    model, point = choice.best.model, choice.best.point
    values = ", ".join(f"{key} = {shown(value)}" for key, value in model.runs[0].values.items())
    kind = "a single run" if point.seeds == 1 else f"mean of {point.seeds} seeds"
    return [
        f"Best of {choice.candidates} models within {scientific(choice.budget)} training FLOPs: {model.label}",
        *([f"  {values}"] if values else []),
        f"  BrierLM {point.score:.2f} [{point.low:.2f}, {point.high:.2f}], {kind}, after {point.step:,} steps and "
        f"{scientific(point.train_flops)} training FLOPs",
        *(f"  run: {run.run_dir}" for run in model.runs),
        verdict(choice),
    ]


def commands(choice: Choice) -> list[str]:
    """Return the commands that train the best model again; runs that are there are found, not repeated."""
    return train_commands(choice.best.model.runs)


def to_json(choice: Choice) -> dict[str, Any]:
    """Return the choice as plain JSON values."""
    return {
        "budget_train_flops": choice.budget,
        "candidates": choice.candidates,
        "best": _standing(choice.best),
        "second": _standing(choice.second) if choice.second else None,
        "difference": _gap(choice.gap),
        "difference_at_budget": _gap(choice.level),
        "commands": commands(choice),
    }


def _gap(gap: Difference | None) -> dict[str, Any] | None:
    if gap is None:
        return None
    ends = {"value": gap.value, "low": gap.low, "high": gap.high}
    return {**ends, "significant": gap.significant, "includes_seeds": not gap.single}


def _standing(one: Standing) -> dict[str, Any]:
    point = one.point
    return {
        "model": one.model.label,
        "slug": one.model.slug,
        "stage": one.model.stage,
        "values": one.model.runs[0].values,
        "brier_lm": point.score,
        "low": point.low,
        "high": point.high,
        "se": point.se,
        "seeds": point.seeds,
        "train_flops": point.train_flops,
        "inference_flops_per_token": point.inference_flops_per_token,
        "step": point.step,
        "run_dirs": [run.run_dir for run in one.model.runs],
        "autoencoder_dirs": [run.autoencoder_dir for run in one.model.runs if run.autoencoder_dir],
    }

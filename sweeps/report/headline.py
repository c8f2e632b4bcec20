"""What was found, in a paragraph: the first thing a reader sees, with numbers and their errors."""

from __future__ import annotations

from collections.abc import Sequence

from sweeps.report.best import choose, stretches
from sweeps.report.findings import Findings
from sweeps.report.seeds import Difference, MeanPoint, Model, difference
from sweeps.report.slices import at_flops
from sweeps.report.tables import LEARNED_AT, quantity, scientific

_MOST_STRETCHES = 4
_SAME_COST = 1.05
"""Ratio of costs below which two models cost the same."""


def headline(findings: Findings) -> list[str]:
    """Return what some models show, in sentences that make one paragraph."""
    models = findings.models
    if not any(model.admitted() for model in models):
        return [*_nothing_above_zero(models), *_unfinished(models)]
    if len(models) == 1:
        return [*_alone(models[0]), *_unfinished(models)]
    return [
        *_best(findings),
        *_by_budget(findings),
        *_against_baseline(models),
        *_seeds(models),
        *_unfinished(models),
    ]


def gap_in_words(gap: Difference) -> str:
    """Return a difference with its interval, or that there is none to be seen."""
    size = (
        f"{abs(gap.value):.2f} percent [{min(abs(gap.low), abs(gap.high)):.2f}, {max(abs(gap.low), abs(gap.high)):.2f}]"
    )
    if gap.significant:
        return f"{size} {'above' if gap.value > 0 else 'below'}"
    return f"not to be told apart (difference {gap.value:+.2f} percent [{gap.low:+.2f}, {gap.high:+.2f}]) from"


def _score(point: MeanPoint) -> str:
    return f"BrierLM {point.score:.2f} [{point.low:.2f}, {point.high:.2f}]"


def _kind(point: MeanPoint) -> str:
    return "a single run" if point.seeds == 1 else f"the mean of {point.seeds} seeds"


def _nothing_above_zero(models: Sequence[Model]) -> list[str]:
    one = models[0].final
    if len(models) == 1:
        return [
            f"{models[0].label} has BrierLM 0 after {one.step:,} steps and {scientific(one.train_flops)} training "
            "FLOPs: it has not learned to continue text by four tokens yet."
        ]
    cost = max(model.final.train_flops for model in models)
    return [
        f"None of the {len(models)} models scores above BrierLM 0 within {scientific(cost)} training FLOPs: nothing "
        "can be ranked yet."
    ]


def _alone(model: Model) -> list[str]:
    """Return what one model reached, and whether it learned."""
    final = model.final
    lines = [
        f"{model.label} reaches {_score(final)} (95 %), {_kind(final)}, after {final.step:,} steps, "
        f"{quantity(final.text_tokens)} text tokens and {scientific(final.train_flops)} training FLOPs; generating "
        f"takes {scientific(final.inference_flops_per_token)} FLOPs per token."
    ]
    gain = model.runs[0].learned()
    if gain is not None:
        learned = gain > LEARNED_AT and final.low > 0
        lines.append(
            f"Its Brier-1 lies {gain:.0f} standard errors above that of the untrained model: it has "
            f"{'learned' if learned else 'not measurably learned'}."
        )
    return lines


def _best(findings: Findings) -> list[str]:
    choice = choose(findings.models, findings.reference)
    best = choice.best
    lines = [
        f"Of {len(findings.models)} models, {best.model.label} scores highest: {_score(best.point)} (95 %), "
        f"{_kind(best.point)}, for {scientific(best.point.train_flops)} training FLOPs."
    ]
    if choice.second is None or choice.gap is None:
        return [*lines, "No other scores above 0."]
    label = choice.second.model.label
    lines.append(f"It is {gap_in_words(choice.gap)} the next, {label}.")
    return lines


def _by_budget(findings: Findings) -> list[str]:
    """Return which model is best from which budget on, where that is not one for all."""
    found = stretches(findings)
    if len(found) < 2:
        return []
    parts = [f"{model.label} from {scientific(low)}" for low, _, model, _ in found]
    if len(parts) > _MOST_STRETCHES:
        return [f"Which model is best changes {len(parts) - 1} times with the budget (see the front)."]
    return [f"By training FLOPs that may be spent, the best is {', then '.join(parts)} on."]


def _against_baseline(models: Sequence[Model]) -> list[str]:
    """Return how the best CALM compares with the best token baseline: at equal training cost, and in use."""
    calm = [model for model in models if model.stage != "baseline" and model.admitted()]
    tokens = [model for model in models if model.stage == "baseline" and model.admitted()]
    if not calm or not tokens:
        return []
    cost = min(max(model.final.train_flops for model in side) for side in (calm, tokens))
    ours, theirs = _best_at(calm, cost), _best_at(tokens, cost)
    lines = []
    if ours is not None and theirs is not None:
        gap = difference(ours[1], theirs[1])
        lines.append(
            f"At equal {scientific(cost)} training FLOPs, the best CALM ({ours[0].label}) is {gap_in_words(gap)} the "
            f"best token baseline{f' ({theirs[0].label})' if len(tokens) > 1 else ''}."
        )
    best = ours[0] if ours is not None else max(calm, key=lambda model: model.final.score)
    other = theirs[0] if theirs is not None else max(tokens, key=lambda model: model.final.score)
    ratio = other.final.inference_flops_per_token / best.final.inference_flops_per_token
    if ratio > _SAME_COST or ratio < 1 / _SAME_COST:
        factor, word = (ratio, "fewer") if ratio > 1 else (1 / ratio, "more")
        lines.append(f"Generating a token takes {best.label} {factor:.2g} times {word} FLOPs than {other.label}.")
    return lines


def _best_at(models: Sequence[Model], cost: float) -> tuple[Model, MeanPoint] | None:
    """Return the model with the highest score at a cost, None where no curve covers it."""
    found = []
    for model in models:
        point = at_flops([point for point in model.curve if point.whole], cost)
        if point is not None:
            found.append((model, point))
    return max(found, key=lambda pair: pair[1].score, default=None)


def _seeds(models: Sequence[Model]) -> list[str]:
    single = sum(model.single for model in models)
    if not single:
        return []
    which = "All models were" if single == len(models) else f"{single} of the models {'was' if single == 1 else 'were'}"
    return [f"{which} trained with one seed: these intervals do not hold what another seed would change."]


def _unfinished(models: Sequence[Model]) -> list[str]:
    names = [model.label for model in models if model.unfinished]
    if not names:
        return []
    listed = ", ".join(names) if len(names) <= _MOST_STRETCHES else f"{len(names)} models"
    return [f"Not trained to the end yet: {listed}."]

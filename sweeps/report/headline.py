"""What was found, in a paragraph: the first thing a reader sees, with numbers and their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from calm_lightning.metrics.names import TRAIN_FLOPS, VAL_ACCURACY_MEAN, VAL_ACCURACY_SAMPLED
from sweeps.front.comparison import saving
from sweeps.report.best import choose, stretches
from sweeps.report.findings import Findings
from sweeps.report.frontier import cloud_of
from sweeps.report.seeds import Difference, MeanPoint, Model, difference
from sweeps.report.slices import at_flops
from sweeps.report.sources.run import ReportedRun
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
    against = _against_baseline(models)
    return [
        *_best(findings, gap=len(models) > 2 or not against),
        *_by_budget(findings),
        *against,
        *_seeds(models),
        *_unfinished(models),
    ]


def restored(run: ReportedRun) -> str:
    """Return what an autoencoder restores, in a sentence."""
    drawn, mean = (100 * run.last.get(name, 0.0) for name in (VAL_ACCURACY_SAMPLED, VAL_ACCURACY_MEAN))
    return (
        f"{run.name} restores {drawn:.2f} % of tokens from drawn latents and {mean:.2f} % from their means, after "
        f"{run.steps:,} steps and {scientific(run.last.get(TRAIN_FLOPS, 0.0))} training FLOPs."
    )


def gap_in_words(gap: Difference) -> str:
    """Return a difference with its interval, or that there is none to be seen."""
    if not gap.significant:
        return f"not to be told apart (difference {gap.value:+.2f} points [{gap.low:+.2f}, {gap.high:+.2f}]) from"
    low, high = sorted((abs(gap.low), abs(gap.high)))
    return f"{abs(gap.value):.2f} points [{low:.2f}, {high:.2f}] {'above' if gap.value > 0 else 'below'}"


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


def _best(findings: Findings, gap: bool) -> list[str]:
    """Return which model scores highest, and how far above the next one if that is asked for."""
    choice = choose(findings.models, findings.reference)
    best = choice.best
    lines = [
        f"Of {len(findings.models)} models, {best.model.label} scores highest: {_score(best.point)} (95 %), "
        f"{_kind(best.point)}, for {scientific(best.point.train_flops)} training FLOPs."
    ]
    if choice.second is None or choice.gap is None:
        return [*lines, "No other scores above 0."]
    if gap:
        lines.append(f"It is {gap_in_words(choice.gap)} the next, {choice.second.model.label}.")
    return lines


def _by_budget(findings: Findings) -> list[str]:
    """Return which model is best from which budget on, where that is not one for all."""
    found = stretches(findings)
    if len(found) < 2:
        return []
    parts = [f"{model.label} from {scientific(low)}" for low, _, model, _ in found]
    if len(parts) <= _MOST_STRETCHES:
        return [f"By training FLOPs that may be spent, the best is {', then '.join(parts)} on."]
    first, last = math.ceil(math.log10(found[0][0])), math.floor(math.log10(findings.reference))
    best: dict[str, float] = {}
    for budget in (10.0**power for power in range(first, last + 1)):
        label = next(model.label for low, _, model, _ in reversed(found) if low <= budget)
        best = {name: cost for name, cost in best.items() if name != label} | {label: budget}
    listed = [f"{label} within {cost:.0e}".replace("e+", "e") for label, cost in list(best.items())[-_MOST_STRETCHES:]]
    at = f", for example {', '.join(listed)}" if listed else ""
    return [f"Which model is best changes {len(parts) - 1} times with the training FLOPs that may be spent{at}."]


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
        first = f"the best CALM ({ours[0].label})" if len(calm) > 1 else ours[0].label
        second = f"the best token baseline ({theirs[0].label})" if len(tokens) > 1 else theirs[0].label
        gap = gap_in_words(difference(ours[1], theirs[1]))
        lines.append(f"At equal {scientific(cost)} training FLOPs, {first} is {gap} {second}.")
    lines += _saved(calm, tokens)
    best = ours[0] if ours is not None else max(calm, key=lambda model: model.final.score)
    other = theirs[0] if theirs is not None else max(tokens, key=lambda model: model.final.score)
    ratio = other.final.inference_flops_per_token / best.final.inference_flops_per_token
    if ratio > _SAME_COST or ratio < 1 / _SAME_COST:
        factor, word = (ratio, "fewer") if ratio > 1 else (1 / ratio, "more")
        lines.append(f"Generating a token takes {best.label} {factor:.2g} times {word} FLOPs than {other.label}.")
    return lines


def _saved(calm: Sequence[Model], tokens: Sequence[Model]) -> list[str]:
    """Return what the front of the CALM models costs less than that of the token baselines at the same scores."""
    ours, theirs = cloud_of(calm), cloud_of(tokens)
    found = saving(ours, theirs) if ours is not None and theirs is not None else None
    if found is None:
        return []
    share, low, high = (100 * value for value in (found.share.value, found.share.low, found.share.high))
    where = f"At equal BrierLM ({found.low:.2f} to {found.high:.2f}) CALM costs"
    if low > 0:
        return [f"{where} {share:.0f} % fewer training FLOPs [{low:.0f}, {high:.0f}]."]
    if high < 0:
        times, least, most = (1 - value / 100 for value in (share, high, low))
        return [f"{where} {times:.1f} times as many training FLOPs [{least:.1f}, {most:.1f}]."]
    return [f"{where} neither measurably more nor fewer training FLOPs (saving {share:.0f} % [{low:.0f}, {high:.0f}])."]


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

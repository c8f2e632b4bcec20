"""The tables of the front and of seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sweeps.front.series import Series
from sweeps.report.findings import Findings
from sweeps.report.grids import Grid
from sweeps.report.seeds import MeanPoint, Model
from sweeps.report.tables import quantity, scientific
from sweeps.report.words import counted

MOST_OTHERS = 12
"""Models beside those on the front that the terminal lists."""


def score(point: MeanPoint) -> str:
    """Return a score with its 95 % interval."""
    return f"{point.score:.2f} [{point.low:.2f}, {point.high:.2f}]"


def front_grid(findings: Findings, most_others: int | None = None) -> Grid:
    """Return the models on the front by rising cost, then the others by falling score.

    Args:
        findings: What the sweep shows.
        most_others: How many of the others are listed; None lists all.
    """
    standing: dict[str, MeanPoint] = {model.slug: point for model, point in findings.front}
    rows = [
        (str(number), *_cells(model, standing[model.slug], findings))
        for number, model in enumerate(findings.leaders, start=1)
    ]
    rest = sorted((model for model in findings.models if model.slug not in standing), key=lambda m: -m.final.score)
    listed = rest[:most_others]
    rows += [("", *_cells(model, model.final, findings)) for model in listed]
    notes = [
        f"Front of models: {counted(len(findings.front), 'evaluation')} of {counted(len(standing), 'model')}; "
        f"hypervolume {findings.hypervolume:.3f} decades of FLOPs x percent, below {scientific(findings.reference)} "
        "FLOPs.",
    ]
    if findings.several_seeds:
        notes.append(f"Front of all single runs, which lucky seeds lift: hypervolume {findings.runs_hypervolume:.3f}.")
    notes.append(
        "Numbered: on the front, at the highest of its evaluations there; others: last evaluation. On front: share of "
        "redraws within the errors in which the model is on it."
    )
    if len(rest) > len(listed):
        notes.append(f"{len(rest) - len(listed)} more models are not listed here.")
    head = ("", "model", "FLOPs", "BrierLM [95 %]", "seeds", "on front")
    strong = frozenset(range(len(standing)))
    return Grid("The front, and the models beside it", head, tuple(rows), tuple(notes), strong, frozenset({1}))


def _cells(model: Model, point: MeanPoint, findings: Findings) -> tuple[str, str, str, str, str]:
    share = f"{100 * findings.shares.get(model.slug, 0.0):.0f} %"
    mark = "" if point.whole else " †"
    return model.named, scientific(point.train_flops), score(point) + mark, f"{len(model.runs)}", share


def models_grid(findings: Findings) -> Grid:
    """Return every model's last evaluation with parameters, both costs and tokens, by rising training FLOPs."""
    rows = [
        (
            model.named,
            quantity(model.parameters) if model.parameters else "-",
            scientific(model.final.train_flops),
            scientific(model.final.inference_flops_per_token),
            quantity(model.final.text_tokens),
            score(model.final) + ("" if model.final.whole else " †"),
            model.seeds_in_words(),
        )
        for model in sorted(findings.models, key=lambda one: one.final.train_flops)
    ]
    head = ("model", "parameters", "training FLOPs", "FLOPs per token", "text tokens", "BrierLM [95 %]", "seeds")
    dagger = any(not model.final.whole for model in findings.models)
    notes = (
        "†: mean of the seeds that came so far; where others were stopped early it is too good. Such means stand on no "
        "front.",
    )
    return Grid("Last evaluations", head, tuple(rows), notes if dagger else ())


def brier_grid(series: Sequence[Series]) -> Grid:
    """Return Brier-1..4, the factors of BrierLM, of every run's last evaluation."""
    rows = [
        (
            one.label,
            str(one.seed),
            *(f"{value:.2f} ± {se:.2f}" for value, se in zip(one.final.brier, one.final.brier_se, strict=True)),
        )
        for one in sorted(series, key=lambda one: one.final.train_flops)
    ]
    head = ("model", "seed", "Brier-1", "Brier-2", "Brier-3", "Brier-4")
    notes = ("Brier-n scores the next n tokens as one outcome; BrierLM is 0 where one of the four is not above 0.",)
    return Grid("Brier-1 to Brier-4 of the last evaluation, percent ± SE", head, tuple(rows), notes)


def seeds_grid(findings: Findings, most: int | None = None) -> Grid | None:
    """Return means with the two parts of their errors, None where no model has several seeds.

    Args:
        findings: What the sweep shows.
        most: How many models are listed, those with the highest scores; None lists all.
    """
    several = [model for model in findings.models if not model.single]
    if not several:
        return None
    rows = []
    for model in sorted(several, key=lambda one: -one.final.score)[:most]:
        point = model.final
        freedom = "inf" if math.isinf(point.freedom) or point.freedom > 999 else f"{point.freedom:.1f}"
        rows.append(
            (
                model.label,
                f"{point.seeds} of {point.of}",
                score(point),
                "-" if point.spread is None else f"{point.spread:.3f}",
                f"{point.evaluation_se:.3f}",
                f"{point.se:.3f}",
                freedom,
            )
        )
    notes = (
        "SE^2 = S^2 / R + mean(e^2): S standard deviation between R seeds, e standard error of an evaluation, which "
        "seeds share because they are scored on the same blocks; interval from Student's t with "
        "df = SE^4 (R - 1) / (S^2 / R)^2.",
    )
    head = ("model", "seeds", "BrierLM [95 %]", "S", "e", "SE", "df")
    return Grid("Means over seeds, last evaluations", head, tuple(rows), notes)


def failures_grid(rows: list[tuple[str, str, str, str]]) -> Grid:
    """Return failed and stopped trials with their reasons."""
    return Grid(
        "Failed and stopped trials",
        ("trial", "model", "seed", "reason"),
        tuple(rows),
        wraps=frozenset({1, 3}),
    )

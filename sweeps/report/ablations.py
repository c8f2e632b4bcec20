"""The paper's ablation tables with ours beside them, for every axis that the sweep varies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.report.comparisons import SWEEP, Contrast, contrasts, free_keys, short, shown
from sweeps.report.grids import Grid
from sweeps.report.published import (
    BETA,
    DROP_LATENT,
    DROP_TOKEN,
    KL_CLIP,
    REGULARISATION,
    REGULARISERS,
    TABLES,
    Below,
    PublishedRow,
    PublishedTable,
)
from sweeps.report.seeds import MeanPoint, Model, difference
from sweeps.report.slices import at_flops, shared_budget
from sweeps.report.tables import scientific


@dataclass(frozen=True)
class Ablation:
    """One of the paper's ablations as this sweep has it.

    Attributes:
        published: The paper's table.
        contrast: Our models: equal but for the table's keys, as far as they can be.
        more: How many further contrasts of the same kind there are.
        baseline: The token baseline, where there is one.
    """

    published: PublishedTable
    contrast: Contrast
    more: int
    baseline: Model | None = None


def ablations(models: Sequence[Model], sweep_of: Mapping[str, str]) -> list[Ablation]:
    """Return the ablations that the models hold, in the paper's order, at most one contrast of each.

    Args:
        models: The models.
        sweep_of: Name of the study by a model's slug.
    """
    places = dict(sweep_of)
    free = free_keys(models, places)
    baselines = [model for model in models if model.stage == "baseline" and not model.runs[0].values]
    found = []
    for table in TABLES:
        others = [key for key in table.keys if key != BETA]
        if table is REGULARISATION and not any(key in free for key in others):
            continue
        if not any(key in free for key in table.keys):
            continue
        groups = contrasts(models, table.keys, places)
        if groups:
            baseline = max(baselines, key=lambda one: len(one.curve)) if baselines else None
            found.append(Ablation(table, groups[0], len(groups) - 1, baseline))
    return found


def regulariser_name(values: Mapping[str, Any]) -> str:
    """Return which regularisers are on: "KL + clipping + DropToken"; "reconstruction only" for none."""
    parts = []
    if values.get(BETA):
        parts.append("KL" if values[BETA] == 1e-3 else f"KL (beta = {shown(values[BETA])})")
        if values.get(KL_CLIP):
            parts.append("clipping" if values[KL_CLIP] == 0.5 else f"clipping at {shown(values[KL_CLIP])}")
    for key, name in ((DROP_TOKEN, "DropToken"), (DROP_LATENT, "DropLatent")):
        if values.get(key):
            parts.append(name if values[key] == 0.15 else f"{name} {shown(values[key])}")
    return " + ".join(parts) or "reconstruction only"


def score_cell(point: MeanPoint | None) -> str:
    """Return a score with its 95 % interval; a dagger marks a mean over survivors."""
    if point is None:
        return "-"
    return f"{point.score:.2f} [{point.low:.2f}, {point.high:.2f}]{'' if point.whole else ' †'}"


def ablation_grid(ablation: Ablation) -> Grid:
    """Return an ablation in the paper's layout: its rows, its numbers, ours beside them."""
    table, contrast = ablation.published, ablation.contrast
    ours = [(dict(zip(contrast.keys, values, strict=True)), model) for values, model in contrast.models]
    reference = _reference(ablation, ours)
    budget = shared_budget([model for _, model in ours])
    placed: list[tuple[tuple[float, ...], tuple[str, ...]]] = []
    used: set[int] = set()
    for values, model in ours:
        row = next((row for row in table.rows if row.matches(values)), None)
        used |= {table.rows.index(row)} if row else set()
        cells = _row(_name(table, values), row.cell() if row else "", model, reference, budget)
        placed.append((_order(table, row, values), cells))
    for index, row in enumerate(table.rows):
        if index not in used:
            placed.append((_order(table, row, row.values), (row.name, row.cell(), *[""] * 4)))
    rows = [cells for _, cells in sorted(placed, key=lambda pair: pair[0])]
    if table.keys == ("model.K",) and ablation.baseline is not None:
        rows.append(_row("Transformer", "", ablation.baseline, reference, budget))
    head = (_heading(table), f"paper, {table.source}", "BrierLM [95 %]", "FLOPs", _at(budget), "R")
    return Grid(table.title, head, tuple(rows), tuple(_notes(ablation, ours, reference)), wraps=frozenset({0, 1}))


def _order(table: PublishedTable, row: PublishedRow | None, values: Mapping[str, Any]) -> tuple[float, ...]:
    """Return where a row stands: by its number, or in the paper's order with rows of ours alone at the end."""
    value = values.get(table.keys[0])
    if len(table.keys) == 1 and not isinstance(value, str):
        return (value.limit - 1e-9 if isinstance(value, Below) else float(value or 0.0),)
    return (float(table.rows.index(row)) if row else float(len(table.rows)),)


def _row(
    name: str, paper: str, model: Model, reference: Model | None, budget: float | None
) -> tuple[str, str, str, str, str, str]:
    cost = model.final.train_flops
    relative = scientific(cost) if reference is None else f"{cost / reference.final.train_flops:.2f}x"
    equal = "" if budget is None else score_cell(at_flops(model.curve, budget))
    seeds = f"{len(model.runs)}{' p' if model.pruned else ''}"
    return name, paper, score_cell(model.final), relative, equal, seeds


def _name(table: PublishedTable, values: Mapping[str, Any]) -> str:
    return regulariser_name(values) if table.keys == REGULARISERS else shown(values[table.keys[0]])


def _heading(table: PublishedTable) -> str:
    return "regularisers" if table.keys == REGULARISERS else short(table.keys[0])


def _at(budget: float | None) -> str:
    return "no equal FLOPs" if budget is None else f"at {scientific(budget)}"


def _reference(ablation: Ablation, ours: Sequence[tuple[dict[str, Any], Model]]) -> Model | None:
    """Return our model in the paper's reference row."""
    for row in ablation.published.rows:
        if row.name == ablation.published.reference:
            return next((model for values, model in ours if row.matches(values)), None)
    return None


def _notes(ablation: Ablation, ours: Sequence[tuple[dict[str, Any], Model]], reference: Model | None) -> list[str]:
    table, contrast = ablation.published, ablation.contrast
    equal = contrast.equal_in_words()
    notes = [f"Equal in all rows: {equal}." if equal else "Nothing else was chosen differently between the rows."]
    if contrast.following:
        notes.append(f"Not equal, because it follows: {', '.join(short(key) for key in contrast.following)}.")
    if SWEEP not in contrast.equal and len({model.label[:2] for _, model in ours if ": " in model.label}) > 1:
        notes.append("The rows come from different sweeps, whose budgets may differ.")
    against = f"relative to {_heading(table)} = {table.reference}" if reference is not None else "of training"
    notes.append(
        f"FLOPs: {against}, the autoencoder's included. BrierLM: last evaluation, and at equal FLOPs. R: seeds."
    )
    if table.note:
        notes.append(table.note)
    notes.append(verdict(table, ours))
    if any(model.pruned for _, model in ours):
        notes.append("p: stopped early, so its last evaluation had less training.")
    if any(not point.whole for _, model in ours for point in model.curve):
        notes.append("†: mean of the seeds that were not stopped early, hence too good.")
    if ablation.more:
        notes.append(f"{ablation.more} further groups of models differ in this only; see the slices.")
    return notes


def verdict(table: PublishedTable, ours: Sequence[tuple[Mapping[str, Any], Model]]) -> str:
    """Return how many of the pairs that the paper orders are ordered the same way here, beyond their errors."""
    place: dict[str, Model] = {}
    for row in table.rows:
        model = _standing(row, ours)
        if model is not None:
            place[row.name] = model
    pairs = [(worse, better) for worse, better in table.all_orders() if worse in place and better in place]
    if not pairs:
        return "The paper orders none of the pairs of rows that were trained here."
    same = other = 0
    for worse, better in pairs:
        gap = difference(place[better].final, place[worse].final)
        same += gap.significant and gap.value > 0
        other += gap.significant and gap.value < 0
    undecided = len(pairs) - same - other
    return (
        f"Of {len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'} of rows that the paper orders, {same} "
        f"{'is' if same == 1 else 'are'} ordered the same way here beyond the 95 % interval, {other} the other way, "
        f"{undecided} {'is' if undecided == 1 else 'are'} undecided."
    )


def _standing(row: PublishedRow, ours: Sequence[tuple[Mapping[str, Any], Model]]) -> Model | None:
    """Return our model in a row; where several are, the first."""
    return next((model for values, model in ours if row.matches(values)), None)

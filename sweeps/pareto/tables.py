"""Fronts and comparisons as tables, for terminal and page."""

from __future__ import annotations

from sweeps.front.comparison import Saving
from sweeps.front.intervals import Estimate
from sweeps.pareto.chosen import Chosen
from sweeps.pareto.comparing import Comparison
from sweeps.pareto.fronts import Front, Fronts
from sweeps.pareto.words import front_notes, plain, short
from sweeps.report.grids import Grid
from sweeps.report.seeds import MeanPoint, Model
from sweeps.report.tables import scientific

_MOST_IDS = 3
_TITLES = {"training": "What a score costs to train", "inference": "What it costs to use"}
_HEADS = {"training": "FLOPs", "inference": "FLOPs/token"}


def front_grids(fronts: Fronts) -> list[Grid]:
    """Return the tables of both fronts."""
    return [_front_grid(fronts, front) for front in fronts.both]


def _front_grid(fronts: Fronts, front: Front) -> Grid:
    rows = [
        (
            str(number),
            model.label,
            scientific(front.cost(point)),
            _score(point),
            str(len(model.runs)),
            f"{100 * front.shares[model.slug]:.0f} %",
            _ids(model),
        )
        for number, (model, point, _) in enumerate(front.leaders, start=1)
    ]
    head = ("", "model", _HEADS[front.kind], "BrierLM [95 %]", "seeds", "on front", "run")
    notes = (
        *front_notes(fronts, front.kind),
        "On front: share of redraws within the errors in which the model is on it.",
    )
    return Grid(_TITLES[front.kind], head, tuple(rows), notes, wraps=frozenset({1, 6}))


def _score(point: MeanPoint) -> str:
    return f"{point.score:.2f} [{point.low:.2f}, {point.high:.2f}]"


def _ids(model: Model) -> str:
    """Return the beginnings of a model's run ids, with which they can be found."""
    ids = [(run.mlflow_run_id or "")[:8] for run in model.runs]
    return " ".join(ids[:_MOST_IDS]) + (" ..." if len(ids) > _MOST_IDS else "")


def comparison_grid(found: Comparison) -> Grid:
    """Return both comparisons as one table."""
    a, b = found.names
    rows = [
        ("FLOPs at equal BrierLM", *(_saving(side.mean) for side in found.sides)),
        ("  over BrierLM", *(_span(side.mean) for side in found.sides)),
        ("  between whole evaluations", *(_stepwise(side.mean) for side in found.sides)),
    ]
    if found.level is not None:
        steps = [side.at_stepwise for side in found.sides]
        rows += [
            (f"the same at BrierLM {found.level:g}", *(_saving(side.at) for side in found.sides)),
            ("  between whole evaluations", *("-" if one is None else short(one) for one in steps)),
        ]
    rows += [
        (f"hypervolume of {a}", *(_estimate(side.volume_a) for side in found.sides)),
        (f"hypervolume of {b}", *(_estimate(side.volume_b) for side in found.sides)),
        ("  difference", *(_estimate(side.difference) for side in found.sides)),
    ]
    heads = ("", "training FLOPs", "inference FLOPs")
    notes = ("Hypervolumes in decades of FLOPs x percent, of both sets below the same cost.",)
    return Grid(f"{a} against {b}", heads, tuple(rows), notes, wraps=frozenset({0}))


def _estimate(one: Estimate) -> str:
    return f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]"


def _saving(one: Saving | None) -> str:
    """Return what A costs beside B: less with a minus."""
    if one is None:
        return "-"
    low, high = (short(end).removesuffix(" %") for end in (one.share.high, one.share.low))
    return f"{short(one.share.value)} [{low}, {high}]"


def _stepwise(one: Saving | None) -> str:
    return "-" if one is None or one.stepwise is None else short(one.stepwise)


def _span(one: Saving | None) -> str:
    return "no common scores" if one is None else f"{plain(one.low)} to {plain(one.high)}"


def legend(names: tuple[str, str], selections: tuple[str, str], chosen: tuple[Chosen, Chosen]) -> list[str]:
    """Return what the two names stand for: "A: tags.K = '4' (3 models · 9 runs · seeds 0, 1, 2)"."""
    return [
        f"{name}: {selection or 'all runs'} ({one.line()})"
        for name, selection, one in zip(names, selections, chosen, strict=True)
    ]

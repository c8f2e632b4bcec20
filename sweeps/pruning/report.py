"""Replays in words: the table of rates, and which trials would have been stopped when and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sweeps.pruning.config import PruningConfig
from sweeps.pruning.evidence import Evidence, Rate, repeat, summarise
from sweeps.pruning.replay import FLOPS, Replay, Trial

_NOTE = (
    "A stop is false if a later evaluation of the trial lies on the front of the complete sweep; significantly, if "
    "it lies above the front of all other trials by more than the 95 % interval of the difference. Brackets: 95 % "
    "intervals. Saved: of the language models' training FLOPs."
)


@dataclass(frozen=True)
class Outcome:
    """What replays did with one trial.

    Attributes:
        sweep: Name of its sweep.
        trial: Its number.
        label: How tables call its model.
        share: Share of the replays that stopped it.
        false: Share of the replays that stopped it falsely.
        significant: Share of the replays that stopped it falsely, and significantly so.
        at: Training FLOPs at which it was stopped in the first of these, None where none stopped it.
        final: Training FLOPs of the complete trial.
        reason: What the rule said then; "" where nothing stopped it.
    """

    sweep: str
    trial: int
    label: str
    share: float
    false: float
    significant: float
    at: float | None
    final: float
    reason: str


@dataclass(frozen=True)
class ReplayReport:
    """Replays of some sweeps under one setting of the rule.

    Attributes:
        settings: Settings of the rule.
        evidence: Rates, savings, losses.
        outcomes: Every trial, in the order of sweeps and trials.
    """

    settings: PruningConfig
    evidence: Evidence
    outcomes: tuple[Outcome, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        trials = [asdict(one) for one in self.outcomes]
        return {"settings": asdict(self.settings), **evidence_json(self.evidence), "outcomes": trials}


def evidence_json(evidence: Evidence) -> dict[str, Any]:
    """Return evidence as plain JSON values, each rate with its share; null where nothing was counted."""
    plain = asdict(evidence)
    for name, value in vars(evidence).items():
        if isinstance(value, Rate):
            plain[name]["share"] = value.value if value.count else None
    return plain


def report(
    sweeps: Mapping[str, Sequence[Trial]],
    settings: PruningConfig,
    *,
    workers: int = 4,
    replays: int = 100,
    seed: int = 0,
    clock: str = FLOPS,
) -> ReplayReport:
    """Replay sweeps and say what happened to every trial.

    Args:
        sweeps: The sweeps by name.
        settings: Settings of the rule.
        workers: Workers.
        replays: Replays of each sweep, the first in the recorded order.
        seed: Of the other orders.
        clock: As in `replay`.
    """
    found = [
        repeat(trials, settings, workers=workers, replays=replays, seed=seed + number, clock=clock)
        for number, trials in enumerate(sweeps.values())
    ]
    outcomes = [
        _outcome(name, trials, index, own)
        for (name, trials), own in zip(sweeps.items(), found, strict=True)
        for index in range(len(trials))
    ]
    return ReplayReport(settings, summarise(list(sweeps.values()), found, workers), tuple(outcomes))


def _outcome(sweep: str, trials: Sequence[Trial], index: int, found: Sequence[Replay]) -> Outcome:
    """Return what replays of a sweep did with one of its trials."""
    trial, stops = trials[index], [stop for one in found for stop in one.stops if stop.trial == index]
    return Outcome(
        sweep=sweep,
        trial=trial.number,
        label=trial.label,
        share=len(stops) / len(found),
        false=sum(stop.false for stop in stops) / len(found),
        significant=sum(stop.significantly_false for stop in stops) / len(found),
        at=float(trial.curve.cost[stops[0].evaluation]) if stops else None,
        final=float(trial.curve.cost[-1]),
        reason=stops[0].decision.reason if stops else "",
    )


def share(one: Rate) -> str:
    """Return a rate in percent with its interval."""
    if math.isnan(one.value):
        return "-"
    return f"{100 * one.value:.2g} % [{100 * one.low:.2g}, {100 * one.high:.2g}]"


def evidence_table(rows: Sequence[tuple[str, Evidence]], title: str, head: str = "sweeps") -> Table:
    """Return the terminal's table of evidence, one row for each kind of sweep or setting.

    Args:
        rows: What was replayed, and what was found.
        title: Heading.
        head: Heading of the first column.
    """
    columns = (head, "trials", "stopped", "false stops", "significantly false", "saved", "front lost")
    table = Table(title=title, title_justify="left", caption=_NOTE, caption_justify="left", box=SIMPLE_HEAD)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    for name, one in rows:
        table.add_row(
            name,
            f"{one.trials:,}",
            f"{100 * one.stopped.value:.0f} %",
            share(one.false),
            share(one.significant),
            f"{100 * one.saved:.1f} %",
            f"{100 * one.hypervolume_loss:.2g} %",
        )
    return table


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    """Return the terminal's table of the trials that replays stopped, the most often stopped first."""
    table = Table(title="Trials that would have been stopped", title_justify="left", box=SIMPLE_HEAD)
    for name in ("sweep", "trial", "model", "stopped", "false", "after"):
        table.add_column(name, justify="left" if name in ("sweep", "model") else "right")
    table.add_column("why, the first time", ratio=1)
    for one in sorted((one for one in outcomes if one.at is not None), key=lambda one: -one.share):
        spent = f"{100 * (one.at or 0.0) / one.final:.0f} %"
        shares = (f"{100 * one.share:.0f} %", f"{100 * one.false:.0f} %", spent)
        table.add_row(one.sweep, str(one.trial), one.label, *shares, one.reason)
    return table

"""`calm sweep status`: a sweep at one moment, as a summary and a table for the terminal, and as strict JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from calm_lightning.errors import SweepError
from sweeps.watch.columns import Column, heading, label_width, row, widths
from sweeps.watch.eta import elapsed, seconds, seconds_left
from sweeps.watch.panels import cache, front, header, workers
from sweeps.watch.snapshot import RUNNING, STATES, WAITING, Snapshot, TrialView
from sweeps.watch.values import finite, fraction
from sweeps.watch.wording import (
    ASCII,
    QUIET,
    STYLES,
    UNICODE,
    Cell,
    Glyphs,
    counts,
    duration,
    fit,
    flops,
    line,
    name,
    one_line,
    percent,
    score,
    several_seeds,
)

_FRONT = 9
_COLUMNS = (
    Column("trial", 5, 5, 0, right=True),
    Column("model", 10, 40, 1),
    Column("state", 8, 8, 2),
    Column("FLOPs", 7, 7, 6, right=True),
    Column("of budget", 9, 9, 5, right=True),
    Column("BrierLM", 12, 12, 3, right=True),
    Column("time", 12, 12, 7, right=True),
    Column("tries", 5, 5, 8, right=True),
    Column("worker or reason", 18, 200, 4),
)


@dataclass(frozen=True)
class Status:
    """Summary and table of a sweep, as a rich renderable.

    Attributes:
        snapshot: The sweep.
        states: States of the trials to list; empty lists all.
        last: List the last so many of them; None lists all, 0 the summary alone.
    """

    snapshot: Snapshot
    states: tuple[str, ...] = ()
    last: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the summary's lines, then one line per trial."""
        glyphs, width = ASCII if options.ascii_only else UNICODE, options.max_width
        lines = summary(self.snapshot, width, glyphs)
        if self.last != 0:
            lines += [Text(""), *trial_lines(self.snapshot, width, glyphs, self.states, self.last)]
        for text in lines:
            text.rstrip()
            text.end = "\n"
            yield text


def summary(snapshot: Snapshot, width: int, glyphs: Glyphs = UNICODE) -> list[Text]:
    """Return the sweep's progress, front, cache and workers, none of the lines wider than `width` cells."""
    return [
        *header(snapshot, width, glyphs),
        Text(""),
        *front(snapshot, (), width, _FRONT, glyphs),
        Text(""),
        cache(snapshot, width, glyphs),
        workers(snapshot, width, glyphs),
        line([(fit("place", 10, glyphs), QUIET), (one_line(snapshot.directory, glyphs), "")], width, glyphs),
    ]


def select(snapshot: Snapshot, states: Sequence[str] = (), last: int | None = None) -> list[TrialView]:
    """Return trials by number, those of some states only, the last of them only.

    Args:
        snapshot: The sweep.
        states: Their states; empty takes all.
        last: How many; None takes all. Without states, trials that wait are left out first: none of them is recent.

    Raises:
        SweepError: There is no such state, or fewer than no trial was asked for.
    """
    for state in states:
        if state not in STATES:
            raise SweepError(f"there is no state {state!r} of a trial; there are {', '.join(STATES)}")
    if last is not None and last < 0:
        raise SweepError(f"--last {last} must be at least 0: it is a number of trials")
    found = [trial for trial in snapshot.trials if not states or trial.state in states]
    found.sort(key=lambda trial: trial.number)
    if last is None:
        return found
    begun = [trial for trial in found if states or trial.state != WAITING]
    return begun[len(begun) - min(last, len(begun)) :]


def trial_lines(
    snapshot: Snapshot,
    width: int,
    glyphs: Glyphs = UNICODE,
    states: Sequence[str] = (),
    last: int | None = None,
) -> list[Text]:
    """Return one line per trial under a heading, and how many were left out.

    Args:
        snapshot: The sweep.
        width: Terminal cells.
        glyphs: The terminal's repertoire.
        states: As for `select`.
        last: As for `select`.

    Raises:
        SweepError: As for `select`.
    """
    shown, matching = select(snapshot, states, last), select(snapshot, states)
    seeds = several_seeds(snapshot)
    longest = label_width((trial.label for trial in shown), 10, 40) + 3 * seeds
    columns = [replace(column, most=longest) if column.title == "model" else column for column in _COLUMNS]
    wide = widths(columns, width, gap=2)
    lines = [line(heading(columns, wide, glyphs, gap=2), width, glyphs)]
    for trial in shown:
        texts = _texts(trial, seeds, wide.get("model", 0), snapshot.taken, glyphs)
        lines.append(line(row(columns, wide, texts, glyphs, gap=2), width, glyphs))
    if not matching:
        lines.append(line([("no trial " + (f"is {' or '.join(states)}" if states else "yet"), QUIET)], width, glyphs))
    elif len(shown) < len(matching):
        lines.append(line([(f"and {len(matching) - len(shown)} more", QUIET)], width, glyphs))
    return lines


def _texts(trial: TrialView, seeds: bool, width: int, now: float, glyphs: Glyphs) -> dict[str, Cell | list[Cell]]:
    """Return the cells of `_COLUMNS`."""
    took = seconds(trial, now)
    note = trial.worker if trial.state == RUNNING else trial.reason
    return {
        "trial": (str(trial.number), ""),
        "model": (name(trial, seeds, glyphs, width), ""),
        "state": (one_line(trial.state, glyphs), STYLES.get(trial.state, "")),
        "FLOPs": (flops(trial.train_flops), ""),
        "of budget": (percent(fraction(trial.train_flops, trial.budget_flops)), ""),
        "BrierLM": (score(trial.brier_lm, trial.brier_lm_se, glyphs), ""),
        "time": ("-" if took is None else duration(took), ""),
        "tries": (str(trial.attempts), "yellow" if trial.attempts > 1 else ""),
        "worker or reason": (one_line(note, glyphs), QUIET),
    }


def to_json(snapshot: Snapshot) -> str:
    """Return the snapshot as strict JSON, with counts, elapsed and remaining seconds beside its fields.

    JSON has no NaN and no infinities: they are the strings "nan", "inf" and "-inf", as in a run's journal.
    """
    derived = {
        "counts": counts(snapshot),
        "elapsed_seconds": elapsed(snapshot),
        "remaining_seconds": seconds_left(snapshot),
    }
    return json.dumps(_strict({**asdict(snapshot), **derived}), allow_nan=False, indent=2)


def _strict(value: Any) -> Any:
    """Return a value with floats that JSON lacks as strings."""
    if isinstance(value, dict):
        return {key: _strict(below) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(below) for below in value]
    return str(value) if isinstance(value, float) and finite(value) is None else value

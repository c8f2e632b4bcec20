"""How the watch words things: glyphs and colours, durations, scores, and text that keeps to its line.

Whatever a snapshot holds, text comes out on one line, without control characters and no wider than it may be, and a
number that cannot be shown comes out as "-".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from sweeps.report.tables import quantity, scientific
from sweeps.watch.snapshot import COMPLETE, ENDED, FAILED, PRUNED, RUNNING, STATES, WAITING, Snapshot, TrialView
from sweeps.watch.values import finite

STYLES = {COMPLETE: "green", PRUNED: "yellow", FAILED: "red", RUNNING: "cyan", WAITING: "dim"}
"""The one colour of each state; everything else is plain, dim or bold."""
ENDINGS = (*ENDED, RUNNING, WAITING)
"""States in the order in which they are counted: what has ended first."""
QUIET, ALARM = "dim", "red"
_PLAIN = str.maketrans({"±": "+-", "·": "-", "×": "x", "…": "~", "–": "-", "—": "-"})

Cell = tuple[str, str]
"""A piece of a line and its style."""


@dataclass(frozen=True)
class Glyphs:
    """The characters of bars and plots, in one repertoire.

    Attributes:
        ascii: Whether the terminal's encoding knows nothing but ASCII.
        bar: Pieces of a bar: done, the half at its end, and what is left.
        states: Piece of the overall bar for every state, told apart without colours where glyphs allow.
        dots: Mark in front of a state's count: states that have begun, and waiting.
        horizontal: Piece of the front's step line.
        vertical: Piece of the front's step line.
        corner: Where the step line turns up.
        on_front: An evaluation on the front.
        behind: The last evaluation of a trial, not on the front.
        axis: Vertical axis, origin and horizontal axis.
        ramp: Heights of a sparkline, lowest first.
        cut: What ends text that was cut.
    """

    ascii: bool
    bar: tuple[str, str, str]
    states: dict[str, str]
    dots: tuple[str, str]
    horizontal: str
    vertical: str
    corner: str
    on_front: str
    behind: str
    axis: tuple[str, str, str]
    ramp: str
    cut: str


UNICODE = Glyphs(
    ascii=False,
    bar=("━", "╸", "─"),
    states={COMPLETE: "━", PRUNED: "━", FAILED: "━", RUNNING: "━", WAITING: "─"},
    dots=("●", "○"),
    horizontal="─",
    vertical="│",
    corner="┘",
    on_front="●",
    behind="·",
    axis=("│", "└", "─"),
    ramp="▁▂▃▄▅▆▇█",
    cut="…",
)
ASCII = Glyphs(
    ascii=True,
    bar=("#", "=", "."),
    states={COMPLETE: "#", PRUNED: "=", FAILED: "x", RUNNING: ">", WAITING: "."},
    dots=("*", "o"),
    horizontal="-",
    vertical="|",
    corner="+",
    on_front="O",
    behind=".",
    axis=("|", "+", "-"),
    ramp=".:-=+*#%",
    cut="~",
)


def one_line(value: object, glyphs: Glyphs = UNICODE) -> str:
    """Return a value's text on one line, without control characters, in the terminal's repertoire."""
    text = "" if value is None else str(value)
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text.translate(_PLAIN).encode("ascii", "replace").decode() if glyphs.ascii else text


def cut(text: str, width: int, glyphs: Glyphs = UNICODE) -> str:
    """Return text of at most `width` terminal cells, its end replaced by a mark where it is longer."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + glyphs.cut if width > 0 else ""


def fit(text: str, width: int, glyphs: Glyphs = UNICODE, *, right: bool = False) -> str:
    """Return text of exactly `width` terminal cells, cut or padded.

    Args:
        text: One line.
        width: Terminal cells.
        glyphs: The terminal's repertoire.
        right: Pad on the left.
    """
    text = cut(text, width, glyphs)
    padding = " " * (width - cell_len(text))
    return padding + text if right else text + padding


def line(cells: Sequence[Cell], width: int, glyphs: Glyphs = UNICODE) -> Text:
    """Return cells one after the other as a line of at most `width` terminal cells."""
    text, left = Text(no_wrap=True, end=""), width
    for content, style in cells:
        piece = cut(content, left, glyphs)
        text.append(piece, style=style)
        left -= cell_len(piece)
        if piece != content or left <= 0:
            break
    return text


def ends(left: Sequence[Cell], right: Sequence[Cell], width: int, glyphs: Glyphs = UNICODE) -> Text:
    """Return a line with cells at both ends; where they do not fit, the left ones are cut."""
    room = width - sum(cell_len(content) for content, _ in right)
    if room < 1:
        return line(right, width, glyphs)
    beginning = line(left, room - 1 if right else room, glyphs)
    beginning.append(" " * (room - beginning.cell_len))
    return beginning.append_text(line(right, width - room, glyphs))


def duration(seconds: float | None) -> str:
    """Return a duration in its two largest units: "45 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"; "-" if unknown."""
    known = finite(seconds)
    if known is None:
        return "-"
    whole = round(max(known, 0.0))
    for large, unit, small, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {unit} {rest} {below}" if rest else f"{whole // large} {unit}"
    return f"{whole} s"


def roughly(seconds: float) -> str:
    """Return an estimated duration as exactly as it is known: "50 s", "4 min", "2 h 25 min", "3 d 4 h"."""
    for up_to, unit in ((60, 10), (5400, 60), (86400, 300), (float("inf"), 3600)):
        if seconds < up_to:
            return duration(max(1, round(seconds / unit)) * unit)
    return "-"


def stamp(seconds: float) -> str:
    """Return a time as text in UTC, so that lines from several machines sort: "2026-01-05 14:03:21Z"."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%SZ}"
    except (ValueError, OverflowError, OSError, TypeError):
        return "-"


def flops(value: float | None) -> str:
    """Return FLOPs as 4.98e13; "-" where they are not known."""
    number = finite(value)
    return "-" if number is None else "0" if number == 0 else scientific(number)


def steps(value: int) -> str:
    """Return optimiser steps: all digits up to four, then 12.3k."""
    number = finite(value)
    return "-" if number is None else f"{number:.0f}" if abs(number) < 1e4 else quantity(number)


def percent(share: float | None) -> str:
    """Return a fraction in whole percent, rounded down: 100 % means all of it; "-" where it is not known."""
    return "-" if share is None else f"{int(share * 100)} %"


def score(brier_lm: float | None, error: float | None, glyphs: Glyphs = UNICODE) -> str:
    """Return BrierLM with its standard error, 12 cells with aligned numbers: " 4.82 ± 0.21"; "-" before the first."""
    value, spread = finite(brier_lm), finite(error)
    if value is None:
        return "-" if brier_lm is None else "nan"
    if spread is None:
        return f"{_decimal(value):>5}{'':7}"
    return f"{_decimal(value):>5} {'+-' if glyphs.ascii else '± '}{_decimal(spread):>4}"


def _decimal(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:.0e}"


def several_seeds(snapshot: Snapshot) -> bool:
    """Return whether seeds tell trials apart: whether there is more than one."""
    return len({trial.seed for trial in snapshot.trials}) > 1


def name(trial: TrialView, seeds: bool, glyphs: Glyphs = UNICODE, width: int | None = None) -> str:
    """Return how a trial is called: its label and, where seeds tell trials apart, its seed.

    Args:
        trial: The trial.
        seeds: Whether to name the seed.
        glyphs: The terminal's repertoire.
        width: Terminal cells; the label is cut before the seed is. None cuts nothing.
    """
    label, seed = one_line(trial.label, glyphs), f" s{trial.seed}" if seeds else ""
    return (label if width is None else cut(label, width - len(seed), glyphs)) + seed


def counts(snapshot: Snapshot) -> dict[str, int]:
    """Return the trials per state, those that are planned but not listed counted as waiting."""
    found = dict.fromkeys(STATES, 0)
    for trial in snapshot.trials:
        found[trial.state if trial.state in found else WAITING] += 1
    found[WAITING] += snapshot.total - len(snapshot.trials)
    return found

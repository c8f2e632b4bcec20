"""The parts of the dashboard, each a list of lines for a given width: header, running trials, front, what went wrong.

Columns have fixed widths and sections fixed heights, so nothing moves but the numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from heapq import nlargest

from rich.text import Text

from sweeps.watch.columns import Column, heading, label_width, row, widths
from sweeps.watch.eta import elapsed, seconds_left
from sweeps.watch.plot import bar, front_plot, sparkline, state_bar, usable
from sweeps.watch.snapshot import FAILED, GONE, IDLE, RUNNING, WAITING, FrontPoint, Snapshot, TrialView
from sweeps.watch.values import finite, fraction
from sweeps.watch.wording import (
    ALARM,
    ENDINGS,
    QUIET,
    STYLES,
    Cell,
    Glyphs,
    counts,
    duration,
    ends,
    fit,
    flops,
    line,
    name,
    one_line,
    percent,
    roughly,
    score,
    several_seeds,
    steps,
)

TABLE_FROM = 72
"""Terminal cells from which the front is drawn and listed side by side; below, it is only listed."""
SPARK = 16
"""Characters of the hypervolume's history."""
_HEAD = 10
"""Width of the names in front of one-line sections."""


def header(snapshot: Snapshot, width: int, glyphs: Glyphs, *, final: bool = False) -> list[Text]:
    """Return what the sweep is, how long it took and will take, its overall bar and the trials per state."""
    counted = counts(snapshot)
    total = sum(counted.values())
    ended = total - counted[RUNNING] - counted[WAITING]
    left = seconds_left(snapshot)
    title = [(one_line(snapshot.study, glyphs), "bold"), ("  " + one_line(snapshot.title, glyphs), QUIET)]
    clock: list[Cell] = [("stopping  ", "yellow")] if snapshot.stopping else []
    since = elapsed(snapshot)
    clock += [] if since is None else [(f"{duration(since)} elapsed", "")]
    rest = "" if final or snapshot.stopping or left == 0.0 else "time left unknown"
    rest = f"about {roughly(left)} left" if rest and left is not None else rest
    # as wide as it can become, so that the bar keeps its length
    done = f"  {ended:>{len(str(total))}}/{total}" + ("" if final else f"  {rest:<21}")
    cells: list[Cell] = []
    for one in ENDINGS:
        dot = glyphs.dots[one == WAITING]
        style = STYLES[one] if counted[one] else QUIET
        blank = "   " if cells else ""
        cells += [(f"{blank}{dot} ", style), (f"{counted[one]} {one}", "" if counted[one] else QUIET)]
    return [
        ends(title, clock, width, glyphs),
        line([*state_bar(counted, max(1, width - len(done)), glyphs), (done, "")], width, glyphs),
        line(cells, width, glyphs),
    ]


def _running_columns(model: int, worker: int) -> list[Column]:
    return [
        Column("running", 7, 7, 0, right=True),
        Column("model", 12, model, 1),
        Column("stage", 11, 11, 5),
        Column("progress", 8, 40, 6),
        Column("FLOPs", 5, 5, 2, right=True),
        Column("step", 10, 10, 4, right=True),
        Column("BrierLM", 12, 12, 3, right=True),
        Column("worker", worker, worker, 7),
    ]


def running(snapshot: Snapshot, width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    """Return the running trials, one line each, `rows` lines after the heading."""
    seeds = several_seeds(snapshot)
    model = label_width((trial.label for trial in snapshot.trials), 12, 26 if width < 140 else 40) + 3 * seeds
    columns = _running_columns(model, label_width((worker.name for worker in snapshot.workers), 7, 16))
    gap = 2 if width >= 100 else 1
    wide = widths(columns, width, gap)
    at_work = [trial for trial in snapshot.trials if trial.state == RUNNING]
    lines = [line(heading(columns, wide, glyphs, gap), width, glyphs)]
    shown = at_work if len(at_work) <= rows else at_work[: max(rows - 1, 0)]
    silent = {worker.name for worker in snapshot.workers if worker.silent or not worker.alive}
    for trial in shown:
        texts = _running_texts(trial, wide, seeds, trial.worker in silent, glyphs)
        lines.append(line(row(columns, wide, texts, glyphs, gap), width, glyphs))
    if len(shown) < len(at_work):
        lines.append(line([(f"    and {len(at_work) - len(shown)} more", QUIET)], width, glyphs))
    elif not at_work:
        lines.append(line([("no trial is running", QUIET)], width, glyphs))
    return _padded(lines, rows + 1)


def _running_texts(
    trial: TrialView, wide: dict[str, int], seeds: bool, silent: bool, glyphs: Glyphs
) -> dict[str, Cell | list[Cell]]:
    """Return the cells of `_running_columns`."""
    share = fraction(trial.train_flops, trial.budget_flops)
    again = f" {'x' if glyphs.ascii else '×'}{trial.attempts}" if trial.attempts > 1 else ""
    of_steps = f"{steps(trial.step)}/{steps(trial.max_steps)}" if trial.max_steps else steps(trial.step)
    return {
        "running": (f"{trial.number:>4}{again}".ljust(7), "yellow" if again else ""),
        "model": (name(trial, seeds, glyphs, wide.get("model")), ""),
        "stage": (one_line(trial.stage, glyphs) or "starting", QUIET),
        "progress": bar(share, wide.get("progress", 0), STYLES[RUNNING], glyphs),
        "FLOPs": (percent(share), ""),
        "step": (of_steps, ""),
        "BrierLM": (score(trial.brier_lm, trial.brier_lm_se, glyphs), ""),
        "worker": (one_line(trial.worker, glyphs), ALARM if silent else QUIET),
    }


def _padded(lines: list[Text], height: int) -> list[Text]:
    """Return `height` lines: the first of them, or blank ones added."""
    return (lines + [Text("", end="")] * (height - len(lines)))[:height]


def front(snapshot: Snapshot, history: Sequence[float], width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """Return the front, drawn and listed, with its hypervolume; `height` lines, the first its heading.

    Args:
        snapshot: The sweep.
        history: Hypervolumes so far at equal intervals, oldest first; empty draws no sparkline.
        width: Terminal cells.
        height: Lines, at least 5.
        glyphs: The terminal's repertoire.
    """
    trials = len({point.trial for point in snapshot.front})
    said = f"{_many(len(snapshot.front), 'evaluation')} of {_many(trials, 'trial')}" if trials else "nothing yet"
    volume = finite(snapshot.hypervolume)
    right: list[Cell] = [("hypervolume ", QUIET), ("-" if volume is None else f"{volume:.4g}", "")]
    if history:
        right.append((" " + sparkline(history, SPARK, glyphs), QUIET))
    head = ends([(fit("front", _HEAD, glyphs), QUIET), (said, "")], right, width, glyphs)
    drawn = width - 2 - min(max(38, width * 45 // 100), 64)
    if width < TABLE_FROM:
        return [head, *_front_table(snapshot.front, width, height - 1, glyphs)]
    known = usable((point.train_flops, point.brier_lm) for point in snapshot.front)
    others = usable((trial.train_flops, trial.brier_lm) for trial in snapshot.trials)
    picture = front_plot(known, others, drawn, height - 1, glyphs, STYLES[RUNNING])
    table = _front_table(snapshot.front, width - drawn - 2, height - 1, glyphs)
    # pieces of a new line, so that the style of the picture does not reach the table
    return [head, *(Text.assemble(left, "  ", right) for left, right in zip(picture, table, strict=True))]


def _many(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _front_table(points: Sequence[FrontPoint], width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """Return the best evaluation on the front of every trial there, best score first, `height` lines."""
    best: dict[int, FrontPoint] = {}
    for point in reversed(points):  # the last of a trial costs most and scores best
        best.setdefault(point.trial, point)
    columns = [
        Column("FLOPs", 7, 7, 0, right=True),
        Column("BrierLM", 12, 12, 1, right=True),
        Column("trial", 5, 5, 2, right=True),
        Column("model", 8, 40, 3),
    ]
    wide = widths(columns, width)
    lines = [line(heading(columns, wide, glyphs), width, glyphs)]
    rows = height - 1
    shown = list(best.values())[: rows if len(best) <= rows else max(rows - 1, 0)]
    for point in shown:
        texts: dict[str, Cell | list[Cell]] = {
            "FLOPs": (flops(point.train_flops), ""),
            "BrierLM": (score(point.brier_lm, point.brier_lm_se, glyphs), ""),
            "trial": (str(point.trial), ""),
            "model": (one_line(point.label, glyphs), ""),
        }
        lines.append(line(row(columns, wide, texts, glyphs), width, glyphs))
    if len(shown) < len(best):
        lines.append(line([(f"    and {len(best) - len(shown)} cheaper", QUIET)], width, glyphs))
    return _padded(lines, height)


def cache(snapshot: Snapshot, width: int, glyphs: Glyphs) -> Text:
    """Return what the stage cache did, on one line."""
    counted = snapshot.cache
    many = "autoencoder" if counted.trained == 1 else "autoencoders"
    text = f"{counted.trained} {many} trained, {counted.reused} reused, {flops(counted.saved_flops)} FLOPs saved"
    return line([(fit("cache", _HEAD, glyphs), QUIET), (text, "")], width, glyphs)


def workers(snapshot: Snapshot, width: int, glyphs: Glyphs) -> Text:
    """Return what the workers do, on one line: those that died or are silent by name, and what MLflow lacks."""
    alive = [worker for worker in snapshot.workers if worker.alive]
    silent, gone = [one for one in alive if one.silent], [one for one in snapshot.workers if one.doing == GONE]
    heard = [one for one in alive if not one.silent]
    parts = [f"{sum(one.trial is not None for one in heard)} at work"]
    idle = Counter(one_line(one.doing, glyphs) or IDLE for one in heard if one.trial is None)
    parts += [f"{number} {doing}" for doing, number in sorted(idle.items())]
    cells: list[Cell] = [(fit("workers", _HEAD, glyphs), QUIET), (", ".join(parts), "")]
    for many, what in ((silent, "silent"), (gone, "gone")):
        if many:
            first = many[0]
            known = f" for {duration(first.silent_seconds)}" if what == "silent" else ""
            others = f" and {len(many) - 1} more" if len(many) > 1 else ""
            cells += [(", ", ""), (f"{len(many)} {what}: {one_line(first.name, glyphs)}{known}{others}", ALARM)]
    if snapshot.unsent:
        cells += [(", ", ""), (f"{snapshot.unsent} not in MLflow yet", ALARM)]
    return line(cells, width, glyphs)


def failures(snapshot: Snapshot, width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    """Return the last failures with their reasons, newest first, in at most `rows` lines; none where none failed."""
    failed = [trial for trial in snapshot.trials if trial.state == FAILED]
    kept = rows if len(failed) <= rows else max(rows - 1, 0)
    last = nlargest(kept, failed, key=lambda trial: (finite(trial.finished) or 0.0, trial.number))
    seeds, lines = several_seeds(snapshot), []
    wide = label_width((trial.label for trial in failed), 8, max(8, width // 4)) + 3 * seeds
    for index, trial in enumerate(last):
        cells = [
            (fit("" if index else "failures", _HEAD, glyphs), QUIET),
            (f"{trial.number:>4}  ", STYLES[FAILED]),
            (fit(name(trial, seeds, glyphs, wide), wide, glyphs) + "  ", ""),
            (one_line(trial.reason, glyphs) or "reason unknown", ""),
        ]
        lines.append(line(cells, width, glyphs))
    if rows > 0 and len(last) < len(failed):
        lines.append(line([(" " * _HEAD + f"and {len(failed) - len(last)} more", QUIET)], width, glyphs))
    return lines

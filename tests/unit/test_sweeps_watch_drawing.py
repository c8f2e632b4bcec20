"""The dashboard and the status on terminals of every size: what must be there is there, and nothing sticks out."""

from __future__ import annotations

import io
import math
import random
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from sweeps.watch.dashboard import KEPT, Dashboard, Frame, layout, remember
from sweeps.watch.display import Lines, make_display
from sweeps.watch.plot import bar, front_plot, plane, sparkline, state_bar
from sweeps.watch.snapshot import (
    COMPLETE,
    FAILED,
    GONE,
    IDLE,
    PRUNED,
    RUNNING,
    STATES,
    WAITING,
    CacheCounts,
    FrontPoint,
    Snapshot,
    TrialView,
    WorkerView,
)
from sweeps.watch.status import Status
from sweeps.watch.wording import ASCII, UNICODE, cut, duration, fit, roughly, score, stamp

NOW = 1_767_600_000.0


def study(trials: int, running: int = 0, seed: int = 0) -> Snapshot:
    """Return a sweep of which most has ended, with a front through its evaluations."""
    draw, made = random.Random(seed), []
    for number in range(trials):
        state = RUNNING if number >= trials - running else draw.choice([COMPLETE] * 8 + [PRUNED, FAILED])
        share = draw.uniform(0.1, 0.9) if state != COMPLETE else 1.0
        budget = 10 ** draw.uniform(13, 14)
        made.append(
            TrialView(
                number=number,
                label=f"K={2 ** (number % 4)} l={draw.choice((64, 128, 256))}",
                seed=0,
                state=state,
                stage="calm",
                step=int(3000 * share),
                max_steps=3000,
                train_flops=budget * share,
                budget_flops=budget,
                brier_lm=draw.uniform(0, 9),
                brier_lm_se=0.2,
                worker=f"local-{number % max(running, 1)}",
                started=NOW - 300 * (trials - number),
                finished=None if state == RUNNING else NOW - 300 * (trials - number) + 90,
                attempts=1,
                reason=f"the loss is NaN at step {number}" if state == FAILED else "",
            )
        )
    best, points = -1.0, []
    for one in sorted(made, key=lambda trial: trial.train_flops):
        if one.brier_lm is not None and one.brier_lm > best:
            best = one.brier_lm
            points.append(FrontPoint(one.label, one.number, one.train_flops, best, 0.2))
    at_work = {one.worker: one.number for one in made if one.state == RUNNING}
    workers = [WorkerView(f"local-{i}", f"host:{i}", at_work.get(f"local-{i}"), IDLE, 1.0) for i in range(running)]
    return Snapshot(
        study="k4-sweet-spot-1a2b3c",
        title="K = 4 sweet spot",
        directory="runs/sweeps/k4-sweet-spot-1a2b3c",
        taken=NOW,
        planned=trials + trials // 4,
        trials=tuple(made),
        workers=tuple(workers),
        front=tuple(points),
        hypervolume=3.4125,
        cache=CacheCounts(4, 12, 3.2e13),
    )


def drawn(shown: Any, width: int = 80, height: int = 24, encoding: str = "utf-8") -> list[str]:
    """Return the lines that a terminal would get, without colours."""
    written = io.BytesIO()
    file = io.TextIOWrapper(written, encoding=encoding, newline="\n")
    console = Console(file=file, width=width, height=height, force_terminal=True, color_system=None)
    console.print(shown)
    file.flush()
    return written.getvalue().decode(encoding).split("\n")[:-1]


def holds(lines: list[str], width: int) -> None:
    assert max((cell_len(line) for line in lines), default=0) <= width


HISTORY = (0.0, 1.0, 2.0, 3.4)


@pytest.mark.parametrize("trials", [0, 1, 1000])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 8), (120, 36), (250, 80)])
def test_a_frame_fits_its_terminal(trials: int, width: int, height: int) -> None:
    for shown in (Frame(study(trials, min(trials, 40)), HISTORY), Frame(study(trials), HISTORY, final=True)):
        lines = drawn(shown, width, height)
        holds(lines, width)
        assert shown.final or len(lines) < height
        assert lines[0].startswith("k4-sweet-spot-1a2b3c")


def test_what_a_frame_of_80_columns_says() -> None:
    taken = study(60, 4)
    trials = (*taken.trials[:-1], replace(taken.trials[-1], attempts=2))
    silent = replace(taken.workers[0], silent_seconds=95.0)
    dead = WorkerView("local-9", "host:9", None, GONE, 0.0, "signal 9")
    taken = replace(taken, trials=trials, workers=(silent, *taken.workers[1:], dead))
    lines = drawn(Frame(taken, HISTORY))
    text = "\n".join(lines)
    failed = [trial for trial in taken.trials if trial.state == FAILED]
    assert "K = 4 sweet spot" in lines[0] and lines[0].endswith("5 h elapsed")
    assert "56/75  about" in lines[1] and lines[1].rstrip().endswith("left")
    assert f"● {taken.count(COMPLETE)} complete   ● {taken.count(PRUNED)} pruned   ● {len(failed)} failed" in lines[2]
    assert "● 4 running   ○ 15 waiting" in lines[2]
    assert lines[4].split() == ["running", "model", "stage", "progress", "FLOPs", "step", "BrierLM", "worker"]
    last = trials[-1]
    share = int(100 * last.train_flops / last.budget_flops)
    assert lines[8].split()[:4] == ["59", "×2", *last.label.split()]
    assert f"{share} %  {last.step}/3000" in lines[8] and lines[8].endswith(last.worker)
    assert f"{last.brier_lm:.2f} ± 0.20" in lines[8]
    assert f"front     {len(taken.front)} evaluations of {len(taken.front)} trials" in text
    assert "hypervolume 3.413" in text and "▁▃▅█" in text
    best = taken.front[-1]
    assert f"{best.brier_lm:.2f} ± 0.20 {best.trial:>5} {best.label}" in text
    assert "cache     4 autoencoders trained, 12 reused, 3.20e13 FLOPs saved" in lines
    assert "workers   3 at work, 1 silent: local-0 for 1 min 35 s, 1 gone: local-9" in lines
    newest = max(failed, key=lambda trial: trial.finished or 0.0)
    assert lines[-2].startswith("failures") and newest.reason in lines[-2]
    assert lines[-1].strip() == f"and {len(failed) - 1} more"


def test_more_than_fits_is_counted() -> None:
    lines = drawn(Frame(study(100, 40)))
    rows = [line for line in lines if "/3000" in line]
    assert f"    and {40 - len(rows)} more" in lines
    tall = drawn(Frame(study(100, 40)), 160, 100)
    assert sum("/3000" in line for line in tall) == 40
    assert not any("more" in line for line in tall if "failures" not in line and line.startswith("    and"))


def test_sections_stand_still_while_trials_come_and_go() -> None:
    whole, places = study(60, 4), []
    at_work, ended = whole.trials[-4:], whole.trials[:-4]
    for gone in range(5):
        taken = replace(whole, trials=(*ended, *at_work[gone:]))
        lines = drawn(Frame(taken, HISTORY))
        places.append([next(i for i, line in enumerate(lines) if line.startswith(name)) for name in ("front", "cache")])
    assert all(place == places[0] for place in places)
    assert drawn(Frame(replace(whole, trials=ended)))[5] == "no trial is running"


def test_a_terminal_without_unicode_gets_ascii() -> None:
    taken = replace(study(60, 4), title="Süßes ✓ – K = 4")
    for shown in (Frame(taken, HISTORY), Frame(taken, HISTORY, final=True), Status(taken)):
        lines = drawn(shown, encoding="ascii")
        holds(lines, 80)
        assert any(" +-0.20" in line for line in lines)
        assert any("S??es ? - K = 4" in line for line in lines)


strange = st.one_of(
    st.none(), st.sampled_from([0, -1, 0.0, -0.0, math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324]), st.floats()
)
texts = st.one_of(
    st.text(max_size=300), st.sampled_from(["", "漢字" * 60, "\x1b[31mred\x07", "[bold]a[/]", "\ud800", "e\u0301"])
)
whole = st.one_of(st.integers(-(2**63), 2**63), st.just(0))
view = st.builds(
    TrialView,
    number=st.integers(0, 2000),
    label=texts,
    seed=whole,
    state=st.sampled_from([*STATES, "lost"]),
    stage=texts,
    step=whole,
    max_steps=whole,
    train_flops=strange,
    budget_flops=strange,
    brier_lm=strange,
    brier_lm_se=strange,
    worker=texts,
    started=strange,
    finished=strange,
    attempts=st.integers(0, 100),
    reason=texts,
    reused_flops=strange,
)
odd = st.builds(
    Snapshot,
    study=texts,
    title=texts,
    directory=texts,
    taken=strange,
    planned=st.integers(0, 10**12),
    trials=st.lists(view, max_size=8).map(tuple),
    workers=st.lists(
        st.builds(WorkerView, texts, texts, st.none() | whole, texts, strange.map(lambda value: value or 0.0), texts),
        max_size=4,
    ).map(tuple),
    front=st.lists(st.builds(FrontPoint, texts, st.integers(0, 9), strange, strange, strange), max_size=5).map(tuple),
    hypervolume=strange,
    cache=st.builds(CacheCounts, whole, whole, strange),
    stopping=st.booleans(),
    since=strange,
)


@settings(max_examples=60, deadline=None)
@given(odd, st.lists(strange, max_size=9).map(tuple), st.integers(1, 200), st.integers(1, 70), st.booleans())
def test_nothing_strange_breaks_a_frame(
    taken: Snapshot, history: tuple[Any, ...], width: int, height: int, plain: bool
) -> None:
    encoding = "ascii" if plain else "utf-8"
    lines = drawn(Frame(taken, history), width, height, encoding)
    holds(lines, width)
    assert len(lines) <= max(1, height - 1)
    for shown in (Frame(taken, history, final=True), Status(taken)):
        holds(drawn(shown, width, height, encoding), width)
    lines_of = Lines(Console(file=io.StringIO(), width=width))
    lines_of.update(replace(taken, trials=(), workers=(), front=()))
    lines_of.update(taken)
    lines_of.close(taken)


def test_a_thousand_trials_are_drawn_at_once() -> None:
    taken, best = study(1000, 16), math.inf
    for _ in range(5):
        start = time.process_time()
        drawn(Frame(taken, HISTORY), 120, 40)
        best = min(best, time.process_time() - start)
    assert best < 0.1, "it takes 6 ms on an idle core; quadratic work would take seconds"


@given(st.integers(1, 200), st.integers(0, 300))
def test_a_layout_gives_no_more_lines_than_there_are(height: int, at_once: int) -> None:
    plan = layout(height, at_once)
    given_lines = plan.header + plan.running + plan.front + plan.cache + plan.workers + plan.failures
    assert given_lines + 3 * plan.blanks <= height
    assert plan.header >= 1 and plan.running != 1 and plan.front not in range(1, 6)
    assert height < 5 or plan.running >= 2, "running trials come right after the header"


# -- pictures ----------------------------------------------------------------------------------------------------


def test_the_front_is_a_staircase_on_round_axes() -> None:
    points = [(1e12, 1.0), (1e13, 2.0), (1e14, 4.0)]
    lines = [text.plain for text in front_plot(points, [(5e13, 1.0)], 28, 7, UNICODE, "")]
    assert lines == [
        "    4 │                    ●",
        "      │                    │",
        "      │          ●─────────┘",
        "      │●─────────┘      ·   ",
        "    0 │                     ",
        "      └─────────────────────",
        "      1.00e12        1.00e14",
    ]
    ascii_lines = [text.plain for text in front_plot(points, [], 28, 7, ASCII, "")]
    assert ascii_lines[2] == "      |          O---------+"


@given(st.lists(st.tuples(st.floats(1e-9, 1e30), st.floats(-100, 100)), min_size=1, max_size=9))
def test_every_point_is_on_the_plane(points: list[tuple[float, float]]) -> None:
    edges = plane(points)
    assert 0 < edges.left < edges.right and edges.bottom < edges.top
    for cost, value in points:
        assert edges.left * (1 - 1e-6) <= cost <= edges.right * (1 + 1e-6)
        assert edges.bottom - 1e-6 <= value <= edges.top + 1e-6


@given(st.sampled_from([1.3, 2.4, 3.3, 6.1]), st.sampled_from([1.7, 4.2, 8.8]), st.integers(-3, 20), st.integers(0, 4))
def test_axes_are_the_same_at_any_scale(low: float, high: float, exponent: int, decades: int) -> None:
    here, there = (
        plane([(low * 10.0**scale, 1.0), (high * 10.0 ** (scale + decades), 3.3)]) for scale in (exponent, exponent + 3)
    )
    assert here.left * 1000 == pytest.approx(there.left) and here.right * 1000 == pytest.approx(there.right)
    assert (here.bottom, here.top) == (there.bottom, there.top) == (0.0, 4.0)


def test_bars_and_sparklines_in_closed_form() -> None:
    assert "".join(text for text, _ in bar(0.5, 8, "", UNICODE)) == "━━━━────"
    assert "".join(text for text, _ in bar(0.3, 5, "", ASCII)) == "#=..."
    assert "".join(text for text, _ in bar(None, 3, "", UNICODE)) == "───"
    counted = {COMPLETE: 4, PRUNED: 2, FAILED: 1, RUNNING: 1, WAITING: 2}
    assert "".join(text for text, _ in state_bar(counted, 10, ASCII)) == "####==x>.."
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8, UNICODE) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, math.nan, 3.0], 4, UNICODE) == "  ▁█"
    assert sparkline([2.0, 2.0], 2, UNICODE) == "▁▁"
    assert sparkline(range(100), 4, UNICODE)[-1] == "█"
    assert sparkline([], 3, UNICODE) == "   "


@given(st.dictionaries(st.sampled_from(STATES), st.integers(0, 10**9)), st.integers(1, 200))
def test_the_overall_bar_has_its_width(counted: dict[str, int], width: int) -> None:
    counted = dict.fromkeys(STATES, 0) | counted
    assert sum(len(text) for text, _ in state_bar(counted, width, UNICODE)) == width


def test_a_long_history_is_thinned_and_keeps_its_ends() -> None:
    history: tuple[float, ...] = ()
    for value in range(2000):
        history = remember(history, float(value))
    assert len(history) <= KEPT
    assert history[-1] == 1999.0
    assert list(history) == sorted(history)


def test_words_and_numbers() -> None:
    assert [duration(value) for value in (0, 45.4, 200, 3600, 7500, 97_200, None, math.nan)] == [
        *("0 s", "45 s", "3 min 20 s", "1 h", "2 h 5 min", "1 d 3 h", "-", "-"),
    ]
    assert [roughly(value) for value in (0, 47, 200, 5399, 8000, 97_200)] == [
        *("10 s", "50 s", "3 min", "1 h 30 min", "2 h 15 min", "1 d 3 h"),
    ]
    assert [score(4.816, 0.213), score(12.0, 1.5), score(12.0, 1.5, ASCII)] == [
        *(" 4.82 ± 0.21", "12.00 ± 1.50", "12.00 +-1.50"),
    ]
    assert [score(None, None), score(math.nan, 0.1), score(3.0, None)] == ["-", "nan", " 3.00       "]
    assert stamp(NOW) == "2026-01-05 08:00:00Z"
    assert [stamp(math.nan), stamp(1e300)] == ["-", "-"]
    assert [cut("autoencoder", 5), cut("漢字漢字", 5), cut("ab", 5), cut("ab", 0)] == ["auto…", "漢字…", "ab", ""]
    assert [fit("ab", 4), fit("ab", 4, right=True)] == ["ab  ", "  ab"]


# -- displays ----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def console(file: io.StringIO, width: int = 80, height: int = 24) -> Console:
    return Console(file=file, width=width, height=height, force_terminal=True, color_system=None)


def test_the_display_is_chosen_by_where_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("TTY_INTERACTIVE", raising=False)
    assert isinstance(make_display(console(Terminal()), plain=False), Dashboard)
    assert isinstance(make_display(console(Terminal()), plain=True), Lines)
    assert isinstance(make_display(console(Terminal(), width=30), plain=False), Lines)
    assert isinstance(make_display(console(io.StringIO()), plain=False), Lines), "colours were forced, into a file"
    assert isinstance(make_display(Console(file=io.StringIO()), plain=False), Lines)


def test_the_dashboard_redraws_in_place_and_leaves_its_last_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    file = Terminal()
    dashboard = Dashboard(console(file))
    for _ in range(3):
        dashboard.update(study(60, 4))
    height = file.getvalue().count("\n")
    dashboard.close(study(64))
    written = file.getvalue()
    assert written.count("\x1b[2K") > height // 3, "lines are cleared before they are drawn again"
    assert written.endswith("\n") and written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1
    last = written[written.rindex("k4-sweet-spot") :]
    assert "64/80" in last and "no trial is running" not in last


def test_a_dashboard_that_never_drew_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    silent, last = Terminal(), Terminal()
    Dashboard(console(silent)).close()
    Dashboard(console(last)).close(study(4))
    assert silent.getvalue() == ""
    assert "4/5" in last.getvalue()


def test_lines_are_written_once_and_whole() -> None:
    file = io.StringIO()
    lines = Lines(Console(file=file, width=40))
    taken = study(60, 4)
    later = replace(taken, trials=(*taken.trials[:-1], replace(taken.trials[-1], state=COMPLETE, finished=NOW)))
    for shown in (taken, taken, later, later):
        lines.update(shown)
    lines.close(later)
    written = file.getvalue().splitlines()
    assert len(written) == len(set(written)), "no line twice, none wrapped"
    assert all(line.startswith("2026-01-05 08:00:00Z  ") for line in written)
    assert sum("trial 59" in line and "complete after" in line for line in written) == 1
    assert "18 of 75 trials have not ended" in written[-1]


def test_status_lists_trials_below_its_summary() -> None:
    taken = study(60, 4)
    lines = drawn(Status(taken, last=5), 120)
    holds(lines, 120)
    assert "56/75" in lines[1]
    assert "place     runs/sweeps/k4-sweet-spot-1a2b3c" in lines
    assert [line.split()[0] for line in lines[-6:-1]] == ["55", "56", "57", "58", "59"]
    assert lines[-1] == "and 55 more"
    failed = drawn(Status(taken, states=(FAILED,)), 80)
    holds(failed, 80)
    assert sum("failed" in line and "the loss is N" in line for line in failed) == taken.count(FAILED)
    assert drawn(Status(replace(taken, trials=()), states=(RUNNING,)), 80)[-1] == "no trial is running"
    assert not any("55" in line.split()[:1] for line in drawn(Status(taken, last=0), 120))

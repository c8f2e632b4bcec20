"""The live dashboard: one frame that fits the terminal, most important things first, redrawn in place.

A frame's layout depends on the terminal's size and on how many trials can run at once, not on what happens, so that
nothing moves while one watches. It is drawn when a snapshot arrives and by no thread of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from sweeps.watch.panels import cache, failures, front, header, running, workers
from sweeps.watch.snapshot import RUNNING, Snapshot
from sweeps.watch.wording import ASCII, UNICODE, Glyphs

KEPT = 512
"""Hypervolumes that are remembered; of a longer history every second one is."""
_HEADER, _SHORT_FAILURES, _FAILURES = 3, 2, 6
_LEAST_FRONT, _FRONT, _TALL_FRONT = 6, 9, 16
_SHORT_RUNNING = 6
_FINAL_FAILURES = 10


@dataclass(frozen=True)
class Layout:
    """Lines of every section; 0 leaves it out.

    Attributes:
        header: Title, bar and counts.
        running: Running trials, the heading included.
        front: The front, the heading included.
        cache: What the stage cache did.
        workers: What the workers do.
        failures: At most so many lines of failures; they come last, so that they are not kept free.
        blanks: Whether sections are set apart by blank lines.
    """

    header: int
    running: int
    front: int
    cache: int
    workers: int
    failures: int
    blanks: bool


def layout(height: int, at_once: int) -> Layout:
    """Return how a frame of at most `height` lines is shared out.

    Args:
        height: Lines.
        at_once: Trials that run or could run at the same time.
    """
    wanted = max(at_once, 1) + 1
    blanks = height >= 20
    left = height - (3 if blanks else 0)
    given = dict.fromkeys(("header", "running", "front", "cache", "workers", "failures"), 0)
    # what comes first gets its lines first; a section appears with the least it can show or not at all
    for section, least, most in (
        ("header", 1, _HEADER),
        ("running", 2, 2),
        ("failures", 1, 1),
        ("workers", 1, 1),
        ("front", _LEAST_FRONT, _LEAST_FRONT),
        ("cache", 1, 1),
        ("failures", 1, _SHORT_FAILURES),
        ("running", 2, min(wanted, _SHORT_RUNNING + 1)),
        ("front", _LEAST_FRONT, _FRONT),
        ("running", 2, min(wanted, max(_SHORT_RUNNING + 1, height // 2))),
        ("front", _LEAST_FRONT, _TALL_FRONT),
        ("failures", 1, _FAILURES),
        ("running", 2, wanted),
    ):
        gain = min(most - given[section], left)
        if gain > 0 and given[section] + gain >= least:
            given[section] += gain
            left -= gain
    return Layout(**given, blanks=blanks)


@dataclass(frozen=True)
class Frame:
    """A snapshot as a rich renderable that fits the terminal it is printed to.

    Attributes:
        snapshot: The sweep.
        history: Hypervolumes at equal intervals, oldest first; empty draws no sparkline.
        at_once: Trials to keep lines for, so that the frame keeps its height while some of them change.
        final: Whether it is the last frame, which stays: without what only matters while the sweep runs.
    """

    snapshot: Snapshot
    history: tuple[float, ...] = ()
    at_once: int = 0
    final: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the frame's lines, none wider than the terminal and, unless final, not more than fill it."""
        glyphs = ASCII if options.ascii_only else UNICODE
        # a line stays free for the cursor, without which some terminals scroll
        height = max(1, options.size.height - 1)
        lines = self._final(options.max_width, glyphs) if self.final else self._live(options.max_width, height, glyphs)
        for text in lines:
            text.rstrip()
            text.end = "\n"
            yield text

    def _live(self, width: int, height: int, glyphs: Glyphs) -> Iterator[Text]:
        shown, blank = self.snapshot, Text("")
        plan = layout(height, max(self.at_once, at_once(shown)))
        yield from header(shown, width, glyphs)[: plan.header]
        if plan.running:
            yield from [blank] * plan.blanks
            yield from running(shown, width, plan.running - 1, glyphs)
        if plan.front:
            yield from [blank] * plan.blanks
            yield from front(shown, self.history, width, plan.front, glyphs)
        yield from [blank] * (plan.blanks and plan.workers > 0)
        if plan.cache:
            yield cache(shown, width, glyphs)
        if plan.workers:
            yield workers(shown, width, glyphs)
        yield from failures(shown, width, plan.failures, glyphs)

    def _final(self, width: int, glyphs: Glyphs) -> Iterator[Text]:
        shown, blank = self.snapshot, Text("")
        yield from header(shown, width, glyphs, final=True)
        yield blank
        yield from front(shown, self.history, width, _FRONT, glyphs)
        yield blank
        yield cache(shown, width, glyphs)
        yield from failures(shown, width, _FINAL_FAILURES, glyphs)


def at_once(snapshot: Snapshot) -> int:
    """Return how many trials run or could run at the same time."""
    return max(snapshot.count(RUNNING), sum(worker.alive for worker in snapshot.workers))


def remember(history: Sequence[float], value: float) -> tuple[float, ...]:
    """Return a history with one more value, thinned to every second one where it grew beyond `KEPT`."""
    longer = (*history, value)
    return longer if len(longer) <= KEPT else longer[len(longer) % 2 :: 2]


class Dashboard:
    """Shows a sweep on a terminal while it runs (a `sweeps.watch.display.Display`).

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._history: tuple[float, ...] = ()
        self._at_once = 0
        self._live = Live(console=console, auto_refresh=False, screen=False, vertical_overflow="crop")

    def update(self, snapshot: Snapshot) -> None:
        """Redraw the frame in place; the first call begins it."""
        self._history = remember(self._history, snapshot.hypervolume)
        self._at_once = max(self._at_once, at_once(snapshot))
        if not self._live.is_started:
            self._live.start()
        self._live.update(Frame(snapshot, self._history, self._at_once), refresh=True)

    def close(self, final: Snapshot | None = None) -> None:
        """Leave a last frame of the whole sweep on the terminal and give the terminal back.

        Args:
            final: The sweep as it was left; None keeps the frame that is there.
        """
        if final is None:
            self._live.stop()
            return
        # the live frame makes way for one that may be taller than the terminal and stays in its history
        self._live.transient = True
        self._live.stop()
        self._console.print(Frame(final, remember(self._history, final.hypervolume), final=True))

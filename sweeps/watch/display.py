"""How a sweep shows itself: drawn on a terminal, told line by line everywhere else."""

from __future__ import annotations

from typing import Protocol

from rich.console import Console

from sweeps.watch.dashboard import Dashboard
from sweeps.watch.lines import PROGRESS_EVERY, closing, events
from sweeps.watch.snapshot import Snapshot
from sweeps.watch.wording import ASCII, UNICODE, one_line

_LEAST_WIDTH, _LEAST_HEIGHT = 40, 8


class Display(Protocol):
    """What the coordinator shows the sweep with: `update` after every poll, `close` once at the end."""

    def update(self, snapshot: Snapshot) -> None:
        """Show the sweep as it is now."""

    def close(self, final: Snapshot | None = None) -> None:
        """Show how the sweep was left and give the terminal back; None where that is not known, after an error."""


class Lines:
    """Tells a sweep as plain lines.

    Args:
        console: Where the lines go.
        every: Seconds between two progress lines.
    """

    def __init__(self, console: Console, every: float = PROGRESS_EVERY) -> None:
        self._console, self._every = console, every
        self._last: Snapshot | None = None

    def update(self, snapshot: Snapshot) -> None:
        """Print what happened since the last snapshot."""
        self._print(events(self._last, snapshot, self._every))
        self._last = snapshot

    def close(self, final: Snapshot | None = None) -> None:
        """Print what happened since the last snapshot, and how the sweep was left."""
        if final is not None:
            self.update(final)
            self._print(closing(final))

    def _print(self, lines: list[str]) -> None:
        glyphs = ASCII if self._console.options.ascii_only else UNICODE
        for line in lines:
            # the time is set apart by two blanks, which `one_line` would take for one
            time, _, told = line.partition("  ")
            self._console.out(f"{time}  {one_line(told, glyphs)}", highlight=False)


def make_display(console: Console, plain: bool, every: float = PROGRESS_EVERY) -> Display:
    """Return the dashboard on a terminal that can draw it, plain lines elsewhere.

    Args:
        console: Where the sweep is shown.
        plain: Whether lines were asked for.
        every: Seconds between two progress lines.
    """
    # a console that was told to use colours in a log file takes itself for a terminal: the file knows better
    terminal = console.is_interactive and console.file.isatty()
    if plain or not terminal or console.width < _LEAST_WIDTH or console.height < _LEAST_HEIGHT:
        return Lines(console, every)
    return Dashboard(console)

"""A table as a value: made once, rendered for terminal and page."""

from __future__ import annotations

import html
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        title: Heading.
        head: Names of the columns.
        rows: Cells, one tuple per row.
        notes: Sentences below the table.
        strong: Numbers of the rows that stand out.
        wraps: Numbers of the columns of prose, which may be broken into lines; all others are kept whole.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    strong: frozenset[int] = frozenset()
    wraps: frozenset[int] = frozenset({0})

    def to_terminal(self) -> Table:
        """Return the table for a terminal."""
        table = Table(
            title=Text(self.title, style="bold"),
            title_justify="left",
            caption=Text("\n".join(self.notes)) if self.notes else None,
            caption_justify="left",
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for number, name in enumerate(self.head):
            prose = number in self.wraps
            table.add_column(
                Text(name), justify="left" if prose else "right", no_wrap=not prose, overflow="fold", min_width=4
            )
        for number, row in enumerate(self.rows):
            table.add_row(*map(Text, row), style="bold" if number in self.strong else None)
        return table

    def to_html(self, heading: str = "h3") -> str:
        """Return the table for a page.

        Args:
            heading: Element of the title; "" leaves it out.
        """
        head = "".join(f"<th{self._side(number)}>{html.escape(name)}</th>" for number, name in enumerate(self.head))
        body = ""
        for number, row in enumerate(self.rows):
            cells = "".join(f"<td{self._side(place)}>{html.escape(cell)}</td>" for place, cell in enumerate(row))
            body += f'<tr class="strong">{cells}</tr>' if number in self.strong else f"<tr>{cells}</tr>"
        notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in self.notes)
        title = f"<{heading}>{html.escape(self.title)}</{heading}>" if heading else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f'{title}<div class="wide">{table}</div>{notes}'

    def _side(self, column: int) -> str:
        return ' class="prose"' if column in self.wraps else ""

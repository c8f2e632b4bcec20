"""Columns of fixed widths: which of them fit a terminal, how wide they are, and a line of them.

Rich's tables choose widths by content, so that they jump while numbers change, and take ten times as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sweeps.watch.wording import QUIET, Cell, Glyphs, fit


@dataclass(frozen=True)
class Column:
    """One column of a section.

    Attributes:
        title: Its heading.
        least: Terminal cells it needs.
        most: Terminal cells it can use.
        rank: Columns of a higher rank are left out first where all do not fit, and get spare room last.
        right: Whether its content is set to the right.
    """

    title: str
    least: int
    most: int
    rank: int
    right: bool = False


def widths(columns: Sequence[Column], width: int, gap: int = 1) -> dict[str, int]:
    """Return the columns that fit and their widths, in their order.

    Args:
        columns: All columns.
        width: Terminal cells.
        gap: Cells between columns.
    """
    kept = sorted(columns, key=lambda column: column.rank)
    while len(kept) > 1 and sum(column.least + gap for column in kept) - gap > width:
        kept.pop()
    spare = max(0, width - sum(column.least + gap for column in kept) + gap)
    found = {}
    for column in kept:
        extra = min(spare, column.most - column.least)
        found[column.title], spare = column.least + extra, spare - extra
    return {column.title: min(found[column.title], width) for column in columns if column.title in found}


def row(
    columns: Sequence[Column], wide: dict[str, int], texts: dict[str, Cell | list[Cell]], glyphs: Glyphs, gap: int = 1
) -> list[Cell]:
    """Return a line's cells, one per column that fits, set apart by blanks.

    Args:
        columns: All columns.
        wide: Those that fit and their widths.
        texts: Content by column; a list is taken as it is, everything else is made to fit.
        glyphs: The terminal's repertoire.
        gap: Cells between columns.
    """
    cells: list[Cell] = []
    for column in columns:
        if column.title in wide:
            content = texts[column.title]
            cells += [(" " * gap, "")] if cells else []
            if isinstance(content, list):
                cells += content
            else:
                text, style = content
                cells.append((fit(text, wide[column.title], glyphs, right=column.right), style))
    return cells


def heading(columns: Sequence[Column], wide: dict[str, int], glyphs: Glyphs, gap: int = 1) -> list[Cell]:
    """Return the headings of the columns that fit."""
    return row(columns, wide, {column.title: (column.title, QUIET) for column in columns}, glyphs, gap)


def label_width(labels: Iterable[object], least: int, most: int) -> int:
    """Return how wide a column of labels should be, so that it neither cuts nor wastes much."""
    return min(max(least, max((len(str(label)) for label in labels), default=0)), most)

"""Tail: reads what a file of metrics has grown by, also when it is rewritten in between."""

from __future__ import annotations

import os
from pathlib import Path

from calm_lightning.tracking.entries import JournalEntry, decode_lines


class Tail:
    """Follows one file of entries.

    Args:
        path: The file; it may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._offset = 0, 0

    def rewind(self) -> None:
        """Read from the start again."""
        self._inode, self._offset = 0, 0

    def read(self) -> tuple[list[JournalEntry], tuple[int, int]]:
        """Return the new entries and the place after them; a file that was rewritten is read from its start.

        Raises:
            TrackingError: A line is not an entry.
        """
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                offset = self._offset
                if self._inode != status.st_ino or offset > status.st_size:
                    offset = 0
                file.seek(offset)
                content = file.read()
        except FileNotFoundError:
            return [], (0, 0)
        complete = content[: content.rfind(b"\n") + 1]
        return decode_lines(complete, self._path), (status.st_ino, offset + len(complete))

    def advance(self, place: tuple[int, int]) -> None:
        """Go on from a place that `read` returned: only once what was read has arrived."""
        self._inode, self._offset = place

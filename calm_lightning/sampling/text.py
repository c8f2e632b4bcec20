"""Token ids that arrive a few at a time, as text that never has to be taken back.

A character may be spread over several tokens: bytes that do not end a character yet are held back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

INCOMPLETE = "\ufffd"
"""What a tokenizer shows for bytes that are no character, or not yet."""


class TextStream:
    """Turns a growing list of token ids into pieces of text whose concatenation is the decoded whole.

    Args:
        decode: Maps token ids to text, incomplete characters to U+FFFD.
        before: Ids that stand before the streamed ones and may end within a character.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(before)
        self._shown = len(self._complete())

    def _complete(self) -> str:
        return self._decode(self._ids).rstrip(INCOMPLETE)

    def push(self, ids: Sequence[int]) -> str:
        """Take new ids and return the text that is certain now and was not before."""
        self._ids.extend(ids)
        text = self._complete()
        piece, self._shown = text[self._shown :], max(self._shown, len(text))
        return piece

    def finish(self) -> str:
        """Return what was held back: bytes that never became a character."""
        text = self._decode(self._ids)
        piece, self._shown = text[self._shown :], max(self._shown, len(text))
        return piece

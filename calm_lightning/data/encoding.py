"""Documents to one row of token ids, the same wherever it is done: ahead of time, or on the fly from text shards.

A text longer than `SEGMENT_CHARS` is encoded in segments, so a document of any length takes bounded memory. Segments
end between a letter and the space before another letter, where the pre-tokenizers of GPT-2's and Llama 3's kind split
anyway, so the ids are those of encoding in one go. The price: a text with no such place in its last
`SEARCHED_CHARS` characters is cut there, and a tokenizer without a pre-tokenizer may see a cut; both keep the text.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from calm_lightning.data.shards.tokens import Numbers, TokenArray
from calm_lightning.data.tokenizers import Tokenizer

SEGMENT_CHARS = 1 << 20
SEARCHED_CHARS = 1 << 16
_BATCH_CHARS = 1 << 20


class _Segment(NamedTuple):
    document: int
    first: bool
    text: str


def segments(text: str, length: int = SEGMENT_CHARS, searched: int = SEARCHED_CHARS) -> Iterator[str]:
    """Yield a text in pieces that are encoded by themselves; together they are the text.

    Args:
        text: The text.
        length: Longest segment, in characters.
        searched: How far back from there a good place to cut is looked for, in characters.
    """
    begin = 0
    while len(text) - begin > length:
        end = _cut(text, max(begin, begin + length - searched) + 1, begin + length)
        yield text[begin:end]
        begin = end
    yield text[begin:] if begin else text


def _cut(text: str, low: int, high: int) -> int:
    """Return the last place in [low, high] with a letter before it, and a space and a letter behind; else `high`."""
    at = high
    while (at := text.rfind(" ", low, at + 1)) >= 0:
        if text[at - 1].isalpha() and text[at + 1 : at + 2].isalpha():
            return at
        at -= 1
    return high


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str], dtype: str) -> tuple[TokenArray, Numbers]:
    """Encode documents end to end, each with the separator in front.

    Args:
        tokenizer: The tokenizer.
        texts: The documents' texts, (documents,).
        dtype: Type of the ids, wide enough for them.

    Returns:
        All tokens, (tokens,), and the tokens of every document, separator included, (documents,).
    """
    lengths = np.ones(len(texts), dtype=np.int64)
    parts: list[TokenArray] = [np.empty(0, dtype=dtype)]
    for batch in _batches(texts):
        ids = array("I")
        for segment, encoded in zip(batch, tokenizer.encode_batch([segment.text for segment in batch]), strict=True):
            if segment.first:
                ids.append(tokenizer.separator_id)
            ids.fromlist(encoded)
            lengths[segment.document] += len(encoded)
        parts.append(np.frombuffer(ids, dtype=np.uint32).astype(dtype))
    return np.concatenate(parts), lengths


def _batches(texts: Sequence[str]) -> Iterator[list[_Segment]]:
    """Yield the segments of texts in order, about a million characters at a time."""
    batch: list[_Segment] = []
    size = 0
    for document, text in enumerate(texts):
        for number, part in enumerate(segments(text)):
            batch.append(_Segment(document, number == 0, part))
            size += len(part)
            if size >= _BATCH_CHARS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch

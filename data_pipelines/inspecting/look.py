"""Single documents of a corpus of either kind, found by their number, for `calm data inspect`.

A token shard gives any document at once; a tar of texts has no index and is read up to the last one wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calm_lightning.data.shards.manifest import TOKENS, Manifest, ShardRecord, SplitRecord
from calm_lightning.data.shards.text import read_text_shard
from calm_lightning.data.shards.tokens import open_token_shard
from calm_lightning.data.tokenizers import Tokenizer
from calm_lightning.errors import DataError


@dataclass(frozen=True)
class Look:
    """A document.

    Attributes:
        shard: File of its shard.
        number: Its place in the shard, from 1.
        domain: Its domain.
        tokens: Its tokens, separator included; 0 where there are none.
        text_bytes: UTF-8 bytes of its text.
        text: Its text, as much as was asked for.
    """

    shard: str
    number: int
    domain: str
    tokens: int
    text_bytes: int
    text: str


def find_shard(manifest: Manifest, name: str) -> tuple[str, ShardRecord]:
    """Return a shard and the name of its split.

    Raises:
        DataError: The corpus has no such shard.
    """
    for split, record in manifest.splits.items():
        for shard in record.shards:
            if shard.file == name:
                return split, shard
    first = next((shard.file for record in manifest.splits.values() for shard in record.shards), "none")
    raise DataError(f"the corpus has no shard {name!r}; its first one is {first}")


def find_document(split: str, record: SplitRecord, number: int) -> tuple[ShardRecord, int]:
    """Return the shard that holds a document, and its place in the shard.

    Args:
        split: Name of the split, for the message.
        record: The split, or a part of it.
        number: The document's place in it, from 1.

    Raises:
        DataError: There is no such document.
    """
    left = number
    for shard in record.shards:
        if 1 <= left <= shard.totals.documents:
            return shard, left
        left -= shard.totals.documents
    raise DataError(f"{split} has no document {number:,}: it has 1 to {record.totals.documents:,}")


def check_there(path: Path) -> None:
    """Check that a shard is where it should be.

    Raises:
        DataError: It is not.
    """
    if not path.is_file():
        raise DataError(f"shard {path} is missing: name the directory of the shards with --shards-at DIR")


def spread(documents: int, wanted: int) -> list[int]:
    """Return the places, from 1, of so many documents spread evenly, or of all of them."""
    return [i * documents // wanted + 1 for i in range(wanted)] if wanted < documents else list(range(1, documents + 1))


def look_at(
    path: Path, manifest: Manifest, numbers: list[int], tokenizer: Tokenizer | None, characters: int | None
) -> list[Look]:
    """Return documents of a shard.

    Args:
        path: The shard.
        manifest: Manifest of its corpus.
        numbers: Their places in the shard, from 1, rising.
        tokenizer: The corpus' tokenizer; a corpus of text needs none.
        characters: How much of each text; None for all of it.

    Raises:
        DataError: The shard cannot be read.
    """
    check_there(path)
    if manifest.kind != TOKENS or tokenizer is None:
        return list(_texts(path, set(numbers), characters))
    try:
        shard = open_token_shard(path, manifest.dtype)
    except (OSError, ValueError) as error:
        raise DataError(f"shard {path} cannot be read ({error}): see `calm data verify`") from None
    begins = np.concatenate([np.zeros(1, dtype=np.int64), shard.ends])
    found = []
    for place in (number - 1 for number in numbers if number <= len(shard.ends)):
        begin, end = int(begins[place]), int(shard.ends[place])
        # A character is at most four tokens, so the beginning of a long text needs only its first ones.
        shown = end if characters is None else min(end, begin + 1 + 4 * characters)
        text = tokenizer.decode(shard.tokens[begin + 1 : shown].tolist())[:characters]
        domain, size = shard.names[int(shard.domains[place])], int(shard.text_bytes[place])
        found.append(Look(path.name, place + 1, domain, end - begin, size, text))
    return found


def _texts(path: Path, numbers: set[int], characters: int | None) -> Iterator[Look]:
    """Yield documents of a shard of texts; it is read no further than the last one."""
    last = max(numbers, default=0)
    if not last:
        return
    for number, document in enumerate(read_text_shard(path, str(path)), start=1):
        if number in numbers:
            size = len(document.text.encode())
            yield Look(path.name, number, document.domain, 0, size, document.text[:characters])
        if number == last:
            return

"""Documents of a corpus of either kind, some at a time, as the columns that statistics are made of.

A batch is bounded by documents and by text, so memory does not depend on the size of a shard; one huge document is a
batch by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from calm_lightning.data.shards.manifest import TOKENS, Manifest, ShardRecord
from calm_lightning.data.shards.text import read_text_shard
from calm_lightning.data.shards.tokens import Numbers, open_token_shard
from calm_lightning.data.tokenizers import Tokenizer
from calm_lightning.errors import DataError
from data_pipelines.inspecting.look import check_there
from data_pipelines.inspecting.repeats import content_hash

_DOCUMENTS = 1024
_TOKENS = 4 << 20
_CHARACTERS = 16 << 20


@dataclass
class Batch:
    """Some documents of a shard, one entry each.

    Attributes:
        domains: Their domains.
        lengths: Their lengths by unit: "tokens" (separator included), "characters", "bytes" of UTF-8.
        hashes: Hashes of their content.
        texts: Their texts; empty where they were not asked for.
    """

    domains: Sequence[str]
    lengths: Mapping[str, Numbers]
    hashes: Sequence[bytes]
    texts: Sequence[str]


@dataclass
class _Rows:
    """A batch of texts while it grows."""

    domains: list[str] = field(default_factory=list)
    characters: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    held: int = 0

    def batch(self) -> Batch:
        """Return the batch."""
        columns = {"characters": self.characters, "bytes": self.sizes}
        lengths = {name: np.array(values, dtype=np.int64) for name, values in columns.items()}
        return Batch(self.domains, lengths, self.hashes, self.texts)


class BatchReader:
    """Reads the shards of a corpus in a local directory."""

    def __init__(self, directory: Path, manifest: Manifest, tokenizer: Tokenizer | None, keep_texts: bool) -> None:
        """Take what is needed to read.

        Args:
            directory: Directory of the shards.
            manifest: The corpus' manifest.
            tokenizer: Decodes tokens, to count characters; None: do not. A corpus of text needs none.
            keep_texts: Give the texts as well.
        """
        self._directory, self._manifest = directory, manifest
        self._tokenizer, self._keep_texts = tokenizer, keep_texts

    def batches(self, shard: ShardRecord) -> Iterator[Batch]:
        """Yield the documents of a shard, in order.

        Raises:
            DataError: It is missing or cannot be read.
        """
        path = self._directory / shard.file
        check_there(path)
        if self._manifest.kind == TOKENS:
            try:
                yield from self._tokens(path)
            except (OSError, ValueError) as error:
                raise DataError(f"shard {path} cannot be read ({error}): see `calm data verify`") from None
        else:
            yield from self._texts(path)

    def _tokens(self, path: Path) -> Iterator[Batch]:
        shard = open_token_shard(path, self._manifest.dtype)
        begins = np.concatenate([np.zeros(1, dtype=np.int64), shard.ends])[: len(shard.ends)]
        first = 0
        while first < len(begins):
            full = int(np.searchsorted(shard.ends, begins[first] + _TOKENS)) + 1
            last = min(len(begins), first + _DOCUMENTS, full)
            bounds = zip(begins[first:last].tolist(), shard.ends[first:last].tolist(), strict=True)
            pieces = [shard.tokens[begin + 1 : end] for begin, end in bounds]
            texts = [self._tokenizer.decode(piece.tolist()) for piece in pieces] if self._tokenizer else []
            lengths = {"tokens": shard.ends[first:last] - begins[first:last], "bytes": shard.text_bytes[first:last]}
            if texts:
                lengths["characters"] = np.fromiter(map(len, texts), dtype=np.int64)
            yield Batch(
                domains=[shard.names[number] for number in shard.domains[first:last].tolist()],
                lengths=lengths,
                hashes=[content_hash(piece.tobytes()) for piece in pieces],
                texts=texts if self._keep_texts else [],
            )
            first = last

    def _texts(self, path: Path) -> Iterator[Batch]:
        rows = _Rows()
        for document in read_text_shard(path, str(path)):
            content = document.text.encode()
            rows.domains.append(document.domain)
            rows.characters.append(len(document.text))
            rows.sizes.append(len(content))
            rows.hashes.append(content_hash(content))
            if self._keep_texts:
                rows.texts.append(document.text)
                rows.held += len(document.text)
            if len(rows.domains) >= _DOCUMENTS or rows.held >= _CHARACTERS:
                yield rows.batch()
                rows = _Rows()
        if rows.domains:
            yield rows.batch()

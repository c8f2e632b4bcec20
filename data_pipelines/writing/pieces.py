"""Pieces: a few megabytes of a source, cleaned and tokenised by one process into files of their own.

A piece is a pure function of its records and the recipe, so it does not matter which process makes it, or when. Its
documents are kept by split, so that the files of one split can go as soon as its shards hold them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from calm_lightning.data.encoding import encode_documents
from calm_lightning.data.shards.manifest import TOKENS
from calm_lightning.data.shards.tokens import Numbers, token_dtype
from calm_lightning.data.tokenizers import Tokenizer, open_tokenizer
from calm_lightning.errors import DataError
from data_pipelines.cleaning.clean import Cleaning, clean
from data_pipelines.cleaning.split import hash_split
from data_pipelines.reading.sources import Document, Source, parse_record
from data_pipelines.writing.work import Key, SourceChangedError, WorkDirectory, write_file, write_json

PIECE_BYTES = 4_000_000
UNREADABLE = "unreadable"
VERDICTS = ("", "exact duplicate", "near duplicate")
"""What the numbers in a verdict mean."""

Record = tuple[int, bytes]
Verdicts = NDArray[np.uint8]


@dataclass(frozen=True)
class Recipe:
    """What a process must know to make pieces.

    Attributes:
        work: Path of the work directory.
        kind: `TOKENS` or `TEXT`.
        val_fraction: Share of "val" where sources are not laid out by split.
        test_fraction: Share of "test", likewise.
        cleaning: What is done to documents first.
        skip_bad: Leave out records that hold no document instead of stopping.
    """

    work: Path
    kind: str
    val_fraction: float
    test_fraction: float
    cleaning: Cleaning
    skip_bad: bool


@dataclass(frozen=True)
class Task:
    """One piece to make.

    Attributes:
        key: Which.
        source: The source it is from.
        records: Its records: number in the source, and bytes.
        look: Only take fingerprints, for finding duplicates.
        verdicts: Number in `VERDICTS` of every document that cleaning leaves, (documents,); None to keep all.
    """

    key: Key
    source: Source
    records: list[Record]
    look: bool = False
    verdicts: Verdicts | None = None


@dataclass(frozen=True)
class Columns:
    """Documents of one piece and split.

    Attributes:
        payload: Their tokens end to end, separators included, or the bytes of their JSON members.
        lengths: Entries of `payload` of every document, (documents,).
        domains: Number of every document's domain, (documents,).
        text_bytes: UTF-8 bytes of every document's text, (documents,).
        names: Names of the domains.
    """

    payload: NDArray[np.unsignedinteger[Any]]
    lengths: Numbers
    domains: Numbers
    text_bytes: Numbers
    names: tuple[str, ...]

    @cached_property
    def ends(self) -> Numbers:
        """Index behind the last entry of every document, (documents,)."""
        return np.cumsum(self.lengths)

    def save(self, file: BinaryIO) -> None:
        """Write the documents."""
        np.savez(
            file,
            payload=self.payload,
            lengths=self.lengths,
            domains=self.domains,
            text_bytes=self.text_bytes,
            names=np.frombuffer(json.dumps(self.names).encode(), dtype=np.uint8),
        )

    @classmethod
    def load(cls, path: Path) -> Columns:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            names = tuple(json.loads(stored["names"].tobytes()))
            return cls(stored["payload"], stored["lengths"], stored["domains"], stored["text_bytes"], names)


def cut(records: Iterator[Record], piece_bytes: int) -> Iterator[list[Record]]:
    """Yield records in pieces of at most `piece_bytes` bytes, or of one record that is longer."""
    piece: list[Record] = []
    size = 0
    for record in records:
        if piece and size + len(record[1]) > piece_bytes:
            yield piece
            piece, size = [], 0
        piece.append(record)
        size += len(record[1])
    if piece:
        yield piece


class PieceMaker:
    """Makes pieces into files of the work directory."""

    def __init__(self, recipe: Recipe) -> None:
        """Take the recipe; the tokenizer is opened with the first piece that needs it."""
        self._recipe = recipe
        self._work = WorkDirectory(recipe.work)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return open_tokenizer(self._work.tokenizer)

    def make(self, task: Task) -> None:
        """Make one piece.

        Raises:
            DataError: A record holds no document, and such are not to be skipped.
            OSError: A file cannot be written.
        """
        dropped: Counter[str] = Counter()
        unreadable: list[str] = []
        documents = self.documents(task, dropped, unreadable)
        if task.look:
            write_file(self._work.look(task.key), lambda file: self._save_look(file, documents))
            return
        by_split: dict[str, list[Document]] = {}
        for split, document in documents:
            by_split.setdefault(split, []).append(document)
        for split, own in by_split.items():
            write_file(self._work.piece(task.key, split), self._columns(own).save)
        write_json(
            self._work.marker(task.key), {"splits": sorted(by_split), "dropped": dropped, "unreadable": unreadable}
        )

    def documents(
        self, task: Task, dropped: Counter[str] | None = None, unreadable: list[str] | None = None
    ) -> list[tuple[str, Document]]:
        """Return the documents that cleaning leaves of a piece, each with its split.

        Args:
            task: The piece.
            dropped: Told how many documents were left out, by rule.
            unreadable: Told why records were skipped, a sentence each.
        """
        dropped = Counter() if dropped is None else dropped
        found: list[tuple[str, Document]] = []
        seen = 0
        for number, record in task.records:
            try:
                document = clean(parse_record(task.source, number, record), self._recipe.cleaning)
            except DataError as error:
                if not self._recipe.skip_bad:
                    raise
                dropped[UNREADABLE] += 1
                if unreadable is not None:
                    unreadable.append(str(error))
                continue
            if isinstance(document, str):
                dropped[document] += 1
                continue
            seen += 1
            verdict = int(task.verdicts[seen - 1]) if task.verdicts is not None else 0
            if verdict:
                dropped[VERDICTS[verdict]] += 1
            else:
                found.append((self._split(task.source, document), document))
        if task.verdicts is not None and seen != len(task.verdicts):
            raise SourceChangedError(task.source.name)
        return found

    def _split(self, source: Source, document: Document) -> str:
        return source.split or hash_split(document.text, self._recipe.val_fraction, self._recipe.test_fraction)

    def _save_look(self, file: BinaryIO, documents: Sequence[tuple[str, Document]]) -> None:
        from data_pipelines.cleaning.dedup import fingerprint, signatures

        near = self._recipe.cleaning.duplicates == "near"
        texts = [document.text for _, document in documents]
        prints = np.frombuffer(b"".join(map(fingerprint, texts)), dtype=np.uint8).reshape(len(texts), -1)
        splits = np.array([split for split, _ in documents], dtype="U5")
        np.savez(file, splits=splits, prints=prints, signatures=signatures(texts if near else []))

    def _columns(self, documents: Sequence[Document]) -> Columns:
        texts = [document.text for document in documents]
        names = sorted({document.domain for document in documents})
        numbers = {name: number for number, name in enumerate(names)}
        domains = np.fromiter((numbers[document.domain] for document in documents), dtype=np.int64)
        if self._recipe.kind == TOKENS:
            text_bytes = np.fromiter((len(text.encode()) for text in texts), dtype=np.int64)
            payload, lengths = encode_documents(self._tokenizer, texts, token_dtype(self._tokenizer.vocabulary))
            return Columns(payload, lengths, domains, text_bytes, tuple(names))
        members = [_member(document) for document in documents]
        lengths = np.fromiter(map(len, members), dtype=np.int64)
        text_bytes = np.fromiter((len(text.encode()) for text in texts), dtype=np.int64)
        return Columns(np.frombuffer(b"".join(members), np.uint8), lengths, domains, text_bytes, tuple(names))


def _member(document: Document) -> bytes:
    """Return the JSON member of a document in a text shard."""
    return json.dumps({"text": document.text, "meta": {"pile_set_name": document.domain}}, ensure_ascii=False).encode()

"""Making one corpus in its work directory: find duplicates, get a tokenizer, make pieces, assemble shards.

Each of the four leaves files behind that say it is done, so a killed run begins with the first that is not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from typing import Any

from calm_lightning import __version__
from calm_lightning.data.shards.manifest import (
    MANIFEST_FILE,
    TOKENS,
    Counts,
    Manifest,
    Provenance,
    SourceRecord,
    SplitRecord,
    TokenizerRecord,
)
from calm_lightning.data.shards.tokens import token_dtype
from calm_lightning.data.tokenizers import Tokenizer, make_tokenizer, open_tokenizer, record_of, save_tokenizer
from calm_lightning.errors import DataError
from data_pipelines.reading.sources import Source
from data_pipelines.writing.duplicates import LookStep, VerdictReader, judge
from data_pipelines.writing.passage import Passage, Progress, Report, is_large
from data_pipelines.writing.pieces import PieceMaker, Recipe, Record, Task
from data_pipelines.writing.pool import Pool
from data_pipelines.writing.settings import Settings
from data_pipelines.writing.work import Key, SourceChangedError, WorkDirectory
from data_pipelines.writing.write import Assembler

BPE_TRAINING_BYTES = 128 << 20
"""A BPE is trained on this much text from the beginning of the train split: more changes little and takes long."""


@dataclass(frozen=True)
class Job:
    """A corpus to make.

    Attributes:
        sources: The raw files, in order.
        settings: What else decides its content.
        tokenizer: The tokenizer that the settings name; None where it is to be trained, and for shards of text.
        workers: Processes that make pieces; 1 for the calling one.
        piece_bytes: Raw bytes of a piece.
        report: Told how far the work is.
    """

    sources: tuple[Source, ...]
    settings: Settings
    tokenizer: Tokenizer | None
    workers: int
    piece_bytes: int
    report: Report | None

    def plan(self) -> dict[str, Any]:
        """Return what decides the content of the work directory, JSON-ready."""
        return {
            "sources": [[one.url, one.name, one.split, one.bytes, _changed_at(one)] for one in self.sources],
            "settings": self.settings.record(self.tokenizer),
            "versions": _versions(self.settings),
            "piece_bytes": self.piece_bytes,
        }


def _changed_at(source: Source) -> int:
    """Return a local file's time of change in ns; 0 for a remote one, which is known by its size and checksum."""
    return os.stat(source.url).st_mtime_ns if os.path.exists(source.url) else 0


def _versions(settings: Settings) -> dict[str, str]:
    """Return the versions of the packages that decide the content."""
    packages = [{"bytes": "", "llama3": "tiktoken"}.get(settings.tokenizer.partition(":")[0], "tokenizers")]
    packages = packages if settings.shards == TOKENS else []
    packages += ["rensa"] if settings.cleaning.duplicates == "near" else []
    return {"calm-lightning": __version__} | {name: metadata.version(name) for name in packages if name}


class WriteStep:
    """Makes pieces of documents and has them assembled; see `passage.Step`."""

    phase = "shards"

    def __init__(self, job: Job, work: WorkDirectory) -> None:
        """Continue where the work directory says."""
        self._settings, self._work = job.settings, work
        self._verdicts = VerdictReader(work)
        self.assembler = Assembler(work, job.settings.size, job.settings.max_documents)

    @property
    def counts(self) -> Counts:
        """See `passage.Step`."""
        return self.assembler.counts

    def is_done(self, key: Key) -> bool:
        """See `passage.Step`."""
        return key < self.assembler.next or self._work.marker(key).exists()

    def needs(self, source: Source) -> bool:
        """See `passage.Step`."""
        return not all(self.assembler.is_full(split) for split in self._settings.splits_of(source.split))

    def task(self, key: Key, source: Source, records: list[Record]) -> Task:
        """See `passage.Step`."""
        return Task(key, source, records, verdicts=self._verdicts.of(key))

    def take(self, key: Key, source: Source) -> None:
        """See `passage.Step`."""
        if self.needs(source):
            self.assembler.take(key)

    def end_source(self, index: int, source: Source) -> None:
        """See `passage.Step`."""
        self.assembler.end_source(index, not self.needs(source))


def make_corpus(job: Job, work: WorkDirectory, anew: bool = False) -> Manifest:
    """Make a corpus in `work.corpus`, or continue; `anew` clears unfinished work on another one.

    Raises:
        DataError: A source or the tokenizer is unusable.
        OSError: The disk is full or protected.
    """
    try:
        return _make(job, work, anew)
    except SourceChangedError:
        work.clear()
        raise


def _make(job: Job, work: WorkDirectory, anew: bool) -> Manifest:
    work.begin(job.plan(), anew)
    if (work.corpus / MANIFEST_FILE).exists():
        return Manifest.load(work.corpus)
    s = job.settings
    recipe = Recipe(work.path, s.shards, s.val_fraction, s.test_fraction, s.cleaning, s.skip_bad)
    with Pool(recipe, job.workers, job.piece_bytes) as pool:
        passage = Passage(job.sources, work, pool, job.piece_bytes, job.report)
        if s.cleaning.duplicates != "keep" and not work.verdicts.exists():
            passage.go(LookStep(work))
            judge(work, job.sources, s.cleaning, job.report)
        tokenizer = _tokenizer(job, work, passage, PieceMaker(recipe)) if s.shards == TOKENS else None
        step = WriteStep(job, work)
        passage.go(step)
    splits = step.assembler.finish()
    if not splits:
        raise _nothing(job, sum(step.assembler.dropped.values()))
    record = record_of(tokenizer, tokenizer.save(work.corpus)) if tokenizer else None
    manifest = _manifest(job, work, step.assembler, splits, record)
    manifest.save(work.corpus)
    return manifest


def _nothing(job: Job, dropped: int) -> DataError:
    names = ", ".join(source.name for source in job.sources[:5]) + (", ..." if len(job.sources) > 5 else "")
    cleaning = f" that cleaning leaves ({dropped:,} were dropped)" if dropped else ""
    return DataError(f"the sources hold no document{cleaning} ({names})")


def _manifest(
    job: Job,
    work: WorkDirectory,
    assembler: Assembler,
    splits: dict[str, SplitRecord],
    tokenizer: TokenizerRecord | None,
) -> Manifest:
    records = []
    for index, source in enumerate(job.sources):
        unread = index in assembler.cut_short and is_large(source)
        end = None if unread else work.source_end(index)
        records.append(SourceRecord(source.name, source.split, source.bytes, end.sha256 if end else ""))
    dropped = {rule: count for rule, count in sorted(assembler.dropped.items()) if count}
    provenance = Provenance(tuple(records), job.settings.record(job.tokenizer), dropped, _versions(job.settings))
    dtype = token_dtype(tokenizer.vocabulary) if tokenizer else ""
    return Manifest(job.settings.shards, tokenizer, dtype, splits, provenance)


def _tokenizer(job: Job, work: WorkDirectory, passage: Passage, maker: PieceMaker) -> Tokenizer:
    """Return the tokenizer that pieces are encoded with, and leave it where workers find it."""
    if not (work.tokenizer / "record.json").exists():
        tokenizer = job.tokenizer
        if tokenizer is None:
            texts = _train_texts(job, passage, VerdictReader(work), maker)
            tokenizer = make_tokenizer(job.settings.tokenizer, texts)
        save_tokenizer(tokenizer, work.tokenizer)
    return open_tokenizer(work.tokenizer)


def _train_texts(job: Job, passage: Passage, verdicts: VerdictReader, maker: PieceMaker) -> Iterator[str]:
    """Return the texts a tokenizer is trained on: the beginning of the train split as shards will hold it.

    Raises:
        DataError: No source has a document.
    """
    read, total = 0, sum(source.bytes for source in job.sources)

    def on_bytes(number: int) -> None:
        nonlocal read
        read += number
        if job.report:
            job.report(Progress("tokenizer", read, total))

    documents = (
        (split, document.text)
        for index, source in enumerate(job.sources)
        for key, records in passage.records(index, on_bytes)
        for split, document in maker.documents(Task(key, source, records, verdicts=verdicts.of(key)))
    )
    first = next(documents, None)
    if first is None:
        raise _nothing(job, 0)

    def texts() -> Iterator[str]:
        size = kept = 0
        for split, text in chain([first], documents):
            if split == "train":
                if size >= BPE_TRAINING_BYTES or kept == job.settings.max_documents:
                    return
                size, kept = size + len(text.encode()), kept + 1
                yield text

    return texts()

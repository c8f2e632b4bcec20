"""`prepare`: raw text in, a finished corpus directory out, or nothing.

Everything is written to a hidden directory beside the target and renamed at the end, so a corpus is either
whole or absent. The run starts over after an interruption; a finished corpus made from the same sources and
settings is recognised by its manifest and left alone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from calm_lightning.data.shards import (
    MANIFEST_FILE,
    SPLITS,
    TOKENIZER_FILES,
    Counts,
    Manifest,
    Settings,
    SourceRecord,
    check_shard_files,
    file_sha256,
    token_dtype,
)
from calm_lightning.data.tokenizers import BytesTokenizer, Tokenizer, make_tokenizer, record_of
from calm_lightning.errors import DataError
from data_pipelines.sources import Document, Source, find_sources, read_documents
from data_pipelines.split import check_fractions, hash_split
from data_pipelines.write import SplitWriter

DEFAULT_TOKENIZER = "bpe:1024"
DEFAULT_SHARD_TOKENS = 1 << 20
DEFAULT_FRACTION = 0.02
BPE_TRAINING_BYTES = 128 << 20
"""A BPE is trained on this much text from the beginning of the train split: more changes little and takes long."""
_BATCH_BYTES = 2 << 20


@dataclass(frozen=True)
class Progress:
    """How far a preparation is.

    Attributes:
        phase: "tokenizer" (training it) or "shards".
        bytes_read: Stored (compressed) bytes read in this phase.
        bytes_total: Stored bytes of all sources.
        counts: Documents, tokens and text bytes written so far.
    """

    phase: str
    bytes_read: int
    bytes_total: int
    counts: Counts


Report = Callable[[Progress], None]


@dataclass
class _Reading:
    """Where documents come from, what is kept of them, and who is told."""

    sources: list[Source]
    settings: Settings
    report: Report | None
    bytes_total: int
    bytes_read: int = 0
    counts: Counts = field(default_factory=Counts)

    def documents(self) -> Iterator[tuple[str, Document]]:
        """Yield (split, document) in source order."""
        kept = dict.fromkeys(SPLITS, 0)
        limit = self.settings.max_documents
        self.bytes_read = 0
        for source in self.sources:
            if limit is not None and all(kept[wanted] >= limit for wanted in self._fed_by(source)):
                continue
            for document in read_documents(source, self._on_bytes):
                split = source.split or hash_split(
                    document.text, self.settings.val_fraction, self.settings.test_fraction
                )
                if limit is None or kept[split] < limit:
                    kept[split] += 1
                    yield split, document
                elif all(kept[wanted] >= limit for wanted in self._fed_by(source)):
                    break

    def _fed_by(self, source: Source) -> list[str]:
        """Return the splits that documents of a source may go to."""
        held_out = (("val", self.settings.val_fraction), ("test", self.settings.test_fraction))
        return [source.split] if source.split else ["train", *(split for split, share in held_out if share > 0)]

    def train_texts(self) -> Iterator[str]:
        """Yield the texts a tokenizer is trained on."""
        size = 0
        for split, document in self.documents():
            if split == "train" and size < BPE_TRAINING_BYTES:
                size += len(document.text.encode())
                self.tell("tokenizer")
                yield document.text
            elif size >= BPE_TRAINING_BYTES:
                return

    def tell(self, phase: str) -> None:
        """Report progress."""
        if self.report:
            self.report(Progress(phase, self.bytes_read, self.bytes_total, self.counts))

    def _on_bytes(self, number: int) -> None:
        self.bytes_read += number


def prepare(
    sources: Sequence[str | Path],
    out: str | Path,
    tokenizer_spec: str = DEFAULT_TOKENIZER,
    *,
    shard_tokens: int = DEFAULT_SHARD_TOKENS,
    val_fraction: float = DEFAULT_FRACTION,
    test_fraction: float = DEFAULT_FRACTION,
    max_documents: int | None = None,
    force: bool = False,
    progress: Report | None = None,
    elsewhere: str = "choose another --out",
    replacing: str = "add --force to replace it",
) -> Manifest:
    """Turn raw text into a corpus of token shards. Idempotent: a finished identical corpus is left as it is.

    Args:
        sources: Files, globs, directories or "sample"; see `sources.find_sources`.
        out: The corpus directory to make.
        tokenizer_spec: See `tokenizers.make_tokenizer`.
        shard_tokens: A shard is closed by the document that reaches this many tokens.
        val_fraction: Share of "val" where the sources are not laid out by split.
        test_fraction: Share of "test", likewise.
        max_documents: Keep at most this many documents of every split.
        force: Replace another corpus at `out`.
        progress: Told how far the work is.
        elsewhere: How the caller's user names another `out`, for error messages.
        replacing: How the caller's user replaces the corpus at `out`, likewise.

    Returns:
        The manifest of the corpus at `out`.

    Raises:
        DataError: A source, the tokenizer or `out` is unusable; nothing was changed.
    """
    if shard_tokens < 1:
        raise DataError(f"--shard-tokens {shard_tokens} must be at least 1")
    if max_documents is not None and max_documents < 1:
        raise DataError(f"--max-documents {max_documents} must be at least 1")
    check_fractions(val_fraction, test_fraction)
    files, target = find_sources(sources), Path(out).resolve()
    records = _source_records(files)
    settings = Settings(tokenizer_spec, shard_tokens, float(val_fraction), float(test_fraction), max_documents)
    tokenizer = _existing_tokenizer(tokenizer_spec)
    if tokenizer is not None and tokenizer_spec != BytesTokenizer.kind:
        settings = replace(settings, tokenizer=f"{tokenizer_spec.partition(':')[0]}:{tokenizer.fingerprint}")
    finished = _finished(target, records, settings, force, elsewhere, replacing)
    if finished is not None:
        return finished
    reading = _Reading(files, settings, progress, sum(record.bytes for record in records))
    try:
        with _partial_directory(target) as partial:
            manifest = _write_corpus(partial, reading, records, tokenizer)
            _move_into_place(partial, target)
    except OSError as error:
        raise DataError(
            f"corpus {out} could not be written ({error.strerror or error}); nothing was left behind: "
            f"free space or {elsewhere}, then run the same command again"
        ) from None
    return manifest


def is_prepared(out: str | Path) -> bool:
    """Return whether a corpus lies at `out`."""
    return (Path(out) / MANIFEST_FILE).is_file()


def _source_records(files: list[Source]) -> tuple[SourceRecord, ...]:
    try:
        return tuple(SourceRecord(s.name, s.split, s.path.stat().st_size, file_sha256(s.path)) for s in files)
    except OSError as error:
        raise DataError(f"source {error.filename} cannot be read: {error.strerror}") from None


def _existing_tokenizer(spec: str) -> Tokenizer | None:
    """Return the tokenizer that `spec` names, or None where it is yet to be trained."""
    kind, _, size = spec.partition(":")
    return None if kind == "bpe" and size.isdecimal() else make_tokenizer(spec, ())


def _finished(
    target: Path,
    sources: tuple[SourceRecord, ...],
    settings: Settings,
    force: bool,
    elsewhere: str,
    replacing: str,
) -> Manifest | None:
    """Return the manifest of an identical corpus at `target`, or None where one is to be made there."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    if not target.is_dir() or not is_prepared(target):
        raise DataError(f"{target} exists and is not a corpus: {elsewhere}")
    try:
        manifest = Manifest.load(target)
        same = manifest.sources == sources and manifest.settings == settings
        if same:
            check_shard_files(target, manifest)
            return manifest
        problem = "holds a corpus of other sources or settings"
    except DataError as error:
        problem = f"holds a damaged corpus ({error})"
    if not force:
        raise DataError(f"{target} {problem}: {elsewhere}, or {replacing}")
    strangers = [path.name for path in target.iterdir() if not _belongs_to_corpus(path)]
    if strangers:
        raise DataError(f"{target} also holds {strangers[0]}, which --force would delete: move it away first")
    return None


def _belongs_to_corpus(path: Path) -> bool:
    return path.is_file() and (path.name in (MANIFEST_FILE, *TOKENIZER_FILES) or path.suffix == ".tar")


@contextmanager
def _partial_directory(target: Path) -> Iterator[Path]:
    """Yield an empty hidden directory beside `target`, ours alone, and remove it afterwards.

    The lock is the operating system's, so it goes with a killed process, and the next run clears what is left.
    """
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    handle = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another process is preparing {target}: wait for it, then run again") from None
        for entry in partial.iterdir():
            entry.unlink()
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(handle)


def _move_into_place(partial: Path, target: Path) -> None:
    """Rename a finished corpus to its place; an older one there is moved aside first, then deleted."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(partial, target)
    shutil.rmtree(old, ignore_errors=True)


def _write_corpus(
    directory: Path, reading: _Reading, records: tuple[SourceRecord, ...], tokenizer: Tokenizer | None
) -> Manifest:
    reading.tell("tokenizer")
    if next(reading.documents(), None) is None:
        raise DataError(f"the sources hold no document ({', '.join(source.name for source in reading.sources)})")
    tokenizer = tokenizer or make_tokenizer(reading.settings.tokenizer, reading.train_texts())
    record = record_of(tokenizer, tokenizer.save(directory))
    dtype = token_dtype(record.vocabulary)
    writers: dict[str, SplitWriter] = {}
    try:
        documents = reading.documents()
        while batch := _next_batch(documents):
            encoded = tokenizer.encode_batch([document.text for _, document in batch])
            for (split, document), ids in zip(batch, encoded, strict=True):
                if split not in writers:
                    writers[split] = SplitWriter(
                        directory,
                        split,
                        shard_tokens=reading.settings.shard_tokens,
                        separator_id=record.separator_id,
                        dtype=dtype,
                    )
                text_bytes = len(document.text.encode())
                writers[split].add(ids, document.domain, text_bytes)
                reading.counts += Counts(1, len(ids) + 1, text_bytes)
            reading.tell("shards")
        splits = {split: writers[split].close() for split in SPLITS if split in writers}
    finally:
        for writer in writers.values():
            writer.abandon()
    manifest = Manifest(record, dtype, splits, records, reading.settings)
    manifest.save(directory)
    return manifest


def _next_batch(documents: Iterator[tuple[str, Document]]) -> list[tuple[str, Document]]:
    """Return the next documents, about two million characters of them."""
    batch: list[tuple[str, Document]] = []
    size = 0
    for item in islice(documents, 1024):
        batch.append(item)
        size += len(item[1].text)
        if size >= _BATCH_BYTES:
            break
    return batch

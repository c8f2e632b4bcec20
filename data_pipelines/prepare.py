"""`prepare`: raw text in, a finished corpus directory out.

Work is done in a hidden directory beside the target, in pieces that survive a kill, and the corpus is moved to its
place when it is whole. The same call continues, repeats no finished piece, and ends with the bytes of an uninterrupted
run, whatever the number of workers. A finished corpus made from the same sources and settings is recognised by its
manifest and left alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from calm_lightning.data.files.remote import is_remote
from calm_lightning.data.shards.manifest import MANIFEST_FILE, TOKENIZER_FILES, TOKENS, Manifest
from calm_lightning.data.tokenizers import Tokenizer, make_tokenizer
from calm_lightning.errors import DataError
from data_pipelines.cleaning.clean import Cleaning
from data_pipelines.reading.sources import Source, find_sources, raw_records
from data_pipelines.writing.make import Job, make_corpus
from data_pipelines.writing.passage import Progress, Report
from data_pipelines.writing.pieces import PIECE_BYTES
from data_pipelines.writing.settings import (
    DEFAULT_FRACTION,
    DEFAULT_SHARD_MB,
    DEFAULT_SHARD_TOKENS,
    DEFAULT_TOKENIZER,
    Settings,
)
from data_pipelines.writing.work import UnfinishedWorkError, work_directory, work_path

SMALL_BYTES = 16 << 20
"""Sources of fewer stored bytes in all are prepared in one process: starting others takes longer."""


@dataclass(frozen=True)
class _Place:
    """Where a corpus is to be, and how its user is told what to do about another one there.

    Attributes:
        target: The directory.
        force: Replace another corpus there.
        elsewhere: How the user names another place.
        replacing: How the user replaces what is there.
    """

    target: Path
    force: bool
    elsewhere: str
    replacing: str


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
    workers: int | None = None,
    cleaning: Cleaning | None = None,
    shards: str = TOKENS,
    shard_mb: float = DEFAULT_SHARD_MB,
    skip_bad: bool = False,
    piece_bytes: int = PIECE_BYTES,
) -> Manifest:
    """Turn raw text into a corpus of shards. Idempotent, and restartable at any moment.

    Args:
        sources: Files, globs, directories, addresses or "sample"; see `sources.find_sources`.
        out: The corpus directory to make.
        tokenizer_spec: See `tokenizers.make_tokenizer`; has no part in shards of text.
        shard_tokens, val_fraction, test_fraction, max_documents, shards, shard_mb, skip_bad: See `Settings`.
        force: Replace another corpus at `out`.
        progress: Told how far the work is.
        elsewhere: How the caller's user names another `out`, for error messages.
        replacing: How the caller's user replaces the corpus at `out`, likewise.
        workers: Processes that tokenise; None for one per core, or for this process alone where there is little to do.
        cleaning: What is done to documents first; nothing by default.
        piece_bytes: Raw bytes a process is given at a time; memory grows with it, the corpus does not depend on it.

    Returns:
        The manifest of the corpus at `out`.

    Raises:
        DataError: A source, the tokenizer or `out` is unusable. Finished work is kept in a hidden directory beside
            `out`, and the same call continues it.
    """
    if min(1 if workers is None else workers, piece_bytes) < 1:
        raise DataError("--workers and --piece-mb must be positive")
    rules = cleaning or Cleaning()
    settings = Settings(
        shards, tokenizer_spec, shard_tokens, shard_mb, val_fraction, test_fraction, max_documents, rules, skip_bad
    )
    settings.check()
    tokenizer = _existing_tokenizer(tokenizer_spec) if shards == TOKENS else None
    files = tuple(find_sources(sources))
    workers = workers or _default_workers(files)
    place = _Place(Path(out).resolve(), force, elsewhere, replacing)
    return _prepare(Job(files, settings, tokenizer, workers, piece_bytes, progress), place)


def is_prepared(out: str | Path) -> bool:
    """Return whether a corpus lies at `out`."""
    return (Path(out) / MANIFEST_FILE).is_file()


def _default_workers(sources: Sequence[Source]) -> int:
    small = sum(source.bytes for source in sources) < SMALL_BYTES
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if small else cores


def _existing_tokenizer(spec: str) -> Tokenizer | None:
    """Return the tokenizer that `spec` names, or None where it is yet to be trained."""
    kind, _, size = spec.partition(":")
    return None if kind == "bpe" and size.isdecimal() else make_tokenizer(spec, ())


def _prepare(job: Job, place: _Place) -> Manifest:
    finished = _finished(job, place)
    if finished is not None:
        _clear_leftovers(place.target)
        return finished
    kept, told = False, ""
    try:
        with work_directory(place.target) as work:
            finished = _finished(job, place)  # another process may have been at it until now
            try:
                if finished is None:
                    finished = make_corpus(job, work, place.force)
                    _move_into_place(work.corpus, place.target)
            except BaseException as error:
                kept = work.has_work()
                if kept and not isinstance(error, UnfinishedWorkError):
                    told = "; what is done is kept, the same command continues"
                raise
            finally:
                if not kept:
                    shutil.rmtree(work.path)
    except DataError as error:
        raise DataError(f"{error}{told}") from None
    except OSError as error:
        raise DataError(
            f"corpus {place.target} could not be written ({error.strerror or error}): "
            f"free space or {place.elsewhere}, then run the same command again{told}"
        ) from None
    return finished


def _finished(job: Job, place: _Place) -> Manifest | None:
    """Return the manifest of an identical corpus at the target, or None where one is to be made there."""
    target = place.target
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    if not target.is_dir() or not is_prepared(target):
        raise DataError(f"{target} exists and is not a corpus: {place.elsewhere}")
    manifest: Manifest | None = None
    problem = "holds a corpus of other sources or settings"
    try:
        manifest = Manifest.load(target)
        _check_sizes(target, manifest)
    except DataError as error:
        manifest, problem = None, f"holds a damaged corpus ({error})"
    if manifest and manifest.provenance.settings == job.settings.record(job.tokenizer) and _same_sources(job, manifest):
        return manifest
    if not place.force:
        raise DataError(f"{target} {problem}: {place.elsewhere}, or {place.replacing}")
    strangers = [path.name for path in target.iterdir() if not _belongs_to_corpus(path)]
    if strangers:
        raise DataError(f"{target} also holds {strangers[0]}, which --force would delete: move it away first")
    return None


def _same_sources(job: Job, manifest: Manifest) -> bool:
    """Return whether a corpus was made from the job's sources; contents are compared last, since that takes long."""
    records = manifest.provenance.sources
    if [(one.name, one.split, one.bytes) for one in records] != [(s.name, s.split, s.bytes) for s in job.sources]:
        return False
    total, read = sum(source.bytes for source in job.sources), 0

    def on_bytes(number: int) -> None:
        nonlocal read
        read += number
        if job.report:
            job.report(Progress("checking", read, total))

    pairs = zip(records, job.sources, strict=True)
    return all(_sha256(source, on_bytes) == record.sha256 for record, source in pairs if record.sha256)


def _sha256(source: Source, on_bytes: Callable[[int], None]) -> str:
    """Return the checksum of a source as stored."""
    digest = hashlib.sha256()
    if is_remote(source.url):
        for _ in raw_records(source, on_bytes, digest):
            pass
        return digest.hexdigest()
    try:
        with Path(source.url).open("rb") as file:
            while data := file.read(1 << 20):
                digest.update(data)
                on_bytes(len(data))
    except OSError as error:
        raise DataError(f"source {source.url} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def _check_sizes(corpus: Path, manifest: Manifest) -> None:
    """Check that every shard is there and as long as the manifest says.

    Raises:
        DataError: One is not.
    """
    for split in manifest.splits.values():
        for shard in split.shards:
            path = corpus / shard.file
            size = path.stat().st_size if path.is_file() else None
            if size != shard.bytes:
                raise DataError(f"shard {path} " + ("is missing" if size is None else "is not of its recorded size"))


def _belongs_to_corpus(path: Path) -> bool:
    return path.is_file() and (path.name in (MANIFEST_FILE, *TOKENIZER_FILES) or path.suffix == ".tar")


def _aside(target: Path) -> Path:
    """Return where a corpus that is being replaced is for a moment."""
    return target.with_name(f".{target.name}.old")


def _clear_leftovers(target: Path) -> None:
    """Delete what a run that was killed just behind its last rename left beside a finished corpus."""
    shutil.rmtree(_aside(target), ignore_errors=True)
    if work_path(target).exists():
        with suppress(DataError), work_directory(target) as work:
            if not work.corpus.exists():
                shutil.rmtree(work.path)


def _move_into_place(made: Path, target: Path) -> None:
    """Rename a finished corpus to its place; an older one there is moved aside first, then deleted."""
    old = _aside(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(made, target)
    shutil.rmtree(old, ignore_errors=True)

"""Rereads a corpus against its manifest, with a reader of its own rather than the one that training uses.

A second, independent reader (the standard library's tarfile and `np.load`) finds what a mistake shared by the writer
and the usual reader would hide. It looks at every document, so it takes as long as reading the corpus twice and is
meant to be called by hand; training itself compares checksums when it opens a shard.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calm_lightning.data.shards.manifest import MANIFEST_FILE, Counts, Manifest, ShardRecord, TokenizerRecord
from calm_lightning.data.shards.tokens import Numbers, TokenArray, file_sha256
from calm_lightning.data.tokenizers import Tokenizer, check_fingerprint, load_tokenizer
from calm_lightning.errors import DataError

_COLUMNS = ("tokens.npy", "lengths.npy", "domains.npy", "text_bytes.npy")
_NAMES = "json"
_PROBE = "Déjà vu:  naïve\n\ttabs, 東京, 🙂 and  two spaces "
"""A text that only a tokenizer without losses gives back as it was."""


@dataclass(frozen=True)
class StoredDocument:
    """One document as a token shard holds it.

    Attributes:
        number: Its place in the shard, from 1.
        tokens: Token ids, the separator first.
        domain: Its domain.
        text_bytes: UTF-8 bytes of its text.
    """

    number: int
    tokens: TokenArray
    domain: str
    text_bytes: int


class _Columns(NamedTuple):
    """What a token shard holds: all tokens, and one entry per document."""

    tokens: TokenArray
    lengths: Numbers
    domains: Numbers
    text_bytes: Numbers
    names: tuple[str, ...]


def read_shard(path: Path, dtype: str) -> Iterator[StoredDocument]:
    """Yield the documents of a token shard, in order.

    Args:
        path: The shard.
        dtype: Type of its ids.

    Raises:
        DataError: The shard is missing, truncated or not laid out as the contract says.
    """
    columns = _read_columns(path, dtype)
    begins = np.cumsum(columns.lengths) - columns.lengths
    for place, (begin, length) in enumerate(zip(begins.tolist(), columns.lengths.tolist(), strict=True)):
        domain = columns.names[int(columns.domains[place])]
        tokens = columns.tokens[begin : begin + length]
        yield StoredDocument(place + 1, tokens, domain, int(columns.text_bytes[place]))


def _read_columns(path: Path, dtype: str) -> _Columns:
    """Return what is in a token shard.

    Raises:
        DataError: The shard is missing, truncated or not laid out as the contract says.
    """
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is None or member.name in contents:
                    raise ValueError(f"its member {member.name!r} is no file, or is there twice")
                contents[member.name] = stream.read()
        expected = [f"{path.stem}.{field}" for field in (*_COLUMNS, _NAMES)]
        if list(contents) != expected:
            raise ValueError(f"its members are {', '.join(contents) or 'none'} where {', '.join(expected)} belong")
        tokens = _row(contents[expected[0]], expected[0], dtype)
        lengths, domains, text_bytes = (_row(contents[name], name, "int64") for name in expected[1:-1])
        columns = _Columns(tokens, lengths, domains, text_bytes, _domain_names(contents[expected[-1]]))
        _check_columns(columns)
    except OSError as error:
        raise DataError(f"shard {path} cannot be read ({error.strerror or error})") from None
    except (tarfile.TarError, ValueError, EOFError, MemoryError) as error:
        raise DataError(f"shard {path} is not a readable token shard: {error}") from None
    return columns


def _row(content: bytes, name: str, dtype: str) -> NDArray[Any]:
    array = np.load(io.BytesIO(content), allow_pickle=False)
    wanted = np.dtype(dtype).newbyteorder("<")
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != wanted:
        raise ValueError(f"{name} is not a row of {dtype}")
    return array


def _domain_names(content: bytes) -> tuple[str, ...]:
    value = json.loads(content)
    names = value.get("domains") if isinstance(value, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its json member does not name its domains")
    if len(set(names)) != len(names):
        raise ValueError("it names a domain twice")
    return tuple(names)


def _check_columns(columns: _Columns) -> None:
    """Check that the columns fit one another.

    Raises:
        ValueError: They do not.
    """
    if not len(columns.lengths) == len(columns.domains) == len(columns.text_bytes):
        raise ValueError("its columns are of different lengths")
    if int(columns.lengths.sum()) != len(columns.tokens):
        raise ValueError(f"its documents add up to {columns.lengths.sum()} tokens, it holds {len(columns.tokens)}")
    for name, row, low, high in (
        ("length", columns.lengths, 1, len(columns.tokens)),
        ("domain", columns.domains, 0, len(columns.names) - 1),
        ("text_bytes", columns.text_bytes, 0, np.iinfo(np.int64).max),
    ):
        wrong = np.flatnonzero((row < low) | (row > high))
        if len(wrong):
            raise ValueError(f"document {wrong[0] + 1} has the impossible {name} {row[wrong[0]]}")


def find_problems(
    corpus: Path,
    shards_at: Path | None = None,
    *,
    deep: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Return what is wrong with a corpus, one sentence each; an empty list means that nothing is.

    Args:
        corpus: The corpus directory.
        shards_at: Directory of the shards, where it is another one.
        deep: Decode every document of tokens too, and compare its length in bytes of UTF-8.
        progress: Called with the size in bytes of every shard just checked.

    Raises:
        DataError: There is no readable manifest, or the tokenizer cannot give back texts as they were (deep).
    """
    manifest = Manifest.load(corpus)
    problems = _tokenizer_problems(corpus, manifest.tokenizer)
    tokenizer = None
    if deep and manifest.tokenizer and not problems:
        tokenizer = load_tokenizer(corpus, manifest.tokenizer)
        if tokenizer.decode(tokenizer.encode(_PROBE)) != _PROBE:
            raise DataError(
                f"the tokenizer of {corpus} does not give back texts as they were, so decoding proves nothing: "
                f"verify without --deep"
            )
    named: set[str] = set()
    for split in manifest.splits.values():
        for shard in split.shards:
            if shard.file in named:
                problems.append(f"the manifest names shard {shard.file} twice")
            named.add(shard.file)
            try:
                problems += _shard_problems((shards_at or corpus) / shard.file, shard, manifest, tokenizer)
            except DataError as error:
                problems.append(str(error))
            if progress:
                progress(shard.bytes)
    return problems


def find_strangers(corpus: Path, shards_at: Path | None = None) -> list[str]:
    """Return the names in a corpus directory that are no part of the corpus, sorted.

    Args:
        corpus: The corpus directory.
        shards_at: Directory of the shards, where it is another one; what else is there is none of the corpus' business.
    """
    manifest = Manifest.load(corpus)
    known = {MANIFEST_FILE, manifest.tokenizer.file if manifest.tokenizer else None}
    if shards_at is None or shards_at.resolve() == corpus.resolve():
        known |= {shard.file for split in manifest.splits.values() for shard in split.shards}
    return sorted(path.name for path in corpus.iterdir() if path.name not in known)


def _tokenizer_problems(corpus: Path, record: TokenizerRecord | None) -> list[str]:
    try:
        if record:
            check_fingerprint(corpus, record)
    except DataError as error:
        return [str(error)]
    return []


def _shard_problems(path: Path, record: ShardRecord, manifest: Manifest, tokenizer: Tokenizer | None) -> list[str]:
    """Return what is wrong with one shard. A shard that is not the manifest's file is not read any further.

    Raises:
        DataError: It cannot be read.
    """
    if not path.is_file():
        raise DataError(f"shard {path} is missing")
    if path.stat().st_size != record.bytes:
        raise DataError(f"shard {path} is damaged: it has {path.stat().st_size:,} bytes, not {record.bytes:,}")
    if file_sha256(path) != record.sha256:
        raise DataError(f"shard {path} is damaged: its SHA-256 is not the manifest's")
    if manifest.tokenizer is None:
        return list(_count_problems(path, record.domains, _count_texts(path)))
    columns = _read_columns(path, manifest.dtype)
    problems = [*_token_problems(path, columns, manifest.tokenizer)]
    problems += _count_problems(path, record.domains, _count_tokens(columns))
    if tokenizer and not problems:
        problems += _text_problems(path, columns, tokenizer)
    return problems


def _token_problems(path: Path, columns: _Columns, record: TokenizerRecord) -> Iterator[str]:
    """Yield what is wrong with the ids of a shard, one sentence per kind of mistake."""
    begins = np.cumsum(columns.lengths) - columns.lengths
    lacking = np.flatnonzero(columns.tokens[begins] != record.separator_id)
    if len(lacking):
        yield (
            f"shard {path} has {len(lacking)} document(s) without the separator in front, "
            f"the first is document {lacking[0] + 1}"
        )
    separators = np.flatnonzero(columns.tokens == record.separator_id)
    within = np.setdiff1d(separators, begins, assume_unique=True)
    if len(within):
        document = int(np.searchsorted(begins, within[0], side="right"))
        yield f"shard {path} has {len(within)} separator(s) within documents, the first in document {document}"
    beyond = np.flatnonzero(columns.tokens >= record.vocabulary)
    if len(beyond):
        document = int(np.searchsorted(begins, beyond[0], side="right"))
        yield (
            f"shard {path} holds id {columns.tokens[beyond[0]]} in document {document}, "
            f"the tokenizer has {record.vocabulary}"
        )


def _text_problems(path: Path, columns: _Columns, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield one sentence per document whose text has another length than its shard says."""
    begin = 0
    for number, (length, expected) in enumerate(
        zip(columns.lengths.tolist(), columns.text_bytes.tolist(), strict=True), start=1
    ):
        found = len(tokenizer.decode(columns.tokens[begin + 1 : begin + length].tolist()).encode())
        begin += length
        if found != expected:
            yield f"shard {path}, document {number}: its tokens are {found:,} bytes of text, it says {expected:,}"


def _count_tokens(columns: _Columns) -> dict[str, Counts]:
    """Return what a token shard holds, by domain."""
    places = columns.domains
    documents = np.bincount(places, minlength=len(columns.names))
    found = {}
    for number in np.flatnonzero(documents).tolist():
        own = places == number
        tokens, text_bytes = int(columns.lengths[own].sum()), int(columns.text_bytes[own].sum())
        found[columns.names[number]] = Counts(int(documents[number]), tokens, text_bytes)
    return found


def _count_texts(path: Path) -> dict[str, Counts]:
    """Return what a shard of texts holds, by domain, reading all of it.

    Raises:
        DataError: It is not a readable shard of texts.
    """
    from calm_lightning.data.shards.text import read_text_shard

    found: dict[str, Counts] = defaultdict(Counts)
    for document in read_text_shard(path, str(path)):
        found[document.domain] += Counts(1, 0, len(document.text.encode()))
    return found


def _count_problems(path: Path, expected: Mapping[str, Counts], found: Mapping[str, Counts]) -> Iterator[str]:
    for domain in sorted({*expected, *found}):
        theirs, ours = expected.get(domain, Counts()), found.get(domain, Counts())
        if theirs != ours:
            yield f"shard {path}, domain {domain!r}: it holds {_said(ours)}, the manifest says {_said(theirs)}"


def _said(counts: Counts) -> str:
    return f"{counts.documents:,} documents, {counts.tokens:,} tokens and {counts.text_bytes:,} bytes of text"

"""Rereads shards against their manifest, with the standard library's tarfile rather than the writer's library.

A second, independent reader finds what a shared mistake would hide. It opens every document, so it is slower
than training's own checks (checksum, token count, id range) and is meant to be called by hand.
"""

from __future__ import annotations

import json
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from calm_lightning.data.shards import (
    DOCUMENT_FIELD,
    TOKENS_FIELD,
    Counts,
    Manifest,
    ShardRecord,
    SplitRecord,
    TokenArray,
    decode_tokens,
    file_sha256,
)
from calm_lightning.data.tokenizers import check_fingerprint
from calm_lightning.errors import DataError


@dataclass(frozen=True)
class StoredDocument:
    """One document as a shard holds it.

    Attributes:
        key: Its key in the shard.
        tokens: Token ids, the separator first.
        domain: Its domain.
        text_bytes: UTF-8 bytes of its text.
    """

    key: str
    tokens: TokenArray
    domain: str
    text_bytes: int


def read_shard(path: Path, dtype: str) -> Iterator[StoredDocument]:
    """Yield the documents of a shard, in order.

    Raises:
        DataError: The shard is missing, truncated or not laid out as the contract says.
    """
    fields: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                key, _, name = member.name.partition(".")
                content = archive.extractfile(member)
                fields[name] = content.read() if content else b""
                if fields.keys() == {TOKENS_FIELD, DOCUMENT_FIELD}:
                    document = json.loads(fields[DOCUMENT_FIELD])
                    tokens = decode_tokens(fields[TOKENS_FIELD], dtype)
                    fields = {}
                    yield StoredDocument(key, tokens, str(document["domain"]), int(document["text_bytes"]))
    except OSError as error:
        raise DataError(f"shard {path} cannot be read ({error.strerror or error})") from None
    except (tarfile.TarError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DataError(f"shard {path} is not a readable token shard ({error})") from None
    if fields:
        raise DataError(f"shard {path} ends within a document")


def find_problems(corpus: Path, progress: Callable[[int], None] | None = None) -> list[str]:
    """Return what is wrong with a corpus, one sentence each; an empty list means that nothing is.

    Args:
        corpus: The corpus directory.
        progress: Called with the size in bytes of every shard just checked.

    Raises:
        DataError: There is no readable manifest.
    """
    manifest = Manifest.load(corpus)
    problems = []
    try:
        check_fingerprint(corpus, manifest.tokenizer)
    except DataError as error:
        problems.append(str(error))
    for name, split in manifest.splits.items():
        before = len(problems)
        domains: dict[str, Counts] = defaultdict(Counts)
        for shard in split.shards:
            try:
                _check_shard(corpus / shard.file, shard, manifest, domains)
            except DataError as error:
                problems.append(str(error))
            if progress:
                progress(shard.bytes)
        if len(problems) == before:
            problems += _domain_problems(name, split, domains)
    return problems


def _check_shard(path: Path, record: ShardRecord, manifest: Manifest, domains: dict[str, Counts]) -> None:
    """Check one shard and add its documents to `domains`."""
    if not path.is_file():
        raise DataError(f"shard {path} is missing")
    if file_sha256(path) != record.sha256:
        raise DataError(f"shard {path} is damaged: its SHA-256 is not the manifest's")
    total = Counts()
    tokenizer = manifest.tokenizer
    for document in read_shard(path, manifest.dtype):
        where = f"shard {path}, document {document.key}"
        separators = (document.tokens == tokenizer.separator_id).nonzero()[0].tolist()
        if separators != [0]:
            raise DataError(f"{where} must have one separator, in front; it has them at {separators[:3]}")
        if int(document.tokens.max()) >= tokenizer.vocabulary:
            raise DataError(f"{where} holds id {int(document.tokens.max())}, the tokenizer has {tokenizer.vocabulary}")
        counts = Counts(1, len(document.tokens), document.text_bytes)
        domains[document.domain] += counts
        total += counts
    if total != (expected := Counts(record.documents, record.tokens, record.text_bytes)):
        raise DataError(f"shard {path} holds {total}, its manifest says {expected}")


def _domain_problems(name: str, split: SplitRecord, found: dict[str, Counts]) -> list[str]:
    return [
        f"split {name}, domain {domain}: shards hold {found.get(domain)}, the manifest says {split.domains.get(domain)}"
        for domain in sorted({*found, *split.domains})
        if found.get(domain) != split.domains.get(domain)
    ]

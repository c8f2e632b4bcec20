"""The on-disk contract between `data_pipelines`, which writes shards, and `data.stream`, which reads them.

A corpus is a directory: manifest.json, the tokenizer's file, and per split tar shards in WebDataset layout.
Each sample of a shard is one document: `KEY.tokens.npy`, its token ids with the separator in front (a
one-dimensional little-endian array of the manifest's dtype), and `KEY.json`, {"domain", "text_bytes"}.

The manifest holds no time and no absolute path, so the same sources and settings give the same bytes, and
it counts the tokens of every shard, so the order of training blocks follows from it without opening a shard.
The price: shards cannot be edited or added by hand, they are prepared again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from calm_lightning.errors import DataError

SCHEMA_VERSION = 1
KIND = "tokens"
MANIFEST_FILE = "manifest.json"
SPLITS = ("train", "val", "test")
TOKENS_FIELD = "tokens.npy"
DOCUMENT_FIELD = "json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")

TokenArray = NDArray[np.uint16] | NDArray[np.uint32]
Expected = TypeVar("Expected")


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer a corpus was made with.

    Attributes:
        kind: "bpe", "bytes" or "llama3".
        file: Name of its file in the corpus directory, or None where it needs none.
        vocabulary: Vocabulary size V: every id is below it.
        separator_id: Id in front of every document.
        fingerprint: SHA-256 of the tokenizer's file (of its definition where it has no file).
    """

    kind: str
    file: str | None
    vocabulary: int
    separator_id: int
    fingerprint: str


@dataclass(frozen=True)
class Counts:
    """How much text something holds.

    Attributes:
        documents: Documents.
        tokens: Tokens, one separator per document included.
        text_bytes: UTF-8 bytes of the text, separators excluded.
    """

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.documents + other.documents, self.tokens + other.tokens, self.text_bytes + other.text_bytes)


@dataclass(frozen=True)
class ShardRecord:
    """One tar shard.

    Attributes:
        file: Its name in the corpus directory.
        documents: Documents in it.
        tokens: Tokens in it, separators included.
        text_bytes: UTF-8 bytes of its text.
        bytes: Size of the tar file.
        sha256: Checksum of the tar file.
    """

    file: str
    documents: int
    tokens: int
    text_bytes: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitRecord:
    """One split: its shards in order, and its text by domain."""

    shards: tuple[ShardRecord, ...]
    domains: Mapping[str, Counts]

    @cached_property
    def totals(self) -> Counts:
        """Counts of the whole split."""
        return sum((Counts(s.documents, s.tokens, s.text_bytes) for s in self.shards), Counts())

    def blocks(self, block_tokens: int) -> list[int]:
        """Return the number of whole blocks of `block_tokens` tokens in every shard."""
        return [shard.tokens // block_tokens for shard in self.shards]

    def dropped_tokens(self, block_tokens: int) -> int:
        """Return the tokens that cutting into blocks leaves over: each shard's remainder."""
        return sum(shard.tokens % block_tokens for shard in self.shards)


@dataclass(frozen=True)
class SourceRecord:
    """One raw file a corpus was made from.

    Attributes:
        name: Its name, directories above the named source left out.
        split: The split it was laid out as, or "" where documents were split by the hash of their text.
        bytes: Size of the file as stored.
        sha256: Checksum of the file as stored.
    """

    name: str
    split: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Settings:
    """What besides the sources decides the content of a corpus.

    Attributes:
        tokenizer: "bpe:SIZE", "bytes", "llama3" or "file" (a tokenizer that existed is named by its fingerprint).
        shard_tokens: A shard is closed by the document that reaches this many tokens.
        val_fraction: Share of documents hashed into "val" where the sources are not laid out by split.
        test_fraction: Likewise for "test".
        max_documents: Documents kept per split; None keeps all.
    """

    tokenizer: str
    shard_tokens: int
    val_fraction: float
    test_fraction: float
    max_documents: int | None


@dataclass(frozen=True)
class Manifest:
    """Everything about a corpus but its tokens. See the module's docstring."""

    tokenizer: TokenizerRecord
    dtype: str
    splits: Mapping[str, SplitRecord]
    sources: tuple[SourceRecord, ...]
    settings: Settings

    def to_json(self) -> str:
        """Return the canonical text of the manifest: sorted keys, two spaces, a final newline."""
        value: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "tokenizer": asdict(self.tokenizer),
            "dtype": self.dtype,
            "splits": {name: _split_to_json(split) for name, split in self.splits.items()},
            "sources": [asdict(source) for source in self.sources],
            "settings": asdict(self.settings),
        }
        return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @cached_property
    def corpus_hash(self) -> str:
        """SHA-256 of the canonical manifest: it names the corpus, shards and tokenizer included."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def split(self, name: str) -> SplitRecord:
        """Return one split.

        Raises:
            DataError: The corpus has no such split.
        """
        if name not in self.splits:
            raise DataError(f"the corpus has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]

    def save(self, directory: Path) -> None:
        """Write manifest.json into `directory`, whole or not at all."""
        temporary = directory / f".{MANIFEST_FILE}.partial"
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(self.to_json())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, directory / MANIFEST_FILE)

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Read the manifest of a corpus.

        Raises:
            DataError: It is missing, not JSON, of another version, or incomplete.
        """
        path = directory / MANIFEST_FILE
        if not path.is_file():
            raise DataError(
                f"{directory} is not a prepared corpus (it has no {MANIFEST_FILE}): "
                f"make one with `calm data prepare sample --out {directory}`"
            )
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise DataError(f"{path} cannot be read as JSON ({error}): prepare the corpus again") from None
        if not isinstance(value, dict) or value.get("kind") != KIND:
            raise DataError(f"{path} is not the manifest of a token corpus: prepare the corpus again")
        version = value.get("schema_version")
        if version != SCHEMA_VERSION:
            raise DataError(
                f"{path} has schema version {version}, this program reads version {SCHEMA_VERSION}: "
                f"prepare the corpus again, or use the program version that wrote it"
            )
        try:
            return _manifest_from_json(value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path} is incomplete or damaged ({error!r}): prepare the corpus again") from None


def _split_to_json(split: SplitRecord) -> dict[str, Any]:
    return {
        "shards": [asdict(shard) for shard in split.shards],
        "domains": {name: asdict(counts) for name, counts in split.domains.items()},
        "totals": asdict(split.totals),
    }


def _record(kind: type[Expected], value: Any) -> Expected:
    """Return a flat dataclass from a mapping whose values have the types its annotations name."""
    record = kind(**value)
    for name, annotation in kind.__annotations__.items():
        allowed = {"int": int, "str": str, "float": (int, float), "str | None": (str, type(None))}
        expected: Any = allowed.get(annotation, (int, type(None)))
        if isinstance(value[name], bool) or not isinstance(value[name], expected):
            raise ValueError(f"{kind.__name__}.{name} is {value[name]!r}")
    return record


def _manifest_from_json(value: dict[str, Any]) -> Manifest:
    splits: dict[str, SplitRecord] = {}
    for name, split in value["splits"].items():
        record = SplitRecord(
            tuple(_record(ShardRecord, shard) for shard in split["shards"]),
            {domain: _record(Counts, counts) for domain, counts in split["domains"].items()},
        )
        sums = {"shards": record.totals, "domains": sum(record.domains.values(), Counts())}
        for what, total in sums.items():
            if total != _record(Counts, split["totals"]):
                raise ValueError(f"the {what} of split {name} do not add up to its totals")
        if any(Path(shard.file).name != shard.file for shard in record.shards):
            raise ValueError(f"a shard of split {name} lies outside the corpus")
        splits[name] = record
    if value["dtype"] not in ("uint16", "uint32"):
        raise ValueError(f"dtype is {value['dtype']!r}")
    return Manifest(
        tokenizer=_record(TokenizerRecord, value["tokenizer"]),
        dtype=value["dtype"],
        splits={name: splits[name] for name in sorted(splits, key=_split_order)},
        sources=tuple(_record(SourceRecord, source) for source in value["sources"]),
        settings=_record(Settings, value["settings"]),
    )


def _split_order(name: str) -> tuple[int, str]:
    return (SPLITS.index(name) if name in SPLITS else len(SPLITS), name)


def check_shard_files(directory: Path, manifest: Manifest) -> None:
    """Check that every shard of a manifest is there in its full size, without reading it.

    Raises:
        DataError: A shard is missing or has another size.
    """
    for split in manifest.splits.values():
        for shard in split.shards:
            path = directory / shard.file
            if not path.is_file():
                raise DataError(f"shard {path} is missing: put it back or prepare the corpus again")
            if (size := path.stat().st_size) != shard.bytes:
                raise DataError(
                    f"shard {path} is damaged (it has {size} bytes of {shard.bytes}): prepare the corpus again"
                )


def token_dtype(vocabulary: int) -> str:
    """Return the narrowest dtype that holds every id below `vocabulary`."""
    return "uint16" if vocabulary <= 1 << 16 else "uint32"


def encode_tokens(ids: Iterable[int] | TokenArray, dtype: str) -> bytes:
    """Return token ids as the bytes of a .npy file, little-endian on every machine."""
    buffer = io.BytesIO()
    array = np.asarray(ids, dtype=np.dtype(dtype).newbyteorder("<"))
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def decode_tokens(data: bytes, dtype: str) -> TokenArray:
    """Return the token ids of a .npy file's bytes, shape (tokens,), in this machine's byte order.

    Raises:
        ValueError: The bytes are not a one-dimensional .npy array of `dtype`.
    """
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if array.ndim != 1 or array.dtype != np.dtype(dtype).newbyteorder("<"):
        raise ValueError(f"an array of {array.dtype} and shape {array.shape} where a row of {dtype} belongs")
    tokens: TokenArray = array.astype(dtype, copy=False)
    return tokens


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as lower-case hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

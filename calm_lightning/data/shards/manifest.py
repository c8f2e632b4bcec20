"""The manifest of a corpus: the contract between `data_pipelines`, which writes shards, and `data`, which reads them.

A corpus is a directory (or an address that ends in one): manifest.json, the tokenizer's file where it has one, and
tar shards named in the manifest. It is of one of two kinds, "tokens" (`tokens.py`) or "text" (`text.py`).
The manifest holds no time and no absolute path, so the same sources and settings give the same bytes, and it counts
what is in every shard by domain, so the order of training blocks follows from it without opening a shard. The price:
shards cannot be edited or added by hand, they are prepared again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from calm_lightning.errors import DataError

SCHEMA_VERSION = 2
TOKENS, TEXT = "tokens", "text"
MANIFEST_FILE = "manifest.json"
SPLITS = ("train", "val", "test")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")

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
        tokens: Tokens, one separator per document included; 0 in a corpus of text.
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
        bytes: Size of the tar file.
        sha256: Checksum of the tar file.
        domains: What is in it, by domain.
    """

    file: str
    bytes: int
    sha256: str
    domains: Mapping[str, Counts]

    @cached_property
    def totals(self) -> Counts:
        """Counts of the whole shard."""
        return sum(self.domains.values(), Counts())


@dataclass(frozen=True)
class SplitRecord:
    """One split: its shards, in order."""

    shards: tuple[ShardRecord, ...]

    @cached_property
    def totals(self) -> Counts:
        """Counts of the whole split."""
        return sum((shard.totals for shard in self.shards), Counts())

    @cached_property
    def domains(self) -> Mapping[str, Counts]:
        """Counts by domain, sorted by name. A domain's number is its place here."""
        sums: dict[str, Counts] = {}
        for shard in self.shards:
            for name, counts in shard.domains.items():
                sums[name] = sums.get(name, Counts()) + counts
        return {name: sums[name] for name in sorted(sums)}

    def blocks(self, block_tokens: int) -> list[int]:
        """Return the number of whole blocks of `block_tokens` tokens in every shard."""
        return [shard.totals.tokens // block_tokens for shard in self.shards]

    def dropped_tokens(self, block_tokens: int) -> int:
        """Return the tokens that cutting into blocks leaves over: each shard's remainder."""
        return sum(shard.totals.tokens % block_tokens for shard in self.shards)


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
class Provenance:
    """Where a corpus comes from; it names the corpus for people and has no part in its identity.

    Attributes:
        sources: The raw files, in order.
        settings: What besides them decided the content, by the names of `calm data prepare`'s options.
        dropped: Documents that cleaning left out, by rule.
        versions: Versions of the programs that made it, by package.
    """

    sources: tuple[SourceRecord, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """Everything about a corpus but its text. See the module's docstring.

    Attributes:
        kind: `TOKENS` or `TEXT`.
        tokenizer: The tokenizer of a corpus of tokens; None for text.
        dtype: Type of the stored ids, "uint16" or "uint32"; "" for text.
        splits: The splits by name.
        provenance: Where it all comes from.
    """

    kind: str
    tokenizer: TokenizerRecord | None
    dtype: str
    splits: Mapping[str, SplitRecord]
    provenance: Provenance

    def to_json(self) -> str:
        """Return the canonical text of the manifest: sorted keys, a final newline."""
        value = self._content() | {"provenance": asdict(self.provenance)}
        for name, split in self.splits.items():
            value["splits"][name] |= {
                "domains": {domain: asdict(counts) for domain, counts in split.domains.items()},
                "totals": asdict(split.totals),
            }
        return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def _content(self) -> dict[str, Any]:
        """Return what decides which tokens, or which text, a reader gets."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "tokenizer": asdict(self.tokenizer) if self.tokenizer else None,
            "dtype": self.dtype,
            "splits": {name: {"shards": [asdict(shard) for shard in s.shards]} for name, s in self.splits.items()},
        }

    @cached_property
    def corpus_hash(self) -> str:
        """SHA-256 that names the corpus: its shards, their order and its tokenizer, but not where it comes from."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    @property
    def vocabulary(self) -> int:
        """Vocabulary size V of the corpus' tokenizer.

        Raises:
            DataError: It is a corpus of text, which has none.
        """
        if self.tokenizer is None:
            raise DataError("a corpus of text has no vocabulary of its own: set data.tokenizer, or prepare tokens")
        return self.tokenizer.vocabulary

    def split(self, name: str) -> SplitRecord:
        """Return one split.

        Raises:
            DataError: The corpus has no such split, or nothing is in it.
        """
        if name not in self.splits:
            raise DataError(f"the corpus has no split {name!r}; it has {', '.join(self.splits)}")
        if not self.splits[name].totals.documents:
            raise DataError(f"split {name!r} of the corpus is empty: prepare it with documents, or use another split")
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
        """Read the manifest of a corpus directory.

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
            return cls.parse(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read ({error}): prepare the corpus again") from None

    @classmethod
    def parse(cls, text: str, origin: str) -> Manifest:
        """Return the manifest that `text` is.

        Args:
            text: Content of a manifest.json.
            origin: Where it comes from, for messages.

        Raises:
            DataError: It is not JSON, of another version, or incomplete.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{origin} cannot be read as JSON ({error}): prepare the corpus again") from None
        if not isinstance(value, dict) or value.get("kind") not in (TOKENS, TEXT):
            raise DataError(f"{origin} is not the manifest of a corpus: prepare the corpus again")
        version = value.get("schema_version")
        if version != SCHEMA_VERSION:
            raise DataError(
                f"{origin} has schema version {version}, this program reads version {SCHEMA_VERSION}: "
                f"prepare the corpus again, or use the program version that wrote it"
            )
        try:
            return _manifest_from_json(value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{origin} is incomplete or damaged ({error!r}): prepare the corpus again") from None


def _record(kind: type[Expected], value: Any) -> Expected:
    """Return a flat dataclass from a mapping whose values have the types its annotations name."""
    record = kind(**value)
    for name, annotation in kind.__annotations__.items():
        expected: Any = {"int": int, "str": str, "str | None": (str, type(None))}[annotation]
        if isinstance(value[name], bool) or not isinstance(value[name], expected):
            raise ValueError(f"{kind.__name__}.{name} is {value[name]!r}")
    return record


def _shard(value: Any) -> ShardRecord:
    domains = {str(name): _record(Counts, counts) for name, counts in value["domains"].items()}
    shard = ShardRecord(value["file"], value["bytes"], value["sha256"], domains)
    if any(min(counts.documents, counts.tokens, counts.text_bytes) < 0 for counts in domains.values()):
        raise ValueError(f"shard {shard.file!r} counts less than nothing")
    # Two bytes a token at least, and a tar member holds less than 8 GiB: nobody is made to plan for the impossible.
    total, size = shard.totals, shard.bytes
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 1 << 40:
        raise ValueError(f"shard {shard.file!r} cannot have {size!r} bytes")
    if max(2 * total.tokens, total.documents) > size or total.tokens >= 1 << 33 or total.text_bytes >= 1 << 63:
        raise ValueError(f"shard {shard.file!r} cannot hold what it claims in {size} bytes")
    named = isinstance(shard.file, str) and Path(shard.file).name == shard.file and not shard.file.startswith(".")
    if not named or not isinstance(shard.sha256, str):
        raise ValueError(f"shard {shard.file!r} is no file of the corpus")
    if len(shard.sha256) != 64 or not set(shard.sha256) <= set("0123456789abcdef"):
        raise ValueError(f"shard {shard.file!r} has no SHA-256")
    return shard


def _manifest_from_json(value: dict[str, Any]) -> Manifest:
    splits: dict[str, SplitRecord] = {}
    for name, split in value["splits"].items():
        record = SplitRecord(tuple(_shard(shard) for shard in split["shards"]))
        if record.totals != _record(Counts, split["totals"]):
            raise ValueError(f"the shards of split {name} do not add up to its totals")
        splits[name] = record
    tokenizer = _record(TokenizerRecord, value["tokenizer"]) if value["kind"] == TOKENS else None
    if value["dtype"] not in (("uint16", "uint32") if tokenizer else ("",)):
        raise ValueError(f"dtype is {value['dtype']!r}")
    if tokenizer and tokenizer.file not in (None, *TOKENIZER_FILES):
        raise ValueError(f"the tokenizer's file is {tokenizer.file!r}")
    provenance = value["provenance"]
    return Manifest(
        kind=value["kind"],
        tokenizer=tokenizer,
        dtype=value["dtype"],
        splits={name: splits[name] for name in sorted(splits, key=_split_order)},
        provenance=Provenance(
            tuple(_record(SourceRecord, source) for source in provenance["sources"]),
            dict(provenance["settings"]),
            {str(rule): int(count) for rule, count in provenance["dropped"].items()},
            {str(package): str(version) for package, version in provenance["versions"].items()},
        ),
    )


def _split_order(name: str) -> tuple[int, str]:
    return (SPLITS.index(name) if name in SPLITS else len(SPLITS), name)


def split_names(names: Iterable[str]) -> list[str]:
    """Return split names in their usual order: train, val, test, then others by name."""
    return sorted(names, key=_split_order)

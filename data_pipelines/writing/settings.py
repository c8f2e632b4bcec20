"""What decides the content of a prepared corpus besides its sources.

Everything here is recorded in the manifest and compared when a preparation is run again; what is not here (workers,
the size of pieces) never changes a byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from calm_lightning.data.shards.manifest import TEXT, TOKENS
from calm_lightning.data.tokenizers import BytesTokenizer, Tokenizer
from calm_lightning.errors import DataError
from data_pipelines.cleaning.clean import Cleaning
from data_pipelines.cleaning.split import check_fractions
from data_pipelines.writing.write import ShardSize

DEFAULT_TOKENIZER = "bpe:1024"
DEFAULT_SHARD_TOKENS = 1 << 20
DEFAULT_SHARD_MB = 32.0
DEFAULT_FRACTION = 0.02
MOST_SHARD_TOKENS, MOST_SHARD_MB = 1 << 30, 8000


@dataclass(frozen=True)
class Settings:
    """Settings of a preparation.

    Attributes:
        shards: `TOKENS` or `TEXT`: what shards hold.
        tokenizer: Tokenizer spec, see `tokenizers.make_tokenizer`; shards of text have none.
        shard_tokens: A shard of tokens is closed by the document that reaches this many.
        shard_mb: A shard of text is closed by the document that reaches this many megabytes, 10^6 bytes of UTF-8.
        val_fraction: Share of "val" where the sources are not laid out by split.
        test_fraction: Share of "test", likewise.
        max_documents: Keep at most this many documents of every split; None for all.
        cleaning: What is done to documents first.
        skip_bad: Leave out records that hold no document instead of stopping.
    """

    shards: str = TOKENS
    tokenizer: str = DEFAULT_TOKENIZER
    shard_tokens: int = DEFAULT_SHARD_TOKENS
    shard_mb: float = DEFAULT_SHARD_MB
    val_fraction: float = DEFAULT_FRACTION
    test_fraction: float = DEFAULT_FRACTION
    max_documents: int | None = None
    cleaning: Cleaning = field(default_factory=Cleaning)
    skip_bad: bool = False

    def check(self) -> None:
        """Check every setting.

        Raises:
            DataError: One cannot be.
        """
        if self.shards not in (TOKENS, TEXT):
            raise DataError(f"--shards {self.shards} is not one of {TOKENS}, {TEXT}")
        if self.shard_tokens < 1:
            raise DataError(f"--shard-tokens {self.shard_tokens} must be at least 1")
        if self.shard_tokens > MOST_SHARD_TOKENS or self.shard_mb > MOST_SHARD_MB:
            raise DataError(
                f"--shard-tokens and --shard-mb may be at most {MOST_SHARD_TOKENS:,} and {MOST_SHARD_MB:,}: a shard is "
                f"made in memory, and a tar member holds less than 8 GiB"
            )
        if not self.shard_mb * 1e6 >= 1:
            raise DataError(f"--shard-mb {self.shard_mb} must be at least a byte")
        if self.max_documents is not None and self.max_documents < 1:
            raise DataError(f"--max-documents {self.max_documents} must be at least 1")
        check_fractions(self.val_fraction, self.test_fraction)
        self.cleaning.check()

    @property
    def size(self) -> ShardSize:
        """When a shard is full."""
        return ShardSize(self.shards, self.shard_tokens if self.shards == TOKENS else int(self.shard_mb * 1e6))

    def splits_of(self, laid_out: str) -> list[str]:
        """Return the splits that documents of a source may go to, given the one it is laid out as, or ""."""
        held_out = (("val", self.val_fraction), ("test", self.test_fraction))
        return [laid_out] if laid_out else ["train", *(split for split, share in held_out if share > 0)]

    def record(self, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """Return what a manifest says of them.

        Args:
            tokenizer: The one that the spec names; None where it is yet to be trained, and for shards of text.
        """
        found: dict[str, Any] = {"shards": self.shards}
        if self.shards == TOKENS:
            kind = self.tokenizer.partition(":")[0]
            known = tokenizer if self.tokenizer != BytesTokenizer.kind else None
            found["tokenizer"] = f"{kind}:{known.fingerprint}" if known else self.tokenizer
            found["shard_tokens"] = self.shard_tokens
        else:
            found["shard_mb"] = float(self.shard_mb)
        found |= {"val_fraction": float(self.val_fraction), "test_fraction": float(self.test_fraction)}
        found |= {"max_documents": self.max_documents, "skip_bad": self.skip_bad}
        found |= asdict(self.cleaning) | {"near_threshold": float(self.cleaning.near_threshold)}
        if self.cleaning.duplicates != "near":
            del found["near_threshold"]
        return found


def read_cleaning(path: Path | None, given: Mapping[str, Any]) -> Cleaning:
    """Return cleaning rules from a YAML file and from options, which win over the file.

    Args:
        path: A file of `Cleaning`'s fields, or None.
        given: Fields by name; None where an option was not given.

    Raises:
        DataError: The file cannot be read, or holds something else.
    """
    chosen: dict[str, Any] = {}
    if path is not None:
        try:
            stored = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise DataError(f"cleaning file {path} cannot be read: {error}") from None
        if not isinstance(stored, dict):
            raise DataError(f"cleaning file {path} must hold lines of the form min_chars: 100")
        chosen |= stored
    types = {"min_chars": int, "max_chars": (int, type(None)), "near_threshold": (int, float)}
    for name, value in chosen.items():
        known = [one.name for one in fields(Cleaning)]
        if name not in known:
            raise DataError(f"cleaning file {path} has {name}, known are {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, types.get(name, str)):  # type: ignore[arg-type]
            raise DataError(f"cleaning file {path}: {name} cannot be {value!r}")
    cleaning = Cleaning(**chosen | {name: value for name, value in given.items() if value is not None})
    cleaning.check()
    return cleaning

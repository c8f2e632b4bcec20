"""Text shards as token shards: fetched, tokenised once per machine, and kept in the cache.

A tokenised shard is named by what decides its content (the SHA-256 of the text shard, the tokenizer's fingerprint and
`RECIPE`), so any number of runs and processes share it and a tokenizer can be swept by configuration alone. Documents
keep the tar's order with the separator in front, as in a prepared shard. Beside every cached file stays a note of its
SHA-256 and its tokens by domain, a few hundred bytes that are never evicted: a resumed run need not open the shards it
skips, and tokens that come out differently after an eviction are an error instead of other data. The price: the first
epoch waits for the tokenizer, and a shard is held in memory while it is tokenised.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from calm_lightning.data.encoding import encode_documents
from calm_lightning.data.files.derived import DerivedFiles
from calm_lightning.data.files.fetch import CorpusFiles
from calm_lightning.data.shards.manifest import Counts, Manifest, ShardRecord
from calm_lightning.data.shards.text import TextDocument, read_text_shard
from calm_lightning.data.shards.tokens import (
    Numbers,
    TokenArray,
    TokenShard,
    open_token_shard,
    token_dtype,
    write_token_shard,
)
from calm_lightning.data.stores.store import OpenShards
from calm_lightning.data.tokenizers import KNOWN_SPECS, BPETokenizer, Tokenizer, make_tokenizer
from calm_lightning.errors import DataError, ShardError

RECIPE = 1
"""Number of the way from a text shard to tokens; a change of it makes all cached tokens anew."""
TRAINING_BYTES = 128 << 20
"""A BPE is trained on this much text from the beginning of the train split, as `calm data prepare` does."""
_BATCH_CHARACTERS = 2 << 20
_BATCH_DOCUMENTS = 1024

_log = logging.getLogger("calm_lightning.data")


class TextStore(OpenShards):
    """Shards of a corpus of text, as a tokenizer sees them."""

    def __init__(self, files: CorpusFiles, manifest: Manifest, tokenizer: Tokenizer) -> None:
        """Prepare to open shards; nothing is read yet.

        Args:
            files: The corpus' files.
            manifest: Its manifest, of the kind "text".
            tokenizer: What to tokenise with.
        """
        super().__init__(files.cache.limit_bytes // 2)
        self._files, self._manifest, self._tokenizer = files, manifest, tokenizer
        self._derived = DerivedFiles(files.cache)
        self.vocabulary, self.separator_id = tokenizer.vocabulary, tokenizer.separator_id
        self._dtype = token_dtype(tokenizer.vocabulary)
        self._counts: dict[str, Mapping[str, int]] = {}

    def tokens(self, split: str, shard: int) -> Mapping[str, int]:
        """See `ShardStore.tokens`: from the shard's note; the first time the shard is tokenised for it."""
        record = self._record(split, shard)
        if record.sha256 in self._counts:
            return self._counts[record.sha256]
        note = self._derived.note(self._key(record))
        if note is None:
            self.open(split, shard)
            note = self._derived.note(self._key(record))
        if note is None:
            raise ShardError(f"shard {record.file}: {self._derived.notes} does not keep what is written there")
        self._counts[record.sha256] = note.tokens
        return note.tokens

    def _record(self, split: str, shard: int) -> ShardRecord:
        return self._manifest.split(split).shards[shard]

    def _key(self, record: ShardRecord) -> str:
        return _digest("tokens", record.sha256, self._tokenizer.fingerprint, str(RECIPE))

    def _still_valid(self, split: str, shard: int) -> None:
        """Do nothing: tokens belong to the text's SHA-256, so a text shard replaced later does not touch them."""

    def _load(self, split: str, shard: int) -> TokenShard:
        record = self._record(split, shard)

        def opened(path: Path) -> TokenShard:
            return open_token_shard(path, self._dtype)

        return self._derived.open(
            self._key(record), lambda path: self._tokenise(record, path), opened, f"tokens of shard {record.file}"
        )

    def _tokenise(self, record: ShardRecord, target: Path) -> Mapping[str, int]:
        """Write the token shard of a text shard; return its tokens by domain."""
        with self._files.open(record, lambda path: path.open("rb")) as file:
            encoded = _tokenised(read_text_shard(file, record.file), self._tokenizer)
        counts = encoded.counts()
        for domain in sorted({*counts, *record.domains}):
            found, recorded = counts.get(domain, Counts()), record.domains.get(domain, Counts())
            if (found.documents, found.text_bytes) != (recorded.documents, recorded.text_bytes):
                raise ShardError(
                    f"shard {record.file} holds {found.documents:,} documents and {found.text_bytes:,} bytes of domain "
                    f"{domain!r}, its manifest says {recorded.documents:,} and {recorded.text_bytes:,}: prepare or "
                    f"index the corpus again"
                )
        names = sorted(counts)
        numbers = {name: number for number, name in enumerate(names)}
        with target.open("wb") as out:
            write_token_shard(
                out,
                "text",
                tokens=encoded.tokens,
                lengths=encoded.lengths,
                domains=[numbers[domain] for domain in encoded.domains],
                text_bytes=encoded.text_bytes,
                names=names,
            )
        return {name: counts[name].tokens for name in names}


class _Tokenised(NamedTuple):
    """A text shard as tokens; fields as the arguments of `write_token_shard`, domains by name."""

    tokens: TokenArray
    lengths: Numbers
    domains: list[str]
    text_bytes: list[int]

    def counts(self) -> dict[str, Counts]:
        """Return what it holds, by domain."""
        sums: dict[str, Counts] = {}
        for domain, length, text_bytes in zip(self.domains, self.lengths.tolist(), self.text_bytes, strict=True):
            sums[domain] = sums.get(domain, Counts()) + Counts(1, length, text_bytes)
        return sums


def _tokenised(documents: Iterable[TextDocument], tokenizer: Tokenizer) -> _Tokenised:
    """Return documents as tokens, in their order; only a batch of texts is held at a time."""
    dtype = token_dtype(tokenizer.vocabulary)
    tokens: list[TokenArray] = [np.empty(0, dtype)]
    lengths: list[Numbers] = [np.empty(0, np.int64)]
    domains: list[str] = []
    text_bytes: list[int] = []
    for batch in _batches(documents):
        encoded, each = encode_documents(tokenizer, [document.text for document in batch], dtype)
        tokens.append(encoded)
        lengths.append(each)
        domains += [document.domain for document in batch]
        text_bytes += [len(document.text.encode()) for document in batch]
    return _Tokenised(np.concatenate(tokens), np.concatenate(lengths), domains, text_bytes)


def _batches(documents: Iterable[TextDocument]) -> Iterator[list[TextDocument]]:
    """Yield documents in lists of about two million characters."""
    batch: list[TextDocument] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def text_tokenizer(files: CorpusFiles, manifest: Manifest, spec: str, *, split: str = "train") -> Tokenizer:
    """Return the tokenizer for a corpus of text; one that has to be trained is kept in the cache.

    Args:
        files: The corpus' files.
        manifest: Its manifest, of the kind "text".
        spec: One of `tokenizers.KNOWN_SPECS`. "bpe:SIZE" is trained on the first `TRAINING_BYTES` of `split`.
        split: Split to train on.

    Raises:
        DataError: No spec, an unknown one, a missing file, or training that cannot reach the size.
    """
    if not spec:
        raise DataError(
            f"{files.corpus} is a corpus of text: name its tokenizer with data.tokenizer, for example "
            f"data.tokenizer=bpe:1024 (known are {KNOWN_SPECS})"
        )
    kind, _, size = spec.partition(":")
    if kind != "bpe" or not size.isdecimal():
        return make_tokenizer(spec, ())

    def train(path: Path) -> Mapping[str, int]:
        _log.info("training tokenizer %s on split %s of %s", spec, split, files.corpus)
        trained = make_tokenizer(spec, _training_texts(files, manifest, split))
        with tempfile.TemporaryDirectory() as directory:
            path.write_bytes(Path(directory, trained.save(Path(directory)) or "").read_bytes())
        return {}

    key = _digest("tokenizer", manifest.corpus_hash, split, str(int(size)), str(TRAINING_BYTES), str(RECIPE))
    return DerivedFiles(files.cache).open(
        key, train, lambda path: BPETokenizer(path.read_bytes(), spec), f"tokenizer {spec} of {files.corpus}"
    )


def _training_texts(files: CorpusFiles, manifest: Manifest, split: str) -> Iterator[str]:
    size = 0
    for record in manifest.split(split).shards:
        with files.open(record, lambda path: path.open("rb")) as file:
            for document in read_text_shard(file, record.file):
                yield document.text
                size += len(document.text.encode())
                if size >= TRAINING_BYTES:
                    return


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

"""Text to evaluate on, as blocks of tokens: documents given as strings, or a split of a prepared corpus.

Both put the separator in front of every document, lay documents end to end and cut blocks; the remainder is left out.
Strings are laid end to end as a whole, a corpus shard by shard. Strings are tokenised in memory at once: meant for
evaluation texts, not for training corpora.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from calm_lightning.data.batch import TokenBatch
from calm_lightning.data.blocks import BlockReader
from calm_lightning.data.config import DataConfig
from calm_lightning.data.corpus import Corpus
from calm_lightning.data.packing import evenly_spaced
from calm_lightning.data.stream import EvaluationBlocks
from calm_lightning.data.tokenizers import Tokenizer
from calm_lightning.errors import DataError

_TOGETHER = 64
"""Documents tokenised in one call."""


class EvaluationText(Protocol):
    """What evaluation needs of a text.

    Attributes:
        sha256: What names the text: for a corpus the hash of its manifest, else that of the texts' bytes.
        split: The corpus' split, or "" where there is no corpus.
        tokenizer: Fingerprint of the tokenizer.
        vocabulary: Its vocabulary size V.
        tokens: Tokens in all, separators included.
        domains: Names of the domains that batches number.
    """

    sha256: str
    split: str
    tokenizer: str
    vocabulary: int
    tokens: int
    domains: tuple[str, ...]

    def block_numbers(self, block_tokens: int, max_blocks: int | None) -> Sequence[int]:
        """Return the blocks to read: all, or `max_blocks` evenly spaced ones; none where the text is too short."""

    def batches(self, block_tokens: int, batch_blocks: int, max_blocks: int | None) -> Iterator[TokenBatch]:
        """Yield these blocks in order, `batch_blocks` at a time, with document and domain of every token."""


class PackedText:
    """Documents given as strings. `sha256` is that of their UTF-8 bytes, a zero byte between documents.

    For a single document it is what `sha256sum` prints for the file.
    """

    split = ""

    def __init__(self, documents: Iterable[tuple[str, str]], tokenizer: Tokenizer) -> None:
        """Tokenise.

        Args:
            documents: Text and domain of every document, in order.
            tokenizer: The model's tokenizer.

        Raises:
            DataError: There is no document.
        """
        digest, names = hashlib.sha256(), dict[str, int]()
        ids, domains = list[NDArray[np.int32]](), list[int]()
        waiting = iter(documents)
        while some := list(islice(waiting, _TOGETHER)):
            for (text, domain), tokens in zip(some, tokenizer.encode_batch([text for text, _ in some]), strict=True):
                digest.update(b"\0" * bool(ids) + text.encode())
                ids.append(np.array([tokenizer.separator_id, *tokens], dtype=np.int32))
                domains.append(names.setdefault(domain, len(names)))
        if not ids:
            raise DataError("the text holds no document")
        self.sha256 = digest.hexdigest()
        self.tokenizer, self.vocabulary = tokenizer.fingerprint, tokenizer.vocabulary
        self.domains = tuple(names)
        self._ids: NDArray[np.int32] = np.concatenate(ids)
        self._ends = np.cumsum([len(document) for document in ids])
        self._document_domains = np.array(domains, dtype=np.int64)
        self.tokens = len(self._ids)

    def block_numbers(self, block_tokens: int, max_blocks: int | None) -> Sequence[int]:
        """See `EvaluationText.block_numbers`."""
        return evenly_spaced(self.tokens // block_tokens, max_blocks)

    def batches(self, block_tokens: int, batch_blocks: int, max_blocks: int | None) -> Iterator[TokenBatch]:
        """See `EvaluationText.batches`."""
        numbers = self.block_numbers(block_tokens, max_blocks)
        for index, begin in enumerate(range(0, len(numbers), batch_blocks)):
            blocks = np.array(numbers[begin : begin + batch_blocks])
            places = blocks[:, None] * block_tokens + np.arange(block_tokens)
            documents = np.searchsorted(self._ends, places, side="right")
            rows = (self._ids[places].astype(np.int64), blocks, documents, self._document_domains[documents])
            tokens, numbers_B, documents_BT, domains_BT = (torch.from_numpy(row) for row in rows)
            yield TokenBatch(tokens, index, numbers_B, documents_BT, domains_BT)


class CorpusSplit:
    """A split of a corpus. `sha256` is the hash that names the corpus."""

    def __init__(self, config: DataConfig, split: str, *, commands: bool = False) -> None:
        """Open the corpus' manifest.

        Args:
            config: The data configuration that names the corpus.
            split: Name of the split.
            commands: See `Corpus`.

        Raises:
            DataError: There is no such corpus or split.
        """
        self._corpus = Corpus(config, commands=commands)
        record = self._corpus.manifest.split(split)
        self.sha256, self.split = self._corpus.hash, split
        self.tokenizer, self.vocabulary = self._corpus.fingerprint, self._corpus.vocabulary
        shards, store = range(len(record.shards)), self._corpus.store
        self._tokens_per_shard = [sum(store.tokens(split, shard).values()) for shard in shards]
        self.tokens = sum(self._tokens_per_shard)
        self.domains = tuple(record.domains)

    def block_numbers(self, block_tokens: int, max_blocks: int | None) -> Sequence[int]:
        """See `EvaluationText.block_numbers`."""
        return evenly_spaced(sum(tokens // block_tokens for tokens in self._tokens_per_shard), max_blocks)

    def batches(self, block_tokens: int, batch_blocks: int, max_blocks: int | None) -> Iterator[TokenBatch]:
        """See `EvaluationText.batches`."""
        reader = BlockReader(self._corpus.store, self._corpus.manifest, self.split, block_tokens, documents=True)
        yield from EvaluationBlocks(reader, batch_blocks=batch_blocks, max_blocks=max_blocks)

"""What is in a corpus: how long its documents are, in which domains, how densely tokenised, how often repeated.

Shards are read one after another and only counts are kept, so memory does not grow with the corpus, but for near
duplicates (see `dedup.py`). Characters and near duplicates need the text, which a corpus of tokens must decode: that is
most of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calm_lightning.data.shards.manifest import TOKENS, Counts, Manifest, SplitRecord
from calm_lightning.data.tokenizers import load_tokenizer
from calm_lightning.errors import DataError
from data_pipelines.cleaning.clean import Cleaning
from data_pipelines.cleaning.dedup import NEAR, DuplicateIndex, fingerprint, signatures
from data_pipelines.inspecting.batches import Batch, BatchReader
from data_pipelines.inspecting.lengths import Lengths
from data_pipelines.inspecting.repeats import RepeatCounter, Repeats


@dataclass(frozen=True)
class DomainStatistics:
    """One domain of a split.

    Attributes:
        counts: What it holds.
        lengths: Lengths of its documents, in the unit of the corpus.
    """

    counts: Counts
    lengths: Lengths


@dataclass(frozen=True)
class Blocks:
    """What cutting a split into blocks gives.

    Attributes:
        tokens: Block length T.
        blocks: Whole blocks.
        left_over: Tokens that are in no block: each shard's remainder.
        whole_documents: About how many documents are at least a block long.
    """

    tokens: int
    blocks: int
    left_over: int
    whole_documents: int


@dataclass(frozen=True)
class SplitStatistics:
    """One split.

    Attributes:
        shards: Number of its shards.
        counts: What it holds.
        lengths: Lengths of its documents by unit: "tokens", "characters", "bytes".
        domains: Its domains, sorted by name.
        blocks: Its blocks, None where there are no tokens.
    """

    shards: int
    counts: Counts
    lengths: Mapping[str, Lengths]
    domains: Mapping[str, DomainStatistics]
    blocks: Blocks | None


@dataclass(frozen=True)
class NearDuplicates:
    """Documents that nearly repeat an earlier one, held-out splits being the earlier ones, as cleaning finds them.

    Attributes:
        threshold: Least similarity (Jaccard, of 5-word shingles).
        documents: Such documents, by split in the order they were judged; exact repetitions are not among them.
    """

    threshold: float
    documents: Mapping[str, int]


@dataclass(frozen=True)
class Statistics:
    """All of it.

    Attributes:
        name: Name of the corpus directory.
        kind: "tokens" or "text".
        corpus_hash: Hash that names the corpus.
        tokenizer: The tokenizer in a few words, "" for text.
        splits: By name.
        repeats: Documents that are repeated exactly.
        near: Documents that are nearly repeated, None where that was not asked.
    """

    name: str
    kind: str
    corpus_hash: str
    tokenizer: str
    splits: Mapping[str, SplitStatistics]
    repeats: Repeats
    near: NearDuplicates | None

    @property
    def unit(self) -> str:
        """Unit that lengths are foremost measured in: "tokens" where there are any."""
        return "tokens" if self.kind == TOKENS else "characters"

    @property
    def units(self) -> list[str]:
        """All units that lengths were measured in."""
        return list(next(iter(self.splits.values())).lengths) if self.splits else []

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON knows."""
        repeats = asdict(self.repeats) | {
            "also_in": [
                {"split": one, "other": other, "documents": n} for (one, other), n in self.repeats.also_in.items()
            ],
            "groups": [{"copies": copies, "texts": texts} for copies, texts in self.repeats.groups.items()],
        }
        return {
            "corpus": self.name,
            "kind": self.kind,
            "corpus_hash": self.corpus_hash,
            "tokenizer": self.tokenizer,
            "splits": {name: _split_dict(split) for name, split in self.splits.items()},
            "exact_duplicates": repeats,
            "near_duplicates": asdict(self.near) if self.near else None,
        }


def _split_dict(split: SplitStatistics) -> dict[str, Any]:
    return {
        "shards": split.shards,
        **asdict(split.counts),
        "blocks": asdict(split.blocks) if split.blocks else None,
        "lengths": {unit: lengths.to_dict() for unit, lengths in split.lengths.items()},
        "domains": {
            name: asdict(domain.counts) | {"lengths": domain.lengths.to_dict()}
            for name, domain in split.domains.items()
        },
    }


@dataclass
class _Tally:
    """Counts of one split while they grow."""

    lengths: dict[str, Lengths] = field(default_factory=dict)
    domains: dict[str, Lengths] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)

    def add(self, batch: Batch, unit: str) -> None:
        """Count a batch."""
        for name, values in batch.lengths.items():
            self.lengths.setdefault(name, Lengths()).add(values)
        names, codes = np.unique(np.asarray(batch.domains, dtype=object), return_inverse=True)
        for code, domain in enumerate(names.tolist()):
            own = codes == code
            sums = {name: int(values[own].sum()) for name, values in batch.lengths.items()}
            more = Counts(int(own.sum()), sums.get("tokens", 0), sums["bytes"])
            self.counts[domain] = self.counts.get(domain, Counts()) + more
            self.domains.setdefault(domain, Lengths()).add(batch.lengths[unit][own])


class _Near:
    """Counts near duplicates among documents given in order."""

    def __init__(self, threshold: float) -> None:
        self._index = DuplicateIndex(Cleaning(duplicates="near", near_threshold=threshold))
        self._threshold = threshold
        self._found: dict[str, int] = {}

    def add(self, split: str, texts: Sequence[str]) -> None:
        """Judge the next documents of a split."""
        verdicts = self._index.judge([fingerprint(text) for text in texts], signatures(texts))
        self._found[split] = self._found.get(split, 0) + verdicts.count(NEAR)

    def result(self) -> NearDuplicates:
        """Return what was found."""
        return NearDuplicates(self._threshold, dict(self._found))


def measure(
    corpus: Path,
    shards_at: Path | None = None,
    *,
    block_tokens: int = 768,
    characters: bool = True,
    near_threshold: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> Statistics:
    """Read a corpus and return its statistics.

    Args:
        corpus: The corpus directory.
        shards_at: Directory of the shards, where it is another one.
        block_tokens: Block length T to count blocks for.
        characters: Decode a corpus of tokens to count characters.
        near_threshold: Count near duplicates from this similarity on; None: do not.
        progress: Called with the size in bytes of every shard just read.

    Raises:
        DataError: The corpus cannot be read, or has no document, or the similarity is out of range.
    """
    if near_threshold is not None:
        Cleaning(near_threshold=near_threshold).check()
    manifest = Manifest.load(corpus)
    if not any(split.totals.documents for split in manifest.splits.values()):
        raise DataError(f"{corpus} has no document: prepare it from sources that have some")
    record = manifest.tokenizer
    near = _Near(near_threshold) if near_threshold is not None else None
    tokenizer = load_tokenizer(corpus, record) if record and (characters or near) else None
    reader = BatchReader(shards_at or corpus, manifest, tokenizer, near is not None)
    unit = "tokens" if record else "characters"
    tallies = {name: _Tally() for name, split in manifest.splits.items() if split.totals.documents}
    with RepeatCounter(list(tallies)) as counter:
        for name in sorted(tallies, key=lambda split: (split == "train", split)):
            for shard in manifest.splits[name].shards:
                for batch in reader.batches(shard):
                    tallies[name].add(batch, unit)
                    counter.add(name, batch.hashes)
                    if near:
                        near.add(name, batch.texts)
                if progress:
                    progress(shard.bytes)
        repeats = counter.finish()
    return Statistics(
        name=corpus.resolve().name,
        kind=manifest.kind,
        corpus_hash=manifest.corpus_hash,
        tokenizer=f"{record.kind}, {record.vocabulary:,} entries" if record else "",
        splits={name: _finish(tally, manifest.splits[name], block_tokens) for name, tally in tallies.items()},
        repeats=repeats,
        near=near.result() if near else None,
    )


def _finish(tally: _Tally, record: SplitRecord, block_tokens: int) -> SplitStatistics:
    """Return the statistics of a split that has been read to its end."""
    blocks = None
    if "tokens" in tally.lengths:
        whole, left = sum(record.blocks(block_tokens)), record.dropped_tokens(block_tokens)
        blocks = Blocks(block_tokens, whole, left, tally.lengths["tokens"].at_least(block_tokens))
    return SplitStatistics(
        shards=len(record.shards),
        counts=sum(tally.counts.values(), Counts()),
        lengths=tally.lengths,
        domains={name: DomainStatistics(tally.counts[name], tally.domains[name]) for name in sorted(tally.counts)},
        blocks=blocks,
    )

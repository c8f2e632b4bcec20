"""Fixtures that several rooms' tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from calm_lightning.data.shards.manifest import TOKENS, Counts, Manifest, Provenance, ShardRecord, SplitRecord
from calm_lightning.data.shards.tokens import file_sha256, write_token_shard
from calm_lightning.data.tokenizers import BytesTokenizer, record_of

Rows = Sequence[tuple[str, str]]
MakeCorpus = Callable[[Path, Mapping[str, Rows], int], Manifest]


def _write_shard(path: Path, rows: Rows) -> ShardRecord:
    tokenizer, names = BytesTokenizer(), sorted({domain for _, domain in rows})
    ids = [[tokenizer.separator_id, *tokenizer.encode(text)] for text, _ in rows]
    with path.open("wb") as file:
        write_token_shard(
            file,
            path.stem,
            tokens=np.array([i for document in ids for i in document], dtype="uint16"),
            lengths=[len(document) for document in ids],
            domains=[names.index(domain) for _, domain in rows],
            text_bytes=[len(document) - 1 for document in ids],
            names=names,
        )
    domains: dict[str, Counts] = {}
    for document, (_, domain) in zip(ids, rows, strict=True):
        domains[domain] = domains.get(domain, Counts()) + Counts(1, len(document), len(document) - 1)
    return ShardRecord(path.name, path.stat().st_size, file_sha256(path), domains)


@pytest.fixture(scope="session")
def make_corpus() -> MakeCorpus:
    """Return a function that writes a corpus of bytes from (text, domain) rows by split, so many rows a shard."""

    def make(out: Path, splits: Mapping[str, Rows], per_shard: int) -> Manifest:
        out.mkdir(parents=True, exist_ok=True)
        records = {}
        for split, rows in splits.items():
            parts = [rows[i : i + per_shard] for i in range(0, len(rows), per_shard)]
            shards = (_write_shard(out / f"{split}-{i:06d}.tar", part) for i, part in enumerate(parts))
            records[split] = SplitRecord(tuple(shards))
        manifest = Manifest(TOKENS, record_of(BytesTokenizer(), None), "uint16", records, Provenance())
        manifest.save(out)
        return manifest

    return make

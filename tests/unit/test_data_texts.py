"""Evaluation texts: blocks, and which document and domain every token is of."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_lightning.data.batch import TokenBatch
from calm_lightning.data.config import DataConfig
from calm_lightning.data.texts import CorpusSplit, EvaluationText, PackedText
from calm_lightning.data.tokenizers import BytesTokenizer
from calm_lightning.errors import DataError
from data_pipelines.prepare import prepare

SEPARATOR = BytesTokenizer.separator_id


def read(text: EvaluationText, block_tokens: int, batch_blocks: int) -> list[TokenBatch]:
    return list(text.batches(block_tokens, batch_blocks, None))


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(max_size=12), min_size=1, max_size=150),
    block_tokens=st.integers(2, 9),
    batch_blocks=st.integers(1, 4),
)
def test_blocks_hold_the_documents_one_after_the_other(texts: list[str], block_tokens: int, batch_blocks: int) -> None:
    packed = PackedText(((text, f"domain {len(text) % 3}") for text in texts), BytesTokenizer())
    flow = [
        (token, number, f"domain {len(text) % 3}")
        for number, text in enumerate(texts)
        for token in (SEPARATOR, *text.encode())
    ]
    assert packed.tokens == len(flow)
    assert packed.sha256 == hashlib.sha256("\0".join(texts).encode()).hexdigest()
    batches = read(packed, block_tokens, batch_blocks)
    assert [batch.index for batch in batches] == list(range(len(batches)))
    seen = []
    for batch in batches:
        assert batch.documents is not None and batch.domains is not None
        rows = (part.flatten().tolist() for part in (batch.tokens, batch.documents, batch.domains))
        seen += [(token, number, packed.domains[domain]) for token, number, domain in zip(*rows, strict=True)]
    assert seen == flow[: len(flow) // block_tokens * block_tokens]
    assert [int(n) for batch in batches for n in batch.blocks] == list(packed.block_numbers(block_tokens, None))


def test_a_corpus_split_tells_the_same_of_its_tokens(tmp_path: Path) -> None:
    for split, count in (("train", 30), ("val", 40)):
        rows = [{"text": f"{split} {i} " * (i % 7 + 1), "meta": {"pile_set_name": "ab"[i % 2]}} for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare([tmp_path / "train.jsonl", tmp_path / "val.jsonl"], tmp_path / "corpus", "bytes", shard_tokens=300)
    text = CorpusSplit(DataConfig(str(tmp_path / "corpus")), "val")
    assert text.domains == ("a", "b")
    seen: dict[int, set[int]] = {}
    for batch in read(text, 16, 3):
        assert batch.documents is not None and batch.domains is not None
        for token, document, domain in zip(
            batch.tokens.flatten().tolist(),
            batch.documents.flatten().tolist(),
            batch.domains.flatten().tolist(),
            strict=True,
        ):
            assert domain == document % 2, "documents are numbered over all shards"
            seen.setdefault(document, set()).add(token)
    assert len(seen) > 30
    for document, tokens in seen.items():
        assert tokens - {SEPARATOR} <= set(f"val {document} ".encode())
    assert len(text.block_numbers(16, 5)) == 5
    with pytest.raises(DataError, match="no split 'tset'"):
        CorpusSplit(DataConfig(str(tmp_path / "corpus")), "tset")


def test_a_text_without_documents_is_refused() -> None:
    with pytest.raises(DataError, match="holds no document"):
        PackedText((), BytesTokenizer())

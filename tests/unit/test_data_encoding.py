"""Documents of any length give the ids of encoding them in one go."""

from __future__ import annotations

import os
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calm_lightning.data import encoding
from calm_lightning.data.encoding import encode_documents, segments
from calm_lightning.data.tokenizers import BytesTokenizer, Tokenizer, make_tokenizer, train_bpe

LLAMA3 = os.environ.get("CALM_LLAMA3_TOKENIZER")
ALPHABET = st.sampled_from("ab'sStZéßıʼ日本 \n\t  19_-.,!🙂e\u0301\r")
WORDS = st.text(alphabet=ALPHABET, max_size=300)
PLACES = st.lists(st.text(alphabet=ALPHABET, max_size=12), min_size=4, max_size=40).map("a b".join)
"""Texts with a good place to cut every 15 characters."""
ANY = st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=200)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(["The cat's mat, they're 19 and 1984: a b c d. Straße naïve 日本 the cat sat"] * 20, 290)


@pytest.fixture(scope="module")
def llama3() -> Tokenizer:
    if not LLAMA3:
        pytest.skip("CALM_LLAMA3_TOKENIZER names no tokenizer.model")
    return make_tokenizer(f"llama3:{LLAMA3}", ())


@given(st.one_of(WORDS, ANY), st.integers(1, 40), st.integers(1, 40))
def test_segments_are_the_text_and_bounded(text: str, length: int, searched: int) -> None:
    parts = list(segments(text, length, searched))
    assert "".join(parts) == text
    assert all(0 < len(part) <= length for part in parts) or not text


@pytest.mark.parametrize("name", ["bpe", "llama3"])
def test_segments_give_the_ids_of_the_text_in_one_go(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)

    @given(PLACES, st.integers(32, 80))
    def check(text: str, length: int) -> None:
        parts = list(segments(text, length, length))
        assert all(one[-1].isalpha() and other[0] == " " and other[1].isalpha() for one, other in pairwise(parts))
        assert [i for ids in tokenizer.encode_batch(parts) for i in ids] == tokenizer.encode(text)

    check()


@given(texts=st.lists(WORDS, max_size=8))
def test_every_document_has_its_separator_and_its_length(bpe: Tokenizer, texts: list[str]) -> None:
    tokens, lengths = encode_documents(bpe, texts, "uint16")
    assert tokens.dtype == np.uint16 and len(lengths) == len(texts)
    assert tokens.tolist() == [i for text in texts for i in [bpe.separator_id, *bpe.encode(text)]]
    assert lengths.tolist() == [1 + len(bpe.encode(text)) for text in texts]


def test_a_long_text_between_short_ones(bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_BATCH_CHARS", 1000)
    texts = ["the cat", "the cat sat on a mat, " * (encoding.SEGMENT_CHARS // 10), "", "sat"]
    tokens, lengths = encode_documents(bpe, texts, "uint32")
    ends = np.cumsum(lengths)
    assert bpe.decode(tokens[ends[0] + 1 : ends[1]].tolist()) == texts[1]
    assert tokens[ends[0] + 1 : ends[1]].tolist() == bpe.encode(texts[1])
    assert tokens[ends[2] :].tolist() == [bpe.separator_id, *bpe.encode("sat")]


def test_ten_million_characters_without_a_space_take_bounded_memory() -> None:
    text = "x" * 10_000_000
    tracemalloc.start()
    tokens, _ = encode_documents(BytesTokenizer(), [text], "uint16")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(tokens) == len(text) + 1
    assert peak < 2 * tokens.nbytes + 40_000_000  # a list of all ids alone would be 80 MB

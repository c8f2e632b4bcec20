"""Repetition and vocabulary, against plain loops over positions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calm_lightning.diagnostics.ngrams import distinct_share, ngram_ids, repeated, unigram_divergence

ROWS = st.integers(4, 12).flatmap(
    lambda T: st.lists(st.lists(st.integers(0, 2), min_size=T, max_size=T), min_size=1, max_size=3)
)


@given(ROWS, st.integers(1, 4))
def test_repeated_and_distinct_as_counted_by_hand(rows: list[list[int]], n: int) -> None:
    tokens_RT = torch.tensor(rows)
    found, shares = repeated(tokens_RT, n), distinct_share(tokens_RT, n)
    for row, tokens in enumerate(rows):
        grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        seen = [gram in grams[:place] for place, gram in enumerate(grams)]
        assert found[row].tolist() == [False] * (n - 1) + seen
        assert float(shares[row]) == pytest.approx(len(set(grams)) / len(grams))


def test_ids_of_a_large_vocabulary_do_not_overflow() -> None:
    tokens_RT = torch.tensor([[2**40, 2**40 + 1, 2**40, 2**40 + 1, 7, 2**40]])
    ids = ngram_ids(tokens_RT, 2)[0].tolist()
    assert ids[0] == ids[2] and len(set(ids)) == 4


def test_divergence_by_hand() -> None:
    windows_WP = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2]])
    reference_N = torch.tensor([0, 0, 0, 1, 1, 1])
    found = unigram_divergence(windows_WP, reference_N, vocabulary=3)
    q = [3.5 / 7.5, 3.5 / 7.5, 0.5 / 7.5]
    assert found.tolist() == pytest.approx([math.log(0.5 / q[0]), math.log(1 / q[2])])

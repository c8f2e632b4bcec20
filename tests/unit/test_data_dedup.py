"""Duplicates: planted ones are found, others are not, and neither batches nor a restart change a verdict."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from calm_lightning.errors import DataError
from data_pipelines.cleaning.clean import Cleaning
from data_pipelines.cleaning.dedup import (
    EXACT,
    NEAR,
    PERMUTATIONS,
    RECALL,
    DuplicateIndex,
    Signatures,
    bands_for,
    fingerprint,
    signatures,
)

WORDS = [f"word{i}" for i in range(3000)]


def text(seed: int, words: int = 400) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def edited(original: str, seed: int, changes: int) -> str:
    words, rng = original.split(), random.Random(seed)
    for place in rng.sample(range(len(words)), changes):
        words[place] = "changed"
    return " ".join(words)


def shingles(one: str) -> set[tuple[str, ...]]:
    words = one.lower().split()
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def verdicts(texts: list[str], kind: str = "near", batch: int = 1000, threshold: float = 0.8) -> list[str | None]:
    index = DuplicateIndex(Cleaning(duplicates=kind, near_threshold=threshold))
    result: list[str | None] = []
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        result += index.judge([fingerprint(t) for t in part], signatures(part) if kind == "near" else None)
    return result


def test_exact_duplicates_are_equal_texts() -> None:
    texts = ["a b", "a  b", "a b", "A b", "a  b", ""]
    assert verdicts(texts, "exact", batch=2) == [None, None, EXACT, None, EXACT, None]
    assert len({fingerprint(t) for t in texts}) == 4 and {len(fingerprint(t)) for t in texts} == {16}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_planted_near_duplicates_are_found_and_others_are_not(seed: int) -> None:
    originals = [text(seed + i) for i in range(20)]
    copies = [edited(original, seed, 4) for original in originals]  # at most 40 of 792 shingles differ
    other = [edited(original, seed, 120) for original in originals]
    assert verdicts([*originals, *copies, *other]) == [None] * 20 + [NEAR] * 20 + [None] * 20


def test_case_and_white_space_do_not_matter() -> None:
    one = text(0)
    assert verdicts([one, one.upper().replace(" ", "\n\t")]) == [None, NEAR]


def test_a_short_text_is_one_shingle() -> None:
    assert verdicts(["one two three", "One  two three", "one two four", "one two", " ", "\n"]) == [
        None,
        NEAR,
        None,
        None,
        None,
        NEAR,
    ]


def test_signatures_estimate_the_similarity_of_shingles() -> None:
    errors = []
    for seed in range(60):
        one = text(seed)
        other = edited(one, seed, random.Random(seed).randrange(1, 60))
        a, b = signatures([one, other])
        true = len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))
        errors.append(float((a == b).mean()) - true)
    # A binomial share of 128: standard deviation at most 0.045.
    assert abs(float(np.mean(errors))) < 3 * 0.045 / 60**0.5 and float(np.std(errors)) < 0.06


def test_a_long_text_has_the_signature_of_all_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text(1, 500), "x" * 300, text(2, 3) + " " + "y" * 200 + " z"]
    whole = signatures(texts)
    monkeypatch.setattr("data_pipelines.cleaning.dedup._PIECE_CHARS", 50)
    assert (signatures(texts) == whole).all() and whole.shape == (3, PERMUTATIONS) and whole.dtype == np.uint32
    assert signatures([]).shape == (0, PERMUTATIONS)


def test_signatures_do_not_change_between_versions() -> None:
    # Corpora name the version of the package, and a continued preparation mixes old signatures with new ones.
    first = signatures(["the quick brown fox jumps over the lazy dog"])[0]
    assert first[:3].tolist() == [3311012880, 3415880424, 3543926656]


def related(seed: int, number: int) -> Signatures:
    """Return signatures in families of all degrees of similarity."""
    rng = np.random.default_rng(seed)
    parents = rng.integers(0, 2**32, (5, PERMUTATIONS), dtype=np.uint32)
    rows = parents[rng.integers(0, 5, number)]
    fresh: NDArray[np.bool_] = rng.random((number, PERMUTATIONS)) < rng.random((number, 1)) * 0.4
    return np.where(fresh, rng.integers(0, 2**32, rows.shape, dtype=np.uint32), rows)


def reference(rows: Signatures, threshold: float) -> list[str | None]:
    """Compare each document with every kept one that shares a band with it."""
    bands, length = bands_for(threshold)
    kept: list[NDArray[np.uint32]] = []
    result: list[str | None] = []
    for row in rows:
        cut = row[: bands * length].reshape(bands, length)
        near = any(
            (cut == other[: bands * length].reshape(bands, length)).all(axis=1).any()
            and (row == other).mean() >= threshold
            for other in kept
        )
        result.append(NEAR if near else None)
        if not near:
            kept.append(row)
    return result


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 150), min_size=1, max_size=6), st.sampled_from([0.5, 0.8, 0.95]))
def test_batches_do_not_matter_and_no_candidate_is_missed(seed: int, sizes: list[int], threshold: float) -> None:
    rows = related(seed, sum(sizes))  # beyond 256, several portions
    index = DuplicateIndex(Cleaning(duplicates="near", near_threshold=threshold))
    result: list[str | None] = []
    for size in sizes:
        part = range(len(result), len(result) + size)
        result += index.judge([number.to_bytes(16, "big") for number in part], rows[part])
    assert result == reference(rows, threshold)


def test_an_index_fed_again_is_the_same() -> None:
    rows = related(1, 900)
    names = [number.to_bytes(16, "big") for number in range(900)]
    whole, again = (DuplicateIndex(Cleaning(duplicates="near")) for _ in range(2))
    expected = whole.judge(names[:600], rows[:600]), whole.judge(names[600:], rows[600:])
    assert again.judge(names[:600], rows[:600]) == expected[0]
    assert again.judge(names[600:], rows[600:]) == expected[1]
    assert whole.judge(names, rows) == [EXACT] * 900


def test_many_alike_documents_are_compared_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipelines.cleaning.dedup._PAIRS", 100)
    rows = related(2, 500)
    names = [number.to_bytes(16, "big") for number in range(500)]
    assert DuplicateIndex(Cleaning(duplicates="near")).judge(names, rows) == reference(rows, 0.8)


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
def test_bands_compare_most_pairs_at_the_threshold(threshold: float) -> None:
    bands, length = bands_for(threshold)
    assert bands * length <= PERMUTATIONS
    assert 1 - (1 - threshold**length) ** bands >= RECALL
    assert 1 - (1 - (threshold / 2) ** length) ** bands < 0.6  # and few of the pairs far below it


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(DataError, match=r"rensa.*pip install 'calm-lightning\[data\]'.*--duplicates exact"):
        signatures(["a"])


def test_an_index_needs_what_it_compares() -> None:
    with pytest.raises(ValueError, match="signature"):
        DuplicateIndex(Cleaning(duplicates="near")).judge([b"x" * 16])
    with pytest.raises(ValueError, match="nothing to do"):
        DuplicateIndex(Cleaning())

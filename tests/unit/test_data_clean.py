"""Cleaning rules: what they change, what they drop, and settings that cannot be."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calm_lightning.errors import DataError
from data_pipelines.cleaning.clean import Cleaning, clean
from data_pipelines.reading.sources import Document


def cleaned(text: str, **settings: Any) -> str:
    """Return the text that is left, or "!" and the rule that dropped it."""
    result = clean(Document(text, "D", "a.jsonl"), Cleaning(**settings))
    return f"!{result}" if isinstance(result, str) else result.text


@pytest.mark.parametrize("settings", [{}, {"min_chars": 0}, {"normalise": "NFKC"}])
def test_empty_text_is_always_dropped(settings: dict[str, Any]) -> None:
    assert cleaned("", **settings) == "!empty"


def test_limits_are_inclusive() -> None:
    limits = {"min_chars": 3, "max_chars": 5}
    assert [cleaned("é" * n, **limits)[:4] for n in range(2, 7)] == ["!too", "ééé", "éééé", "éééé", "!too"]
    assert cleaned("ab", **limits) == "!too short" and cleaned("abcdef", **limits) == "!too long"


def test_lengths_are_those_of_the_normalised_text() -> None:
    decomposed = "e\u0301" * 3
    assert cleaned(decomposed, max_chars=3) == "!too long"
    assert cleaned(decomposed, max_chars=3, normalise="NFC") == "ééé"
    assert cleaned("ﬁ", min_chars=2, normalise="NFC") == "!too short"
    assert cleaned("ﬁ", min_chars=2, normalise="NFKC") == "fi"


@given(st.text(min_size=1), st.sampled_from(["none", "NFC", "NFKC"]))
def test_normalisation_is_unicodes_and_nothing_else_changes(text: str, form: Any) -> None:
    document = Document(text, "D", "a.jsonl")
    expected = text if form == "none" else unicodedata.normalize(form, text)
    once = clean(document, Cleaning(normalise=form))
    assert once == Document(expected, "D", "a.jsonl")
    assert isinstance(once, Document) and clean(once, Cleaning(normalise=form)) == once


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_chars": -1}, "--min-chars -1 must not be negative"),
        ({"max_chars": 0}, "--max-chars 0 must be at least 1"),
        ({"min_chars": 5, "max_chars": 4}, "--max-chars 4 must .* not below --min-chars"),
        ({"normalise": "nfc"}, "--normalise nfc is not one of none, NFC, NFKC"),
        ({"duplicates": "drop"}, "--duplicates drop is not one of keep, exact, near"),
        ({"near_threshold": 0.3}, r"--near-threshold 0\.3 must be between 0\.5 and 1"),
        ({"near_threshold": 1.5}, "--near-threshold"),
        ({"near_threshold": float("nan")}, "--near-threshold"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Cleaning(**settings).check()


def test_usual_settings_are_fine() -> None:
    for cleaning in (Cleaning(), Cleaning(min_chars=0, max_chars=1), Cleaning(duplicates="near", near_threshold=1)):
        cleaning.check()

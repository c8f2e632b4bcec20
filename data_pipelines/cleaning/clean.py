"""Cleaning rules: a document in, the cleaned document or the name of the rule that dropped it out.

Rules look at one document and nothing else, so any process may apply them in any order of documents; duplicates,
which need a memory, are found by `dedup.py`. Nothing is repaired but Unicode normalisation where it is asked for:
a corpus should be what its sources say.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from typing import Literal

from calm_lightning.errors import DataError
from data_pipelines.reading.sources import Document

NORMAL_FORMS = ("none", "NFC", "NFKC")
DUPLICATES = ("keep", "exact", "near")
EMPTY, TOO_SHORT, TOO_LONG = "empty", "too short", "too long"


@dataclass(frozen=True)
class Cleaning:
    """What is done to documents before they are tokenised.

    Attributes:
        min_chars: Shorter texts are dropped, in characters (Unicode code points).
        max_chars: Longer texts are dropped, in characters; None for no limit.
        normalise: Unicode normal form of the text: "none" (as it is), "NFC" or "NFKC".
        duplicates: "keep" them, drop "exact" ones, or "near" ones too.
        near_threshold: From this estimated Jaccard similarity of their 5-word shingles on, texts are near duplicates.
    """

    min_chars: int = 1
    max_chars: int | None = None
    normalise: str = "none"
    duplicates: str = "keep"
    near_threshold: float = 0.8

    def check(self) -> None:
        """Check the settings against each other.

        Raises:
            DataError: One cannot be.
        """
        if self.min_chars < 0:
            raise DataError(f"--min-chars {self.min_chars} must not be negative")
        if self.max_chars is not None and self.max_chars < max(self.min_chars, 1):
            raise DataError(f"--max-chars {self.max_chars} must be at least 1 and not below --min-chars")
        if self.normalise not in NORMAL_FORMS:
            raise DataError(f"--normalise {self.normalise} is not one of {', '.join(NORMAL_FORMS)}")
        if self.duplicates not in DUPLICATES:
            raise DataError(f"--duplicates {self.duplicates} is not one of {', '.join(DUPLICATES)}")
        if not 0.5 <= self.near_threshold <= 1:
            raise DataError(f"--near-threshold {self.near_threshold} must be between 0.5 and 1")


def clean(document: Document, cleaning: Cleaning) -> Document | str:
    """Return the cleaned document, or the name of the rule that drops it.

    Args:
        document: The document.
        cleaning: Checked settings.

    Returns:
        The document, its text normalised; or "empty" (no text at all is always dropped), "too short" or "too long",
        judged after normalisation.
    """
    text = document.text
    form: Literal["NFC", "NFKC"] | None = {"NFC": "NFC", "NFKC": "NFKC"}.get(cleaning.normalise)  # type: ignore[assignment]
    if form and not unicodedata.is_normalized(form, text):
        text = unicodedata.normalize(form, text)
    if not text:
        return EMPTY
    if len(text) < cleaning.min_chars:
        return TOO_SHORT
    if cleaning.max_chars is not None and len(text) > cleaning.max_chars:
        return TOO_LONG
    return document if text is document.text else replace(document, text=text)

"""Which split a document belongs to, where its sources are not laid out by split.

The hash of the text decides, so the choice depends on nothing else: adding files or changing their order
moves no document to another split, and exact duplicates stay on one side.
"""

from __future__ import annotations

import hashlib

from calm_lightning.errors import DataError


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Check that the fractions leave something to train on.

    Raises:
        DataError: One is negative, or together they reach 1.
    """
    # said the other way round, so that nan is refused as well
    if not (val_fraction >= 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
        raise DataError(
            f"--val-fraction {val_fraction} and --test-fraction {test_fraction} must not be negative "
            f"and must together stay below 1"
        )


def hash_split(text: str, val_fraction: float, test_fraction: float) -> str:
    """Return "train", "val" or "test" from the hash of a text.

    Args:
        text: The document's text.
        val_fraction: Expected share of "val", in [0, 1).
        test_fraction: Expected share of "test", in [0, 1).
    """
    digest = hashlib.sha256(text.encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    if point < val_fraction:
        return "val"
    return "test" if point < val_fraction + test_fraction else "train"

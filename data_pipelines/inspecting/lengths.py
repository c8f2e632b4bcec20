"""How long documents are, in memory that does not grow with their number.

Lengths are counted in bins: one per length below 512, above it 256 per doubling. Totals, the smallest and the largest
are exact; percentiles are exact below 512 and right to 0.4 % above. An exact answer would keep every length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calm_lightning.data.shards.tokens import Numbers

PERCENTILES = (5, 25, 50, 75, 95, 99)
_BITS = 8
_EXACT = 2 << _BITS


class Lengths:
    """A distribution of lengths.

    Attributes:
        count: Documents.
        total: Sum of their lengths.
        smallest: The shortest.
        largest: The longest.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.count = self.total = self.smallest = self.largest = 0
        self._bins: Numbers = np.zeros(0, dtype=np.int64)

    def add(self, values: Numbers) -> None:
        """Count more documents.

        Args:
            values: Their lengths, not negative, (documents,).
        """
        if not len(values):
            return
        low, high = int(values.min()), int(values.max())
        self.smallest = min(self.smallest, low) if self.count else low
        self.largest = max(self.largest, high)
        self.count += len(values)
        self.total += int(values.sum())
        more = np.bincount(_bin_of(values), minlength=len(self._bins))
        more[: len(self._bins)] += self._bins
        self._bins = more

    @property
    def mean(self) -> float:
        """Mean length, 0 where there is no document."""
        return self.total / self.count if self.count else 0.0

    def percentile(self, percent: float) -> int:
        """Return the smallest length that at least so many percent of the documents do not exceed."""
        if not self.count:
            return 0
        rank = max(1, int(np.ceil(self.count * percent / 100)))
        place = int(np.searchsorted(np.cumsum(self._bins), rank))
        return min(max(int(_middle(np.array([place]))[0]), self.smallest), self.largest)

    def histogram(self, edges: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the documents between edges, and about how much length they hold together.

        Args:
            edges: Rising edges; a bin holds lengths from its lower edge to below its upper one. Lengths outside are
                left out.
        """
        used = np.flatnonzero(self._bins)
        middles, documents = _middle(used), self._bins[used]
        place = np.searchsorted(np.asarray(edges), middles, side="right") - 1
        inside = (place >= 0) & (place < len(edges) - 1)
        counts, lengths = np.zeros(len(edges) - 1, dtype=np.int64), np.zeros(len(edges) - 1, dtype=np.int64)
        np.add.at(counts, place[inside], documents[inside])
        np.add.at(lengths, place[inside], documents[inside] * middles[inside])
        return counts.tolist(), lengths.tolist()

    def at_least(self, length: int) -> int:
        """Return about how many documents are at least so long."""
        used = np.flatnonzero(self._bins)
        return int(self._bins[used[_middle(used) >= length]].sum())

    def to_dict(self) -> dict[str, Any]:
        """Return the distribution as values that JSON knows."""
        edges = log_edges(self.largest)
        return {
            "documents": self.count,
            "total": self.total,
            "mean": self.mean,
            "min": self.smallest,
            **{f"p{percent}": self.percentile(percent) for percent in PERCENTILES},
            "max": self.largest,
            "histogram": {"edges": edges, "documents": self.histogram(edges)[0]},
        }


def log_edges(largest: int, per_doubling: int = 2) -> list[int]:
    """Return whole, rising edges from 0 to above `largest`, so many per doubling where whole numbers allow it."""
    steps = per_doubling * (max(largest, 1).bit_length() + 1)
    edges = sorted({0, *(round(2 ** (step / per_doubling)) for step in range(steps))})
    behind = next(place for place, edge in enumerate(edges) if edge > largest)
    return edges[: behind + 1]


def _bin_of(values: Numbers) -> Numbers:
    """Return the bin of every length: 256 per doubling are told apart by the 9 leading bits."""
    bits = np.frexp(values.astype(np.float64))[1].astype(np.int64)
    shift = np.maximum(bits - (_BITS + 1), 0)
    return (shift << _BITS) + (values >> shift)


def _middle(bins: Numbers) -> NDArray[np.int64]:
    """Return the length in the middle of every bin."""
    shift = np.where(bins < _EXACT, 0, (bins >> _BITS) - 1)
    low = np.where(bins < _EXACT, bins, bins - (shift << _BITS)) << shift
    return low + ((1 << shift) - 1) // 2

"""Duplicate documents, found by fingerprints (exact) and MinHash signatures (near).

Fingerprints and signatures are pure functions of a text, made in worker processes; one `DuplicateIndex` judges them
in order. A near duplicate is found by locality-sensitive hashing and confirmed by the estimated Jaccard similarity
(standard error at most 0.045): a pair at the threshold is found half the time, one well above it all but surely,
which is the price of not comparing every pair. The signatures are rensa's. Its index takes only its own sketch
objects, not signatures that another process wrote down, so the index here is sorted numpy arrays: plain data that a
restarted run gets back by feeding the same batches again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calm_lightning.errors import DataError
from data_pipelines.cleaning.clean import Cleaning

PERMUTATIONS = 128
SHINGLE_WORDS = 5
EXACT, NEAR = "exact duplicate", "near duplicate"
RECALL = 0.9
"""Chance at least that a pair whose true similarity is the threshold is compared at all."""
_SEED = 1
_BATCH = 256  # documents compared with each other at once; bounds the pairs of very similar ones
_PAIRS = 1 << 16  # pairs compared at once; bounds memory
_PIECE_CHARS = 1 << 20
_SPACE = re.compile(r"\s")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

Signatures = NDArray[np.uint32]
_Words = NDArray[np.uint64]
_Numbers = NDArray[np.int64]


def fingerprint(text: str) -> bytes:
    """Return 16 bytes of the SHA-256 of a text: the same for equal texts and, in practice, for no others."""
    return hashlib.sha256(text.encode("utf-8")).digest()[:16]


def signatures(texts: Sequence[str]) -> Signatures:
    """Return MinHash signatures over the 5-word shingles of lower-cased texts; words end at white space.

    A text of fewer than five words is a single shingle.

    Args:
        texts: n texts.

    Returns:
        (n, 128); the share of equal entries of two rows estimates the Jaccard similarity of their texts' shingles.

    Raises:
        DataError: The package that computes them is not installed.
    """
    try:
        from rensa import RMinHash  # here: only this step of a preparation needs it
    except ImportError:
        raise DataError(
            "near duplicates are found with the package rensa, which is not installed: "
            "pip install 'calm-lightning[data]', or ask for --duplicates exact"
        ) from None
    rows = [_signature(RMinHash, text) for text in texts]
    return np.array(rows, np.uint32).reshape(len(texts), PERMUTATIONS)


def _signature(hasher: Any, text: str) -> list[int]:
    words = np.concatenate([_word_hashes(hasher, piece) for piece in _pieces(text)])
    if len(words) < SHINGLE_WORDS:
        words = np.pad(words, (0, SHINGLE_WORDS - len(words)))
    number = len(words) - SHINGLE_WORDS + 1
    shingles = words[:number].copy()
    for place in range(1, SHINGLE_WORDS):
        shingles *= _MULTIPLIER
        shingles += words[place : place + number]
    shingles ^= shingles >> _32
    # One text a call: several would start a thread pool, and a process forked after that would wait for it forever.
    matrix = hasher.digest_matrix_from_flat_token_hashes(shingles, [0, number], PERMUTATIONS, _SEED)
    row: list[int] = matrix.to_rows()[0]
    return row


def _pieces(text: str) -> Iterator[str]:
    """Yield a text in pieces of about a million characters that end where a word ends; its words take much memory."""
    start = 0
    while len(text) - start > _PIECE_CHARS:
        space = _SPACE.search(text, start + _PIECE_CHARS)
        if space is None:
            break
        yield text[start : space.start()]
        start = space.start()
    yield text[start:]


def _word_hashes(hasher: Any, text: str) -> _Words:
    return np.array(hasher.hash_token_sets([text.lower().split()])[0], np.uint64)


def bands_for(threshold: float) -> tuple[int, int]:
    """Return (bands, entries in each) such that a pair at `threshold` shares a band with probability `RECALL` at least.

    The longest bands that do are taken: they make the fewest needless comparisons.

    Args:
        threshold: Jaccard similarity, in (0, 1].
    """
    for length in range(PERMUTATIONS, 0, -1):
        bands = PERMUTATIONS // length
        if 1 - (1 - threshold**length) ** bands >= RECALL:
            return bands, length
    return PERMUTATIONS, 1


class DuplicateIndex:
    """Remembers documents and tells which of the next ones are duplicates; the first to come stays.

    A document is a near duplicate of one that was kept, never of one that was dropped, so similarity does not drift
    along a chain. The verdicts depend on the order of the documents alone, not on how they are batched. An index that
    is fed the same batches again is the same index. It is in memory: about 100 bytes a document for exact duplicates,
    500 to 750 for near ones.
    """

    def __init__(self, cleaning: Cleaning) -> None:
        """Make an empty index.

        Args:
            cleaning: Its `duplicates` must be "exact" or "near"; `near_threshold` is the least estimated similarity
                of near duplicates.
        """
        if cleaning.duplicates not in ("exact", "near"):
            raise ValueError(f"an index of duplicates={cleaning.duplicates!r} has nothing to do")
        self._near = cleaning.duplicates == "near"
        self._least = int(np.ceil(cleaning.near_threshold * PERMUTATIONS - 1e-9))
        self._bands, self._length = bands_for(cleaning.near_threshold)
        self._seen: set[bytes] = set()
        self._kept = 0
        # Of a signature's entries the low halves are kept: unequal ones agree by chance once in 65,536.
        self._rows = np.empty((0, PERMUTATIONS), np.uint16)
        self._runs: list[_Words] = []

    def judge(self, fingerprints: Sequence[bytes], signatures: Signatures | None = None) -> list[str | None]:
        """Return for every document of a batch the rule that drops it, or None where it stays; remember the batch.

        Args:
            fingerprints: Of n documents, in order.
            signatures: (n, 128), needed for near duplicates.
        """
        if self._near and (signatures is None or len(signatures) != len(fingerprints)):
            raise ValueError("near duplicates are judged by one signature per document")
        verdicts: list[str | None] = []
        for print_ in fingerprints:
            verdicts.append(EXACT if print_ in self._seen else None)
            self._seen.add(print_)
        if self._near and signatures is not None:
            new = np.array([place for place, verdict in enumerate(verdicts) if verdict is None], np.int64)
            for start in range(0, len(new), _BATCH):
                part = new[start : start + _BATCH]
                for place in part[self._near_duplicates(signatures[part])].tolist():
                    verdicts[place] = NEAR
        return verdicts

    def _near_duplicates(self, signatures: Signatures) -> NDArray[np.bool_]:
        """Return which of a few documents are near duplicates, and remember the others."""
        rows, keys = signatures.astype(np.uint16), self._keys(signatures)
        dropped = np.zeros(len(rows), np.bool_)
        for run in self._runs:
            for owners, others in _matches(run, keys):
                dropped[owners[self._similar(rows[owners], self._rows[others])]] = True
        # Those dropped already can neither drop others nor be kept.
        left = (~dropped).nonzero()[0]
        pairs = [np.empty((0, 2), np.int64)]
        for owners, others in _matches(_packed(keys[left], 0), keys[left]):
            earlier = others < owners
            one, other = left[owners[earlier]], left[others[earlier]]
            alike = self._similar(rows[one], rows[other])
            pairs.append(np.stack([one[alike], other[alike]], axis=1))
        for one, other in np.unique(np.concatenate(pairs), axis=0).tolist():
            dropped[one] |= not dropped[other]
        self._remember(rows[~dropped], keys[~dropped])
        return dropped

    def _keys(self, signatures: Signatures) -> _Words:
        """Return 32 bits for every band of every document, (n, bands); the band's number is mixed in."""
        used = signatures[:, : self._bands * self._length].astype(np.uint64)
        bands = used.reshape(len(signatures), self._bands, self._length)
        keys = np.broadcast_to(np.arange(1, self._bands + 1, dtype=np.uint64), bands.shape[:2]) * _MULTIPLIER
        for place in range(self._length):
            keys = (keys ^ bands[:, :, place]) * _MULTIPLIER
            keys ^= keys >> _32
        return keys & _LOW

    def _similar(self, one: NDArray[np.uint16], other: NDArray[np.uint16]) -> NDArray[np.bool_]:
        return (one == other).sum(axis=1) >= self._least

    def _remember(self, rows: NDArray[np.uint16], keys: _Words) -> None:
        end = self._kept + len(rows)
        if end > len(self._rows):
            # Grown in place where the system can: no second copy of all rows.
            self._rows.resize((max(end, len(self._rows) * 3 // 2, 4 * _BATCH), PERMUTATIONS), refcheck=False)
        self._rows[self._kept : end] = rows
        run = _packed(keys, self._kept)
        self._kept = end
        # Runs double in size, so there are few of them and each entry is merged a few times only.
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        self._runs.append(run)


def _packed(keys: _Words, first: int) -> _Words:
    """Return the sorted entries (key, document) of documents numbered from `first` on; the key is the upper half."""
    documents = np.arange(first, first + len(keys), dtype=np.uint64)
    return np.sort((keys << _32 | documents[:, None]).ravel())


def _matches(run: _Words, keys: _Words) -> Iterator[tuple[_Numbers, _Numbers]]:
    """Yield (rows of `keys`, documents in `run` that share one of their keys) in portions of about `_PAIRS`.

    A pair comes once for every key it shares.
    """
    flat = keys.ravel()
    order = np.argsort(flat)  # sorted questions walk through the run in one direction
    wanted = flat[order] << _32
    first = np.searchsorted(run, wanted)
    found = (first < len(run)).nonzero()[0]
    found = found[run[first[found]] >> _32 == wanted[found] >> _32]
    first, owners = first[found], order[found] // keys.shape[1]
    counts = np.searchsorted(run, wanted[found] | _LOW, side="right") - first
    ends = np.cumsum(counts)
    start = 0
    while start < len(found):
        done = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, done + _PAIRS, side="right")), start + 1)
        number = counts[start:stop]
        starts = np.repeat(first[start:stop] - (np.cumsum(number) - number), number)
        entries = run[starts + np.arange(int(number.sum()))]
        yield np.repeat(owners[start:stop], number), (entries & _LOW).astype(np.int64)
        start = stop

"""Which domain the block at a position of the stream comes from: a fixed share of every round, shuffled.

Without weights all domains of a shard are laid end to end together, and the stream holds them as the corpus does.
With them every domain is a stream of its own, cut from each shard's documents of that domain alone, and a schedule
draws from the streams in rounds of `ROUND` blocks, each with the same number of every domain's. So shares are exact
over a round, the domain of any position is found without going through the ones before it, and what is left over is
up to T tokens per shard *and domain*: small domains want large shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calm_lightning.data.config import DataConfig
from calm_lightning.data.packing import seeded_permutation
from calm_lightning.data.shards.tokens import Numbers
from calm_lightning.errors import DataError

ROUND = 1 << 16
"""Blocks per round: shares are multiples of 1/65,536."""
_SCHEDULE = 1
"""Tells the key of the schedule from those of the streams."""


def domain_shares(config: DataConfig, sizes: Mapping[str, int]) -> dict[str, float] | None:
    """Return the share of training blocks of every domain that is trained on, or None where none is asked for.

    Args:
        config: The data configuration: `weights`, `epochs` and `held_out`.
        sizes: Tokens (or bytes) of every domain of the training split.

    Raises:
        DataError: An unknown domain, an impossible weight, weights beside epochs, or nothing left to train on.
    """
    if not (config.weights or config.epochs or config.held_out):
        return None
    if config.weights and config.epochs:
        raise DataError("data.weights and data.epochs both say how much of a domain is read: give one of them")
    for key, values in (("weights", config.weights), ("epochs", config.epochs)):
        for name, value in values.items():
            if not np.isfinite(value) or value < 0:
                raise DataError(f"data.{key}.{name}={value} must be a number and not negative")
    unknown = [name for name in (*config.weights, *config.epochs, *config.held_out) if name not in sizes]
    if unknown:
        raise DataError(
            f"data.weights, data.epochs or data.held_out names {unknown[0]!r}, which split {config.train_split!r} "
            f"has not; its domains are {', '.join(sorted(sizes))}"
        )
    amounts = config.weights or {name: size * config.epochs.get(name, 1.0) for name, size in sizes.items()}
    amounts = {name: amounts[name] for name in sorted(amounts) if name not in config.held_out and amounts[name] > 0}
    total = sum(amounts.values())
    if not total:
        raise DataError("data.weights, data.epochs and data.held_out leave no domain to train on")
    return {name: amount / total for name, amount in amounts.items()}


@dataclass(frozen=True)
class Portion:
    """What a run reads of one domain.

    Attributes:
        tokens: Tokens of the domain in the training split.
        share: Share of the tokens that the run reads.
        read: Tokens of it that the run reads.
        epochs: How often it reads each block of the domain, on average.
        left_over: Tokens that no block holds, since blocks are cut shard by shard.
    """

    tokens: int
    share: float
    read: float
    epochs: float
    left_over: int


def quotas(shares: Sequence[float]) -> Numbers:
    """Return how many blocks of a round each stream gives: the largest remainders are rounded up, none is left at 0.

    Args:
        shares: Share of every stream, positive, 1 in all.
    """
    exact = np.asarray(shares, dtype=np.float64) * ROUND
    parts = np.maximum(np.floor(exact).astype(np.int64), 1)
    while (missing := ROUND - int(parts.sum())) > 0:
        behind = np.argsort(parts - exact, kind="stable")[:missing]
        parts[behind] += 1
    while int(parts.sum()) > ROUND:  # more streams were raised to 1 than rounding had left over
        parts[int(np.argmax(parts))] -= 1
    return parts


class Schedule:
    """Which stream gives the block at a position, and which of its blocks that is."""

    def __init__(self, shares: Sequence[float], seed: int) -> None:
        """Lay out the schedule.

        Args:
            shares: Share of every stream, positive, 1 in all.
            seed: Seed of the order.
        """
        self._quotas, self._seed, self._round = quotas(shares), seed, -1
        self._streams = np.repeat(np.arange(len(self._quotas)), self._quotas)
        self._rank_of_sorted = np.concatenate([np.arange(quota) for quota in self._quotas])
        self._order: Numbers = np.empty(0, dtype=np.int64)
        self._rank: Numbers = np.empty(0, dtype=np.int64)

    def batch(self, position: int, count: int) -> tuple[Numbers, Numbers]:
        """Return, of `count` positions from `position` on, the stream and how many blocks it has given before.

        Returns:
            Two arrays of shape (count,). The second counts up by one from place to place of the same stream.
        """
        parts: list[tuple[Numbers, Numbers]] = []
        found = 0
        while found < count:
            number, offset = divmod(position + found, ROUND)
            self._enter(number)
            part = slice(offset, offset + count - found)
            streams = self._order[part]
            parts.append((streams, number * self._quotas[streams] + self._rank[part]))
            found += len(streams)
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([streams for streams, _ in parts]), np.concatenate([ordinals for _, ordinals in parts])

    def _enter(self, number: int) -> None:
        if number != self._round:
            self._round = number
            self._order = self._streams[seeded_permutation(ROUND, self._seed, _SCHEDULE, number)]
            self._rank = np.empty(ROUND, dtype=np.int64)
            self._rank[np.argsort(self._order, kind="stable")] = self._rank_of_sorted


def stream_key(seed: int, domain: str | None) -> tuple[int, ...]:
    """Return what the order of a stream's blocks depends on: the seed, and the domain where it is of one.

    The domain's name rather than its number: another domain in the corpus changes no other's order.
    """
    if domain is None:
        return (seed,)
    return (seed, int.from_bytes(hashlib.sha256(domain.encode()).digest()[:8], "big"))

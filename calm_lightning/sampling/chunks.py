"""One step of generation: the next chunk of every row, at a temperature, from the head's draws.

Shape suffixes: R rows, S samples, K tokens per chunk, D width, Z latent dimension, T tokens, m matches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from calm_lightning.errors import SamplingError
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.sampling.codec import Codec
from calm_lightning.sampling.pools import LazyPool, choose_lazily
from calm_lightning.sampling.temperature import (
    Draws,
    exact_temperature,
    nearest_inverse,
    split_inverse,
    weights_from_counts,
)

Method = Literal["batch", "exact"]
SMALLEST_POOL, LARGEST_POOL = 16, 512
"""Samples drawn at a time while looking for chunks that begin with given tokens."""


@dataclass(frozen=True)
class ChunkSampling:
    """How chunks are drawn.

    Attributes:
        temperature: T in (0, 1]; with the batch method 1 or 1/n, which may be rounded (0.33 is taken for 1/3).
        samples: Pool size S of the batch method; 200 is the paper's.
        method: "batch" (biased while S is finite, fixed cost) or "exact" (unbiased, unknown cost).
        budget: Most samples per chunk: of the exact method, and for matching the end of a prompt.

    Raises:
        SamplingError: The values are out of range or do not fit each other.
    """

    temperature: float = 0.5
    samples: int = 200
    method: Method = "batch"
    budget: int = 10_000

    def __post_init__(self) -> None:
        n, _ = split_inverse(self.temperature)
        if self.method not in ("batch", "exact"):
            raise SamplingError(f"sampling method {self.method!r} is unknown: it is batch or exact")
        if self.samples < 1 or self.budget < 1:
            raise SamplingError(f"samples ({self.samples}) and budget ({self.budget}) must be at least 1")
        if self.method == "batch" and nearest_inverse(self.temperature) is None:
            raise SamplingError(
                f"the batch method lowers the temperature to 1/n with a whole n only, which {self.temperature:g} is "
                f"not: choose {'1' if n == 1 else f'1/{n}'} or 1/{n + 1}, or --method exact"
            )

    @property
    def inverse_temperature(self) -> int:
        """The n of the batch method: of T = 1/n, at most S, beyond which nothing changes.

        The largest count of a pool is S at most, and a larger n is lowered to it.
        """
        return min(nearest_inverse(self.temperature) or split_inverse(self.temperature)[0], self.samples)


def next_chunks(model: ContinuousLM, codec: Codec, hidden_RD: Tensor, sampling: ChunkSampling) -> Draws:
    """Draw the next chunk of every row.

    Args:
        model: The continuous language model.
        codec: Its autoencoder.
        hidden_RD: Hidden states, (R, D).
        sampling: Temperature and method.

    Returns:
        Tokens (R, K) and the latents they were decoded from, (R, Z).

    Raises:
        SamplingError: The exact method has spent its budget.
    """
    if sampling.method == "batch":
        n = sampling.inverse_temperature
        pool = LazyPool(model.head, codec, hidden_RD, 1 if n == 1 else sampling.samples, model.K, model.l)
        return choose_lazily(pool, n)

    def draw(rows_R: Tensor, num: int) -> Draws:
        latents_RSZ = model.head.sample(hidden_RD[rows_R], num).transpose(0, 1)
        return Draws(codec.decode_tokens(latents_RSZ), latents_RSZ)

    rows_R = torch.arange(len(hidden_RD), device=hidden_RD.device)
    return exact_temperature(draw, rows_R, sampling.temperature, sampling.budget)


def chunk_beginning_with(
    model: ContinuousLM, codec: Codec, hidden_1D: Tensor, beginning_T: Tensor, sampling: ChunkSampling
) -> Draws:
    """Draw one chunk given its first tokens: the model's conditional distribution, at the temperature.

    Args:
        model: The continuous language model.
        codec: Its autoencoder.
        hidden_1D: The hidden state, (1, D).
        beginning_T: The given tokens, (T,), T below K.
        sampling: Temperature, method and budget. The batch method makes do with the matches within the budget.

    Returns:
        Tokens (1, K) and latents (1, Z).

    Raises:
        SamplingError: The budget is spent: no sample matches, or too few do for the exact method.
    """
    search = _MatchingDraws(model, codec, hidden_1D, beginning_T, sampling.budget)
    if sampling.method == "exact":
        row_1 = torch.zeros(1, dtype=torch.long, device=hidden_1D.device)
        return exact_temperature(lambda _, num: search.draw(num, 1), row_1, sampling.temperature, sampling.budget)
    n = sampling.inverse_temperature
    num = 1 if n == 1 else sampling.samples
    found = search.draw(num, num)
    count_1m = (found.tokens.unsqueeze(1) == found.tokens.unsqueeze(2)).all(-1).sum(-1)
    choice = torch.multinomial(weights_from_counts(count_1m, n), 1).squeeze(1)
    return Draws(found.tokens[:, choice].squeeze(1), found.latents[:, choice].squeeze(1))


class _MatchingDraws:
    """Draws chunks and keeps those that begin with given tokens, decoding each no further than it agrees.

    Pools are as large as the share of matches so far suggests, and what a call leaves over is the next one's, so
    that the budget goes into looking for matches alone.
    """

    def __init__(self, model: ContinuousLM, codec: Codec, hidden_1D: Tensor, beginning_T: Tensor, budget: int) -> None:
        self.model, self.codec, self.hidden_1D, self.beginning_T = model, codec, hidden_1D, beginning_T
        self.budget, self.drawn, self.matched = budget, 0, 0
        self._pool: LazyPool | None = None
        self._over_m = torch.empty(0, dtype=torch.long, device=hidden_1D.device)

    def draw(self, most: int, enough: int) -> Draws:
        """Return fresh matches, (1, m, K) and (1, m, Z): `enough` to `most` of them, fewer if the budget ends.

        Raises:
            SamplingError: The budget is spent, and there is not one.
        """
        found: list[Draws] = []
        count = 0
        while count < enough and (len(self._over_m) or self.drawn < self.budget):
            if not len(self._over_m):
                self._search(most - count)
            assert self._pool is not None
            taken_m, self._over_m = self._over_m[: most - count], self._over_m[most - count :]
            found.append(self._pool.take(taken_m))
            count += len(taken_m)
        if not count:
            raise SamplingError(
                f"the {len(self.beginning_T)} tokens at the end of the prompt that do not fill a chunk were matched by "
                f"{self.matched} of {self.budget} samples{', too few for the exact method' if self.matched else ''}: "
                f"raise the budget (--budget), or leave as many tokens out at the prompt's beginning (--align cut)"
            )
        return Draws(*(torch.cat(parts).unsqueeze(0) for parts in zip(*found, strict=True)))

    def _search(self, wanted: int) -> None:
        """Draw one pool, meant to hold `wanted` matches, and find those in it."""
        expected = wanted * (self.drawn + 1) // (self.matched + 1)
        size = min(max(SMALLEST_POOL, min(expected, LARGEST_POOL)), self.budget - self.drawn)
        pool = LazyPool(self.model.head, self.codec, self.hidden_1D, size, self.model.K, self.model.l)
        pool.draw_rows(torch.zeros(1, dtype=torch.long, device=self.hidden_1D.device))
        alive_m = torch.arange(size, device=self.hidden_1D.device)
        for position, token in enumerate(self.beginning_T):
            alive_m = alive_m[pool.decode(alive_m, position) == token]
        self._pool, self._over_m = pool, alive_m
        self.drawn, self.matched = self.drawn + size, self.matched + len(alive_m)

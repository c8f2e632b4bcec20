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
from calm_lightning.sampling.temperature import Draws, exact_temperature, split_inverse, weights_from_counts

Method = Literal["batch", "exact"]
MATCH_POOL = 512
"""Samples drawn at a time while looking for chunks that begin with given tokens."""


@dataclass(frozen=True)
class ChunkSampling:
    """How chunks are drawn.

    Attributes:
        temperature: T in (0, 1]; with the batch method 1 or 1/n.
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
        n, rest = split_inverse(self.temperature)
        if self.method not in ("batch", "exact"):
            raise SamplingError(f"sampling method {self.method!r} is unknown: it is batch or exact")
        if self.samples < 1 or self.budget < 1:
            raise SamplingError(f"samples ({self.samples}) and budget ({self.budget}) must be at least 1")
        if self.method == "batch" and rest:
            raise SamplingError(
                f"the batch method lowers the temperature to 1/n with a whole n only, which {self.temperature:g} is "
                f"not: choose {1 / n:.4g} or {1 / (n + 1):.4g}, or --method exact"
            )

    @property
    def inverse_temperature(self) -> int:
        """The n of T = 1/n (rounded down where T is none)."""
        return split_inverse(self.temperature)[0]


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
        SamplingError: The budget is spent: no sample matches, or too few for the exact method.
    """
    search = _MatchingDraws(model, codec, hidden_1D, beginning_T, sampling.budget)
    if sampling.method == "exact":
        row_1 = torch.zeros(1, dtype=torch.long, device=hidden_1D.device)
        return exact_temperature(lambda _, num: search.draw(num, num), row_1, sampling.temperature, sampling.budget)
    n = sampling.inverse_temperature
    found = search.draw(1 if n == 1 else sampling.samples, 1)
    count_1m = (found.tokens.unsqueeze(1) == found.tokens.unsqueeze(2)).all(-1).sum(-1)
    choice = torch.multinomial(weights_from_counts(count_1m, n), 1).squeeze(1)
    return Draws(found.tokens[:, choice].squeeze(1), found.latents[:, choice].squeeze(1))


class _MatchingDraws:
    """Draws chunks and keeps those that begin with given tokens, decoding each no further than it agrees."""

    def __init__(self, model: ContinuousLM, codec: Codec, hidden_1D: Tensor, beginning_T: Tensor, budget: int) -> None:
        self.model, self.codec, self.hidden_1D, self.beginning_T = model, codec, hidden_1D, beginning_T
        self.budget, self.left = budget, budget

    def draw(self, most: int, least: int) -> Draws:
        """Return fresh matches, (1, m, K) and (1, m, Z), `most` of them or what the budget gives.

        Raises:
            SamplingError: They are fewer than `least`.
        """
        found: list[Draws] = []
        missing = most
        while missing > 0 and self.left > 0:
            size = min(MATCH_POOL, self.left)
            pool = LazyPool(self.model.head, self.codec, self.hidden_1D, size, self.model.K, self.model.l)
            self.left -= size
            pool.draw_rows(torch.zeros(1, dtype=torch.long, device=self.hidden_1D.device))
            alive_m = torch.arange(size, device=self.hidden_1D.device)
            for position, token in enumerate(self.beginning_T):
                alive_m = alive_m[pool.decode(alive_m, position) == token]
            found.append(pool.take(alive_m[:missing]))
            missing -= len(found[-1].tokens)
        if most - missing < least:
            raise SamplingError(
                f"the {len(self.beginning_T)} tokens at the end of the prompt that do not fill a chunk were matched by "
                f"{most - missing} of {self.budget} samples: raise the budget (--budget), or leave as many tokens out "
                f"at the prompt's beginning (--align cut)"
            )
        return Draws(*(torch.cat(parts).unsqueeze(0) for parts in zip(*found, strict=True)))

"""Lowering the temperature of a sampler whose probabilities are unknown: P(x)^(1/T) / Z from draws of P alone.

Two algorithms. `batch_temperature` chooses from a pool of S draws: a fixed cost, T = 1/n only, biased for finite S.
`exact_temperature` draws until it may stop: any T in (0, 1], no bias, a cost that explodes where no chunk is likely.

Shape suffixes: B or R independent rows, S samples of a row, K tokens per chunk, Z latent dimension.
Source of both: arXiv 2510.27688, likelihood-free temperature sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from calm_lightning.errors import SamplingError

WHOLE = 1e-9
"""How near 1/T must be to a whole number to count as one."""
NEAR = 0.01
"""How near T must be to 1/n, relatively, to be a rounded 1/n: 0.33 for 1/3, 0.143 for 1/7."""
LARGEST_DRAW = 256
"""Most draws per row between two looks at which rows are still undecided."""


class Draws(NamedTuple):
    """Draws of a sampler: tokens (..., K) and the latents (..., Z) they were decoded from (Z may be 0)."""

    tokens: Tensor
    latents: Tensor


def split_inverse(temperature: float) -> tuple[int, float]:
    """Return n and a with 1/T = n + a, n whole and 0 <= a < 1.

    Raises:
        SamplingError: T is not in (0, 1], or so small that 1/T is more than a float holds.
    """
    if not 0 < temperature <= 1:
        raise SamplingError(
            f"temperature {temperature:g} is not in (0, 1]: a continuous model can be made more certain, not less"
        )
    inverse = 1 / temperature
    if math.isinf(inverse):
        raise SamplingError(f"temperature {temperature:g} is too small: no number of samples is enough for it")
    n = math.floor(inverse + WHOLE)
    rest = inverse - n
    return n, rest if rest > WHOLE else 0.0


def nearest_inverse(temperature: float) -> int | None:
    """Return the n of T = 1/n, where T may be 1/n rounded to a few digits; None where it is none.

    A T within 1 percent of 1/n counts as 1/n, but for n = 1, which nobody has to round.

    Raises:
        SamplingError: As `split_inverse`.
    """
    n, rest = split_inverse(temperature)
    if not rest:
        return n
    n = round(n + rest)
    return n if n > 1 and abs(temperature * n - 1) <= NEAR + WHOLE else None


def batch_temperature(pool_BSK: Tensor, inverse_temperature: int) -> Tensor:
    """Choose one chunk of each pool of samples, approximately as P(x)^n / Z for T = 1/n.

    Among the distinct chunks that occur c >= n times, one is chosen with weight C(c, n); where none occurs n times, n
    is lowered to the largest count. Biased for a finite pool, exact as S grows. On device, without a loop over pools
    or samples; cost B * S^2 * K comparisons.

    Args:
        pool_BSK: Samples of every pool, (B, S, K).
        inverse_temperature: n = 1/T, at least 1.

    Returns:
        The chosen chunks, (B, K).

    Raises:
        ValueError: n is below 1.

    Source: arXiv 2510.27688, the batch approximation of temperature sampling.
    """
    weights_BS = batch_temperature_weights(pool_BSK, inverse_temperature)
    choice_B1 = torch.multinomial(weights_BS, 1)
    return pool_BSK.gather(1, choice_B1.unsqueeze(-1).expand(-1, -1, pool_BSK.shape[-1])).squeeze(1)


def batch_temperature_weights(pool_BSK: Tensor, inverse_temperature: int) -> Tensor:
    """Return the probability with which each sample of a pool is chosen, (B, S), rows summing to 1.

    Equal samples share their chunk's probability. Float64, or float32 on Apple's MPS, which has no float64.

    Raises:
        ValueError: n is below 1.
    """
    count_BS = (pool_BSK.unsqueeze(1) == pool_BSK.unsqueeze(2)).all(-1).sum(-1)
    return weights_from_counts(count_BS, inverse_temperature)


def weights_from_counts(count_BS: Tensor, inverse_temperature: int) -> Tensor:
    """Return `batch_temperature_weights` of pools in which sample s is one of `count_BS[b, s]` equal ones.

    Args:
        count_BS: How often the chunk of each sample occurs in its pool, (B, S); 0 marks a place without a sample.
        inverse_temperature: n = 1/T, at least 1.

    Raises:
        ValueError: n is below 1.
    """
    if inverse_temperature < 1:
        raise ValueError(f"the batch algorithm needs T = 1/n with n >= 1, got n = {inverse_temperature}")
    count_BS = count_BS.to(torch.float32 if count_BS.device.type == "mps" else torch.float64)
    n_B1 = count_BS.amax(1, keepdim=True).clamp(max=inverse_temperature)
    log_ways_BS = torch.lgamma(count_BS + 1) - torch.lgamma((count_BS - n_B1).clamp(min=0) + 1)
    log_weight_BS = torch.where(count_BS >= n_B1, log_ways_BS - count_BS.log(), -torch.inf)
    return log_weight_BS.softmax(1)


class _Attempts:
    """The rows' attempts, each at its own stage: n equal draws, then the Bernoulli factory for P(x)^a.

    A draw is used once: the one that ends an attempt is spent, the next one begins a new attempt.
    """

    def __init__(self, rows: int, n: int, rest: float, like: Draws) -> None:
        self.n, self.rest = n, rest
        device = like.tokens.device
        self.chunk_BK = like.tokens.new_zeros(rows, like.tokens.shape[-1])
        self.latent_BZ = like.latents.new_zeros(rows, like.latents.shape[-1])
        self.equal_B = torch.zeros(rows, dtype=torch.long, device=device)  # equal draws in this attempt, at most n
        self.tosses_B = torch.zeros(rows, dtype=torch.long, device=device)  # i - 1 of the Bernoulli factory
        self.done_B = torch.zeros(rows, dtype=torch.bool, device=device)

    def take(self, rows_R: Tensor, tokens_RK: Tensor, latents_RZ: Tensor) -> None:
        """Use one draw of each of some rows; rows that are done ignore it.

        Args:
            rows_R: Which rows, (R,), each once.
            tokens_RK: Their draws, (R, K).
            latents_RZ: The latents of those, (R, Z).
        """
        equal_R, tosses_R = self.equal_B[rows_R], self.tosses_B[rows_R]
        begins_R, tossing_R = equal_R == 0, equal_R == self.n
        matches_R = begins_R | (tokens_RK == self.chunk_BK[rows_R]).all(-1)
        # A draw of the factory that does not match rejects with probability a / i, otherwise i grows by one.
        rejects_R = torch.rand(len(rows_R), device=tokens_RK.device) < self.rest / (tosses_R + 1)
        ends_R = ~matches_R & (~tossing_R | rejects_R)
        counted_R = torch.where(tossing_R, equal_R, equal_R + 1)
        complete_R = tossing_R | ((counted_R == self.n) & (self.rest == 0))
        stored_R1 = (begins_R & ~self.done_B[rows_R]).unsqueeze(-1)
        self.chunk_BK[rows_R] = torch.where(stored_R1, tokens_RK, self.chunk_BK[rows_R])
        self.latent_BZ[rows_R] = torch.where(stored_R1, latents_RZ, self.latent_BZ[rows_R])
        self.equal_B[rows_R] = torch.where(ends_R, 0, counted_R)
        self.tosses_B[rows_R] = torch.where(tossing_R & ~ends_R, tosses_R + 1, 0)
        self.done_B[rows_R] |= matches_R & complete_R


def exact_temperature(draw: Callable[[Tensor, int], Draws], rows_B: Tensor, temperature: float, budget: int) -> Draws:
    """Draw one chunk per row from exactly P(x)^(1/T) / Z, by rejection.

    1/T = n + a. Draw until n chunks in a row are equal; then, for a > 0, toss a coin of probability P(x)^a with the
    Bernoulli factory: for i = 1, 2, ... draw; accept if it equals x, otherwise reject with probability a / i. A
    rejection starts over with the next draw. All rows advance in lockstep, and only undecided rows are drawn for.
    Expected cost: 1 / sum_x P(x)^(1/T) attempts of at most n draws, and for a > 0 about P(x)^(a - 1) draws for each
    toss, so that even a T near 1 takes about 1 / P(x) draws in all.

    Args:
        draw: Maps some of the rows (R,) and a number to fresh independent draws, at least one and at most that many,
            m of each row: (R, m, K) and (R, m, Z).
        rows_B: The rows, 0 to B - 1, on the device of the draws, (B,).
        temperature: T in (0, 1].
        budget: Most draws per row.

    Returns:
        The chunks (B, K), and the latents (B, Z) of one of the equal draws each.

    Raises:
        SamplingError: T is not in (0, 1], the budget is below the fewest draws that can decide, or it is spent while
            rows are undecided.

    Source: arXiv 2510.27688, exact temperature sampling.
    """
    n, rest = split_inverse(temperature)
    fewest = n + math.ceil(rest)
    if fewest > budget:
        raise SamplingError(
            f"exact sampling at temperature {temperature:g} needs at least {fewest:g} samples per chunk, more than the "
            f"budget of {budget}: raise the budget (--budget), or choose a temperature nearer 1"
        )
    attempts: _Attempts | None = None
    open_R, spent, num = rows_B, 0, min(fewest, LARGEST_DRAW)
    while len(open_R):
        num = min(num, budget - spent)
        if num < 1:
            raise SamplingError(
                f"exact sampling at temperature {temperature:g} has spent its budget of {budget} samples per chunk, "
                f"with {len(open_R)} of {len(rows_B)} rows undecided: raise the budget (--budget), choose a "
                f"temperature nearer 1, or use the batch algorithm (--method batch)"
            )
        fresh = draw(open_R, num)
        attempts = attempts or _Attempts(len(rows_B), n, rest, fresh)
        taken = fresh.tokens.shape[1]
        for one in range(taken):
            attempts.take(open_R, fresh.tokens[:, one], fresh.latents[:, one])
        open_R = rows_B[~attempts.done_B]
        spent, num = spent + taken, min(2 * num, LARGEST_DRAW)
    assert attempts is not None, "no rows"
    return Draws(attempts.chunk_BK, attempts.latent_BZ)

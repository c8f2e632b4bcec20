"""Lowering the temperature of a sampler whose probabilities are unknown.

Shape suffixes: B independent pools, S samples in a pool, K tokens per chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    """Return the probability with which each sample of a pool is chosen, (B, S), float64, rows summing to 1.

    Equal samples share their chunk's probability.

    Raises:
        ValueError: n is below 1.
    """
    if inverse_temperature < 1:
        raise ValueError(f"the batch algorithm needs T = 1/n with n >= 1, got n = {inverse_temperature}")
    count_BS = (pool_BSK.unsqueeze(1) == pool_BSK.unsqueeze(2)).all(-1).sum(-1).double()
    n_B1 = count_BS.amax(1, keepdim=True).clamp(max=inverse_temperature)
    log_ways_BS = torch.lgamma(count_BS + 1) - torch.lgamma((count_BS - n_B1).clamp(min=0) + 1)
    log_weight_BS = torch.where(count_BS >= n_B1, log_ways_BS - count_BS.log(), -torch.inf)
    return log_weight_BS.softmax(1)

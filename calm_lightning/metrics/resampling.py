"""Errors of means and of BrierLM by resampling units of dependent positions, documents for example.

Positions of one document are not independent: a unit is what is drawn together. All of it is CPU work in float64 on
one row per unit, after everything has been scored.

Shape suffixes: G units, X replicates, 4 outcome lengths, H columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

RESAMPLES = 2000
"""Bootstrap replicates; their Monte-Carlo error is about 2 % of the standard error."""
_SLICE = 2**22


def sum_by_key(rows_PH: Tensor, key_P: Tensor) -> Tensor:
    """Return the sums of rows that share a key, keys ascending, (G, H)."""
    keys, index_P = key_P.unique(return_inverse=True)
    return rows_PH.new_zeros(len(keys), rows_PH.shape[1]).index_add_(0, index_P, rows_PH)


def bootstrap_means(sums_GH: Tensor, count_G: Tensor) -> Tensor:
    """Return means over resampled units, (X, H): each replicate draws G units with replacement.

    A function of its input: the seed is the number of units, so equally many units are drawn alike and compared models
    share their replicates. Slices bound the memory at 32 MiB or one replicate per tensor.

    Args:
        sums_GH: Sums over the positions of each unit.
        count_G: Positions of each unit.
    """
    groups = len(sums_GH)
    rows = torch.cat((sums_GH, count_G.unsqueeze(1)), dim=1)
    generator = torch.Generator().manual_seed(groups)
    one = torch.ones((), dtype=torch.float64)
    sums: list[Tensor] = []
    size = max(1, _SLICE // groups)
    for begin in range(0, RESAMPLES, size):
        picks = torch.randint(groups, (min(size, RESAMPLES - begin), groups), generator=generator)
        weights = torch.zeros(picks.shape, dtype=torch.float64)
        sums.append(weights.scatter_add_(1, picks, one.expand_as(picks)) @ rows)
    resampled = torch.cat(sums)
    return resampled[:, :-1] / resampled[:, -1:]


def mean_errors(sums_GH: Tensor, count_G: Tensor) -> Tensor:
    """Return the standard error of the mean of each column over all positions, (H,); infinite for a single unit.

    The linearised error of a ratio of sums: what the bootstrap gives for a mean, without replicates.

    Args:
        sums_GH: Sums over the positions of each unit.
        count_G: Positions of each unit.

    Source: Cochran, Sampling Techniques, 3rd edition, section 9A (ratio to size of clusters).
    """
    groups, total = len(sums_GH), count_G.sum()
    if groups < 2:
        return torch.full((sums_GH.shape[1],), torch.inf, dtype=torch.float64)
    residual_GH = sums_GH - sums_GH.sum(0) / total * count_G.unsqueeze(1)
    return (residual_GH.square().sum(0) * groups / (groups - 1)).sqrt() / total

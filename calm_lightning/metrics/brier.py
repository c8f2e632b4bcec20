"""Unbiased estimates of Brier scores at single positions, from samples or from probabilities.

The Brier score of a distribution P at the true outcome y is 2 P(y) - sum_x P(x)^2. Brier-n takes the next n tokens as
one outcome; the marginal score of an offset takes the one token that stands there.

Shape suffixes: P start positions, S samples, H tokens after a start (at least 4), 4 outcome lengths n = 1..4.
Source: arXiv 2510.27688, where BrierLM is defined; Brier 1950.
"""

from __future__ import annotations

import torch
from torch import Tensor

LENGTHS = 4
"""BrierLM scores outcomes of n = 1..4 tokens."""
MAX_COMPARISONS = 2**24
"""Comparisons of samples held at once."""


def wide_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on devices that have nothing wider (Apple's MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def brier_from_samples(samples_PSH: Tensor, target_PH: Tensor) -> Tensor:
    """Return unbiased Brier-1..4 of every position from S independent samples: (P, 4), fractions.

    The U-statistic `2/S * #(x_s = y) - #(ordered equal pairs) / (S (S - 1))`: the mean of the paper's two-sample
    estimate over all pairs, so of the same expectation and a smaller variance. Cost: P * S^2 comparisons, in slices
    of bounded memory.

    Args:
        samples_PSH: The tokens of each sample, (P, S, H), S at least 2, H at least 4; the first four are scored.
        target_PH: The true tokens, (P, H).

    Raises:
        ValueError: Fewer than two samples or four tokens, or shapes that do not belong together.
    """
    check_samples(samples_PSH, target_PH)
    return _u_statistic(samples_PSH[..., :LENGTHS], target_PH[..., :LENGTHS], together=True)


def marginal_brier_from_samples(samples_PSH: Tensor, target_PH: Tensor) -> Tensor:
    """Return the unbiased Brier-1 of the single token at each offset after a position: (P, H), fractions.

    Args:
        samples_PSH: As in `brier_from_samples`; all H tokens are scored, each by itself.
        target_PH: The true tokens, (P, H).

    Raises:
        ValueError: As `brier_from_samples`.
    """
    check_samples(samples_PSH, target_PH)
    return _u_statistic(samples_PSH, target_PH, together=False)


def brier_from_probabilities(gold_xH: Tensor, collision_xH: Tensor) -> Tensor:
    """Return Brier scores (..., H), fractions, from P(y) and sum_x P(x)^2 (or unbiased estimates), each (..., H)."""
    wide = wide_float(gold_xH.device)
    return 2 * gold_xH.to(wide) - collision_xH.to(wide)


def brier_lm_percent(brier_x4: Tensor) -> Tensor:
    """Return BrierLM, percent, of mean Brier-1..4 (..., 4), fractions: (...); 0 where one of them is not positive."""
    return torch.where((brier_x4 > 0).all(-1), 100 * brier_x4.clamp(min=0).prod(-1) ** (1 / LENGTHS), 0.0)


def check_samples(samples_PSH: Tensor, target_PH: Tensor) -> None:
    """Check that samples and true tokens belong together.

    Raises:
        ValueError: Fewer than two samples or four tokens, or shapes that do not belong together.
    """
    if samples_PSH.ndim != 3:
        raise ValueError(f"samples have shape {tuple(samples_PSH.shape)}, expected (positions, samples, tokens)")
    P, S, H = samples_PSH.shape
    if S < 2:
        raise ValueError(f"BrierLM needs at least 2 samples per position, got {S}")
    if H < LENGTHS:
        raise ValueError(f"BrierLM needs at least {LENGTHS} tokens per sample, got {H}")
    if target_PH.shape != (P, H):
        raise ValueError(f"target has shape {tuple(target_PH.shape)}, expected {(P, H)}")


def _u_statistic(samples_PSH: Tensor, target_PH: Tensor, together: bool) -> Tensor:
    """Return the U-statistic of every offset by itself or, with `together`, of all tokens up to it: (P, H)."""
    P, S, H = samples_PSH.shape
    wide = wide_float(samples_PSH.device)
    step = max(1, MAX_COMPARISONS // (S * S))
    rows = [
        _counts(samples_PSH[begin : begin + step], target_PH[begin : begin + step], together)
        for begin in range(0, P, step)
    ]
    if not rows:
        return torch.zeros((0, H), dtype=wide, device=samples_PSH.device)
    counts_2PH = torch.cat(rows, dim=1).to(wide)
    return 2 / S * counts_2PH[0] - counts_2PH[1] / (S * (S - 1))


def _counts(samples_PSH: Tensor, target_PH: Tensor, together: bool) -> Tensor:
    """Return how many samples hit and how many ordered pairs agree, (2, P, H), integers."""
    S = samples_PSH.shape[1]
    hits, pairs = [], []
    hit_PS = same_PSS = torch.ones((), dtype=torch.bool, device=samples_PSH.device)
    for offset in range(samples_PSH.shape[2]):
        token_PS, target_P1 = samples_PSH[..., offset], target_PH[:, offset : offset + 1]
        hit_here, same_here = token_PS == target_P1, token_PS.unsqueeze(1) == token_PS.unsqueeze(2)
        hit_PS = hit_PS & hit_here if together else hit_here
        same_PSS = same_PSS & same_here if together else same_here
        hits.append(hit_PS.sum(1))
        pairs.append(same_PSS.sum((1, 2)) - S)
    return torch.stack((torch.stack(hits, dim=-1), torch.stack(pairs, dim=-1)))

"""BrierLM: a strictly proper score of language models that only need to be sampled.

Brier-n of a distribution P over the next n tokens, at the true outcome y, is 2 P(y) - sum_x P(x)^2. BrierLM is
100 times the geometric mean of the means of Brier-1..4, and 0 where one of these means is not positive.

Shape suffixes: P start positions, S samples, 4 outcomes lengths n = 1..4 (or the 4 tokens after a position).
Source: arXiv 2510.27688, where BrierLM is defined; Brier 1950.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

RESAMPLES = 2000
"""Bootstrap replicates; their Monte-Carlo error is about 2 % of the standard error."""


def brier_from_samples(samples_PS4: Tensor, target_P4: Tensor) -> Tensor:
    """Return unbiased Brier-1..4 of every position from S independent samples: (P, 4), fractions.

    The U-statistic `2/S * #(x_s = y) - #(ordered equal pairs) / (S (S - 1))`: the mean of the paper's two-sample
    estimate over all pairs. Cost: P * S^2 comparisons.

    Args:
        samples_PS4: The first four tokens of each sample, (P, S, 4), S at least 2.
        target_P4: The true next four tokens, (P, 4).

    Raises:
        ValueError: Fewer than two samples, or shapes that do not belong together.
    """
    P, S, horizon = samples_PS4.shape
    if S < 2:
        raise ValueError(f"BrierLM needs at least 2 samples per position, got {S}")
    if target_P4.shape != (P, horizon):
        raise ValueError(f"target has shape {tuple(target_P4.shape)}, expected {(P, horizon)}")
    hits_P4 = (samples_PS4 == target_P4.unsqueeze(1)).cumprod(-1).sum(1, dtype=torch.float64)
    same_PSS4 = (samples_PS4.unsqueeze(1) == samples_PS4.unsqueeze(2)).cumprod(-1)
    pairs_P4 = same_PSS4.sum((1, 2), dtype=torch.float64) - S
    return 2 / S * hits_P4 - pairs_P4 / (S * (S - 1))


def brier_from_probabilities(gold_P4: Tensor, collision_P4: Tensor) -> Tensor:
    """Return Brier-1..4 from P(y) and sum_x P(x)^2 (or an unbiased estimate of it), each (P, 4): (P, 4), fractions."""
    return 2 * gold_P4.double() - collision_P4.double()


def brier_lm_percent(brier_x4: Tensor) -> Tensor:
    """Return BrierLM, percent, of mean Brier-1..4 (..., 4), fractions: (...); 0 where one of them is not positive."""
    return torch.where((brier_x4 > 0).all(-1), 100 * brier_x4.clamp(min=0).prod(-1) ** 0.25, 0.0)


def _bootstrap_means(rows_G5: Tensor) -> Tensor:
    """Return means of Brier-1..4 over resampled groups, (X, 4), from sums and counts per group, (G, 5).

    Slices of replicates bound the memory at 32 MiB or one replicate, whatever the number of groups.
    """
    groups = len(rows_G5)
    generator = torch.Generator().manual_seed(groups)
    sums: list[Tensor] = []
    slice_size = max(1, 2**22 // groups)
    for begin in range(0, RESAMPLES, slice_size):
        picks = torch.randint(groups, (min(slice_size, RESAMPLES - begin), groups), generator=generator)
        weights = torch.zeros(picks.shape, dtype=torch.float64)
        sums.append(weights.scatter_add_(1, picks, torch.ones_like(weights)) @ rows_G5)
    resampled_X5 = torch.cat(sums)
    return resampled_X5[:, :4] / resampled_X5[:, 4:]


def _spread(values_X: Tensor) -> float:
    """Return the standard deviation, infinite where the values are."""
    return float(values_X.std()) if bool(values_X.isfinite().all()) else torch.inf


class BrierLMResult(NamedTuple):
    """BrierLM and its parts, percent.

    Attributes:
        value: BrierLM.
        standard_error: Standard deviation of its bootstrap replicates.
        low: Lower end of the 95 % percentile interval.
        high: Upper end of it.
        brier: Means of Brier-1..4.
        brier_standard_error: Their standard errors, over groups.
        zeroed: Whether BrierLM is 0 by definition because some Brier-n is not positive.
        positions: Start positions scored.
        groups: Groups (evaluation blocks) they came from.
    """

    value: float
    standard_error: float
    low: float
    high: float
    brier: tuple[float, ...]
    brier_standard_error: tuple[float, ...]
    zeroed: bool
    positions: int
    groups: int


class BrierScores(Metric):
    """Accumulates Brier-1..4 of start positions into BrierLM; errors come from resampling groups of positions.

    Positions of one block share a context, so they are not independent: a group is what is resampled together. The
    error is that of these evaluation documents: blocks of one document are resampled as if they were independent, and
    one trained model says nothing of another seed. With a single group it is unknown, and given as infinite.
    Takes scores that were made otherwise, for example by `brier_from_probabilities`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    group_rows: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("group_rows", default=[], dist_reduce_fx="cat")

    def update(self, brier_P4: Tensor, group_P: Tensor | None = None) -> None:
        """Add the scores of some positions.

        Args:
            brier_P4: Brier-1..4, (P, 4), fractions.
            group_P: Group of each position, (P,), whole groups per call; None makes each position its own group.
        """
        rows = torch.cat((brier_P4.double(), torch.ones_like(brier_P4[:, :1]).double()), dim=1)
        if group_P is not None:
            groups, index_P = group_P.to(rows.device).unique(return_inverse=True)
            rows = rows.new_zeros(len(groups), rows.shape[1]).index_add_(0, index_P, rows)
        self.group_rows.append(rows)

    def compute(self) -> BrierLMResult:
        """Return the score of everything seen.

        Raises:
            ValueError: No position was scored.
        """
        if not len(self.group_rows):
            raise ValueError("BrierLM has seen no position: call update first")
        rows_G5 = dim_zero_cat(self.group_rows).double().cpu()
        groups, total = len(rows_G5), rows_G5.sum(0)
        mean_4 = total[:4] / total[4]
        means_X4 = _bootstrap_means(rows_G5)
        replicates_X = brier_lm_percent(means_X4)
        low, high = replicates_X.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        if groups < 2:  # nothing to resample: the error is not zero but unknown
            low, high, means_X4, replicates_X = 0.0, 100.0, means_X4 + torch.inf, replicates_X + torch.inf
        return BrierLMResult(
            value=float(brier_lm_percent(mean_4)),
            standard_error=_spread(replicates_X),
            low=low,
            high=high,
            brier=tuple((100 * mean_4).tolist()),
            brier_standard_error=tuple(100 * _spread(column) for column in means_X4.T),
            zeroed=not bool((mean_4 > 0).all()),
            positions=int(total[4]),
            groups=groups,
        )


class BrierLM(BrierScores):
    """BrierLM of any sampler, in two lines::

    metric = BrierLM()
    metric.update(samples, target)      # (P, S, 4) sampled and (P, 4) true token ids
    metric.compute().value              # percent
    """

    def update(self, samples_PS4: Tensor, target_P4: Tensor, group_P: Tensor | None = None) -> None:  # type: ignore[override]
        """Score samples.

        Args:
            samples_PS4: Sampled token ids, (P, S, 4).
            target_P4: True token ids, (P, 4).
            group_P: As in `BrierScores.update`.

        Raises:
            ValueError: As `brier_from_samples`.
        """
        super().update(brier_from_samples(samples_PS4, target_P4), group_P)

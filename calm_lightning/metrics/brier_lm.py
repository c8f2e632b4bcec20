"""BrierLM: a strictly proper score of language models that only need to be sampled.

BrierLM is 100 times the geometric mean of the means of Brier-1..4, and 0 where one of these means is not positive.
The metrics here accumulate the scores of positions and say how sure they are of them, by domain and by offset too.

Shape suffixes: P start positions, S samples, H tokens after a start (at least 4), 4 outcome lengths n = 1..4.
Source: arXiv 2510.27688, where BrierLM is defined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from calm_lightning.metrics.brier import (
    LENGTHS,
    brier_from_samples,
    brier_lm_percent,
    marginal_brier_from_samples,
    wide_float,
)
from calm_lightning.metrics.resampling import bootstrap_means, mean_errors, sum_by_key

FEWEST_DOCUMENTS = 20
"""Below this, resampling documents says little: their pieces inside evaluation blocks are resampled instead."""
NONE = -1
"""Stands for a label that was not given."""
LABELS = ("group", "piece", "domain")


class BrierLMResult(NamedTuple):
    """BrierLM and its parts, percent.

    Attributes:
        value: BrierLM.
        standard_error: Standard deviation of its bootstrap replicates; infinite (unknown) with a single unit.
        low: Lower end of the 95 % percentile interval.
        high: Upper end of it.
        brier: Means of Brier-1..4.
        brier_standard_error: Their standard errors, over units.
        offsets: Marginal Brier-1 of the token at each offset 1..H after a start; empty where none was given.
        offsets_standard_error: Their standard errors, over units.
        zeroed: Whether BrierLM is 0 by definition because the mean of some Brier-n is not positive.
        degenerate: Whether all units score exactly alike (all right, all wrong): resampling then shows no spread, which
            is not knowledge that there is none.
        positions: Start positions scored.
        documents: Distinct groups they came from; 0 where none was given.
        unit: What was resampled: "document" (a group), "piece" (a group's positions inside one piece, where there are
            fewer than 20 groups), or "position" (no group was given).
        units: How many of them there are.
        domains: The same for the positions of each domain, by its name; empty where none was given.
    """

    value: float
    standard_error: float
    low: float
    high: float
    brier: tuple[float, ...]
    brier_standard_error: tuple[float, ...]
    offsets: tuple[float, ...]
    offsets_standard_error: tuple[float, ...]
    zeroed: bool
    degenerate: bool
    positions: int
    documents: int
    unit: str
    units: int
    domains: dict[str, BrierLMResult]


class BrierScores(Metric):
    """Accumulates Brier-1..4 of start positions into BrierLM; errors come from resampling documents.

    Positions of one document share a context, so they are not independent: a group is what is resampled together. The
    error is that of these evaluation documents; one trained model says nothing of another seed. Takes scores that were
    made otherwise, for example by `brier_from_probabilities`. Keeps one row per position (about 100 bytes), so that a
    group may span calls and processes; nothing here makes the host wait for the device before `compute`.

    Args:
        domains: Names of the domains 0, 1, ...; without them a domain is named by its number.
        kwargs: For `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    score_rows: list[Tensor]
    label_rows: list[Tensor]

    def __init__(self, domains: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.domains = tuple(domains)
        self.add_state("score_rows", default=[], dist_reduce_fx="cat")
        self.add_state("label_rows", default=[], dist_reduce_fx="cat")

    def update(
        self,
        brier: Tensor,
        offsets: Tensor | None = None,
        *,
        group: Tensor | None = None,
        piece: Tensor | None = None,
        domain: Tensor | None = None,
    ) -> None:
        """Add the scores of some positions. Labels are whole numbers from 0.

        Args:
            brier: Brier-1..4, (P, 4), fractions.
            offsets: Marginal Brier-1 at each offset, (P, H), fractions; in every call or in none.
            group: Group (document) of each position, (P,); None makes each position its own.
            piece: Part of its group that each position belongs to (evaluation block), (P,).
            domain: Domain of each position, (P,).

        Raises:
            ValueError: Shapes that do not belong together, or labels that are not whole numbers.
        """
        if brier.ndim != 2 or brier.shape[1] != LENGTHS:
            raise ValueError(f"Brier scores have shape {tuple(brier.shape)}, expected (positions, {LENGTHS})")
        if offsets is not None and (offsets.ndim != 2 or len(offsets) != len(brier)):
            raise ValueError(f"offsets have shape {tuple(offsets.shape)}, expected ({len(brier)}, tokens)")
        rows = brier if offsets is None else torch.cat((brier, offsets.to(brier.dtype)), dim=1)
        if self.score_rows and isinstance(self.score_rows, list) and self.score_rows[0].shape[1] != rows.shape[1]:
            raise ValueError("offsets must have the same number of columns in every call")
        labels = torch.full((3, len(brier)), NONE, device=brier.device)
        for row, given in enumerate((group, piece, domain)):
            if given is not None:
                labels[row] = _label(LABELS[row], given, brier)
        self.score_rows.append(rows.to(wide_float(rows.device)))
        self.label_rows.append(labels.T)

    def compute(self) -> BrierLMResult:
        """Return the score of everything seen.

        Raises:
            ValueError: No position was scored, a score is not finite, or a label is below 0.
        """
        if not len(self.score_rows) or not (scores := dim_zero_cat(self.score_rows)).numel():
            raise ValueError("BrierLM has seen no position: call update first")
        rows_PC = scores.cpu().double()
        labels_P3 = dim_zero_cat(self.label_rows).cpu()
        # Here and not in `update`, where looking at values would wait for the device.
        if unknown := int((~rows_PC.isfinite()).any(1).sum()):
            raise ValueError(f"{unknown} of {len(rows_PC)} positions have scores that are not finite numbers")
        for name, least in zip(LABELS, labels_P3.amin(0).tolist(), strict=True):
            if least < NONE:
                raise ValueError(f"{name} holds {least}: labels are whole numbers from 0")
        domain_P = labels_P3[:, 2]
        domains = {
            self._domain_name(number): _result(rows_PC[domain_P == number], labels_P3[domain_P == number], {})
            for number in domain_P.unique().tolist()
            if number != NONE
        }
        return _result(rows_PC, labels_P3, domains)

    def _domain_name(self, number: int) -> str:
        return self.domains[number] if number < len(self.domains) else str(number)


class BrierLM(BrierScores):
    """BrierLM of any sampler, in two lines::

    metric = BrierLM()
    metric.update(samples, target)      # (P, S, 4) sampled and (P, 4) true token ids
    metric.compute().value              # percent

    With `group=documents` the interval resamples documents, with `domain=numbers` the result has a breakdown.
    """

    def update(  # type: ignore[override]
        self,
        samples: Tensor,
        target: Tensor,
        *,
        group: Tensor | None = None,
        piece: Tensor | None = None,
        domain: Tensor | None = None,
    ) -> None:
        """Score samples.

        Args:
            samples: Sampled token ids, (P, S, H): S independent continuations of at least 4 tokens per position.
            target: True token ids, (P, H).
            group: As in `BrierScores.update`.
            piece: Likewise.
            domain: Likewise.

        Raises:
            ValueError: As `brier_from_samples`.
        """
        samples_PSH, target_PH = torch.as_tensor(samples), torch.as_tensor(target)
        brier_P4 = brier_from_samples(samples_PSH, target_PH)
        offsets_PH = marginal_brier_from_samples(samples_PSH, target_PH)
        super().update(brier_P4, offsets_PH, group=group, piece=piece, domain=domain)


def _label(name: str, given: Tensor, brier: Tensor) -> Tensor:
    """Return a label of every position, (P,), on the device of the scores.

    Raises:
        ValueError: It is not whole numbers, or not one for each position.
    """
    label_P = torch.as_tensor(given, device=brier.device)
    if label_P.shape != (len(brier),):
        raise ValueError(f"{name} has shape {tuple(label_P.shape)}, expected one label per position: ({len(brier)},)")
    if label_P.is_floating_point() or label_P.is_complex():
        raise ValueError(f"{name} holds {label_P.dtype}: labels are whole numbers from 0")
    return label_P


def _unit_keys(labels_P3: Tensor) -> tuple[Tensor, str, int]:
    """Return the resampled unit of each position, what it is, and the number of distinct groups."""
    group_P, piece_P = labels_P3[:, 0], labels_P3[:, 1]
    own_P = torch.arange(len(group_P))
    if bool((group_P == NONE).all()):
        return own_P, "position", 0
    # A position without a group among others that have one stands for itself: numbers below 0 are free.
    group_P = torch.where(group_P == NONE, -1 - own_P, group_P)
    documents = len(group_P.unique())
    if documents < FEWEST_DOCUMENTS and bool((piece_P != NONE).all()):
        piece_keys_P = (group_P - group_P.min()) * (int(piece_P.max()) + 1) + piece_P
        if len(piece_keys_P.unique()) > documents:
            return piece_keys_P, "piece", documents
    return group_P, "document", documents


def _result(rows_PC: Tensor, labels_P3: Tensor, domains: dict[str, BrierLMResult]) -> BrierLMResult:
    """Return the score of positions from their Brier-1..4 and marginal scores, (P, 4 + H), and labels."""
    keys_P, unit, documents = _unit_keys(labels_P3)
    sums_GC = sum_by_key(torch.cat((rows_PC, torch.ones(len(rows_PC), 1, dtype=torch.float64)), dim=1), keys_P)
    sums_GC, count_G = sums_GC[:, :-1], sums_GC[:, -1]
    mean_C = rows_PC.sum(0) / len(rows_PC)
    means_X4 = bootstrap_means(sums_GC[:, :LENGTHS], count_G)
    replicates_X = brier_lm_percent(means_X4)
    low, high = replicates_X.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    standard_error, brier_errors = float(replicates_X.std()), tuple((100 * means_X4.std(0)).tolist())
    units = len(count_G)
    if units < 2:  # nothing to resample: the error is not zero but unknown
        low, high, standard_error, brier_errors = 0.0, 100.0, torch.inf, (torch.inf,) * LENGTHS
    unit_means_G4 = sums_GC[:, :LENGTHS] / count_G.unsqueeze(1)
    ranges_4 = unit_means_G4.amax(0) - unit_means_G4.amin(0)
    return BrierLMResult(
        value=float(brier_lm_percent(mean_C[:LENGTHS])),
        standard_error=standard_error,
        low=low,
        high=high,
        brier=tuple((100 * mean_C[:LENGTHS]).tolist()),
        brier_standard_error=brier_errors,
        offsets=tuple((100 * mean_C[LENGTHS:]).tolist()),
        offsets_standard_error=tuple((100 * mean_errors(sums_GC[:, LENGTHS:], count_G)).tolist()),
        zeroed=not bool((mean_C[:LENGTHS] > 0).all()),
        degenerate=units > 1 and float(ranges_4.max()) < 1e-12,
        positions=len(rows_PC),
        documents=documents,
        unit=unit,
        units=units,
        domains=domains,
    )

"""The token whose logit is the largest, without holding all logits, and faster than float32 multiplies them.

Decoding to tokens needs no logits, only which is the largest. Where a CPU multiplies bf16 several times as fast as
float32, float32 logits are screened first: bf16 logits of all tokens, with a bound on their error, leave a few
candidates per row, and those are compared in float32. A row whose candidates may not be all is computed in float32 as a
whole, so the answer is that of float32, up to the order in which float32 sums are taken.

Shape suffixes: C rows, E width, V vocabulary, m candidates, x any leading dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

LOGITS_BYTES = 64 * 2**20
"""Float32 logits held at a time."""
CANDIDATES = 8
"""Tokens per row that are compared in float32; the last of them bounds all others."""
SMALLEST_SCREENED = 2**19
"""Weights V * E below which a product is too small to be worth screening."""
HALF_STEP = 1.02 * 2.0**-8
"""Relative error of rounding to bf16 (half a step of its 8 significant bits, 2^-8), and room for second-order terms."""


@cache
def _bf16_is_fast() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported())


@dataclass(frozen=True)
class _Screen:
    """A bf16 copy of the logits' weights, and what it leaves out."""

    of_weight: Tensor  # what it is a copy of; held, so that its place in memory is not given to another
    version: int  # of that tensor when it was copied
    weight: Tensor
    largest: float  # of the norms of the rows e
    rounding: float  # largest norm of e - bf16(e)

    @classmethod
    def of(cls, weight_VE: Tensor) -> _Screen:
        rounded_VE = weight_VE.bfloat16()
        largest = float(torch.linalg.vector_norm(weight_VE, dim=1).max())
        rounding = float(torch.linalg.vector_norm(weight_VE - rounded_VE, dim=1).max())
        return cls(weight_VE, _version(weight_VE), rounded_VE, largest, rounding)

    def fits(self, weight_VE: Tensor) -> bool:
        """Return whether this is a copy of these weights as they are now."""
        return self.of_weight is weight_VE and self.version == _version(weight_VE)


def _version(weight_VE: Tensor) -> int:
    """Return what in-place operations raise; inference tensors count none, and cannot be trained."""
    return 0 if weight_VE.is_inference() else weight_VE._version


class NearestTokens:
    """Finds the tokens with the largest logits; keeps a bf16 copy of weights that are frozen.

    Weights that are being trained are never screened: fused optimisers change them without a trace, and a stale copy
    would choose other tokens.
    """

    def __init__(self) -> None:
        self._screen: _Screen | None = None

    @torch.no_grad()
    def __call__(self, states_xE: Tensor, weight_VE: Tensor) -> Tensor:
        """Return the tokens (...) whose logits `weight @ state` are the largest.

        Args:
            states_xE: The decoder's hidden states, (..., E).
            weight_VE: Weights of the logits, (V, E).
        """
        device = weight_VE.device.type
        large = weight_VE.numel() >= SMALLEST_SCREENED
        screened = device == "cpu" and _bf16_is_fast() and large and not weight_VE.requires_grad
        autocast = torch.is_autocast_enabled(device)
        if screened and not autocast and states_xE.dtype == weight_VE.dtype == torch.float32:
            if self._screen is None or not self._screen.fits(weight_VE):
                self._screen = _Screen.of(weight_VE)
            screen = self._screen
        else:
            screen = None
        if autocast and not weight_VE.requires_grad:
            # Once, not for every group of rows: autocast keeps no copy of frozen weights.
            weight_VE = weight_VE.to(torch.get_autocast_dtype(device))
        groups = states_xE.flatten(0, -2).split(max(1, LOGITS_BYTES // (4 * len(weight_VE))))
        found = [_largest(part, weight_VE) if screen is None else _screened(part, weight_VE, screen) for part in groups]
        return torch.cat(found).view(states_xE.shape[:-1])


def _largest(states_CE: Tensor, weight_VE: Tensor) -> Tensor:
    # `max` with its index: on CPUs five times as fast as `argmax` in bf16, and the same index.
    return functional.linear(states_CE, weight_VE).max(dim=-1).indices


def _screened(states_CE: Tensor, weight_VE: Tensor, screen: _Screen) -> Tensor:
    """Return the tokens of float32 states.

    |h.e - h'.e'| <= |h - h'| |e| + |h'| |e - e'| for rounded h', e'; summing E products in float32 adds at most
    E 2^-24 |h'| |e'|, and rounding the result its own relative error.
    """
    rounded_CE = states_CE.bfloat16()
    value_Cm, token_Cm = (rounded_CE @ screen.weight.T).topk(min(CANDIDATES, len(weight_VE)), dim=-1)
    best_C, last_C = value_Cm[:, 0].float(), value_Cm[:, -1].float()
    token_Cm = token_Cm.sort(dim=-1).values  # of equal logits the first counts, as in `_largest`
    left_out_C = torch.linalg.vector_norm(states_CE - rounded_CE, dim=-1)
    norm_C = torch.linalg.vector_norm(states_CE, dim=-1) * (1 + HALF_STEP)
    summing = screen.largest * (1 + HALF_STEP) * states_CE.shape[-1] * 2.0**-24
    error_C = left_out_C * screen.largest + norm_C * (screen.rounding + summing)
    certain_C = last_C + HALF_STEP * last_C.abs() + 2 * error_C < best_C - HALF_STEP * best_C.abs()
    exact_Cm = torch.einsum("ce,cme->cm", states_CE, weight_VE[token_Cm])
    found_C = token_Cm.gather(1, exact_Cm.max(dim=1, keepdim=True).indices).squeeze(1)
    open_X = (~certain_C).nonzero().squeeze(1)
    if len(open_X):
        found_C[open_X] = _largest(states_CE[open_X], weight_VE)
    return found_C

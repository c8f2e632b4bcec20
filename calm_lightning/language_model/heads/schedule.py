"""The noise schedule of the diffusion head: cosine betas, and the chain respaced to fewer steps.

Plain arithmetic in float64 on the CPU, wherever the network is built: the tables are moved once to where they are used.
Source: Nichol & Dhariwal, arXiv 2102.09672: equation 17 (cosine), section 4 (respacing).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

LONGEST_BETA = 0.999


def cosine_betas(steps: int) -> Tensor:
    """Return the variances of the forward process, (steps,), float64."""

    def kept(fraction: float) -> float:
        return math.cos((fraction + 0.008) / 1.008 * math.pi / 2) ** 2

    ratios = [kept((step + 1) / steps) / kept(step / steps) for step in range(steps)]
    return torch.tensor([min(1 - ratio, LONGEST_BETA) for ratio in ratios], dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Chain:
    """A diffusion chain and everything that follows from its betas; every tensor is (steps,).

    Attributes:
        time: Step of the original chain that each step stands for, int64.
        kept: alpha-bar: share of the latent's variance left after the step.
        log_beta: log of the variance that the step adds.
        log_posterior: log variance of the previous state given this one and the latent, clipped at the first step,
            where it is zero.
        mean_latent: Weight of the latent in that posterior's mean.
        mean_state: Weight of the state in it.
    """

    time: Tensor
    kept: Tensor
    log_beta: Tensor
    log_posterior: Tensor
    mean_latent: Tensor
    mean_state: Tensor

    @classmethod
    def from_betas(cls, beta: Tensor, time: Tensor) -> Chain:
        """Return the chain with the given variances; tables are float32."""
        kept = (1 - beta).cumprod(0)
        before = torch.cat((torch.ones_like(kept[:1]), kept[:-1]))
        posterior = beta * (1 - before) / (1 - kept)
        posterior[0] = posterior[1]
        return cls(
            time=time,
            kept=kept,
            log_beta=beta.log().float(),
            log_posterior=posterior.log().float(),
            mean_latent=(beta * before.sqrt() / (1 - kept)).float(),
            mean_state=((1 - before) * (1 - beta).sqrt() / (1 - kept)).float(),
        )

    def to(self, device: torch.device) -> Chain:
        """Return the chain with its tables on a device; MPS, which has no float64, gets float32."""
        wide = torch.float32 if device.type == "mps" else torch.float64
        return Chain(
            **{
                name: table.to(device, wide if table.dtype == torch.float64 else table.dtype)
                for name, table in vars(self).items()
            }
        )

    @classmethod
    def full(cls, steps: int) -> Chain:
        """Return the cosine chain of `steps` steps."""
        return cls.from_betas(cosine_betas(steps), torch.arange(steps, device="cpu"))

    def respaced(self, steps: int) -> Chain:
        """Return the chain that visits `steps` evenly spaced steps of this one, first and last included.

        Raises:
            ValueError: Fewer than 2 steps, or more than this chain has.
        """
        if not 2 <= steps <= len(self.time):
            raise ValueError(f"a chain of {len(self.time)} steps can be respaced to 2 to {len(self.time)}, not {steps}")
        # Summed rather than multiplied, as in the published code: rounding differs at some numbers of steps.
        strides = itertools.accumulate([(len(self.time) - 1) / (steps - 1)] * (steps - 1), initial=0.0)
        visited = torch.tensor([round(place) for place in strides], device="cpu")
        kept = self.kept[visited]
        before = torch.cat((torch.ones_like(kept[:1]), kept[:-1]))
        return Chain.from_betas(1 - kept / before, visited)

"""Parts of the Llama-style block: RMSNorm, rotary embedding, SwiGLU.

Shape suffixes: B batch, L positions, D width, H heads, A width of one head.
Projections that read the same input are one matrix (q, k, v; gate, up): fewer, larger matmuls.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class SwiGLU(nn.Module):
    """Feed-forward `down(SiLU(gate(x)) * up(x))` without biases.

    Source: Shazeer, arXiv 2002.05202, equation 5.
    """

    def __init__(self, width: int, intermediate: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * intermediate, bias=False)
        self.down = nn.Linear(intermediate, width, bias=False)

    def forward(self, hidden_xD: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        gate, up = self.gate_up(hidden_xD).chunk(2, dim=-1)
        return self.down(functional.silu(gate) * up)  # type: ignore[no-any-return]


class ResidualSwiGLU(nn.Module):
    """Pre-norm residual feed-forward, `x + SwiGLU(RMSNorm(x))`: a block that mixes no positions."""

    def __init__(self, width: int, intermediate: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=norm_eps)
        self.mlp = SwiGLU(width, intermediate)

    def forward(self, hidden_xD: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        return hidden_xD + self.mlp(self.norm(hidden_xD))  # type: ignore[no-any-return]


def rotary_table(positions_L: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the rotary angles, each (L, A/2), float32.

    Args:
        positions_L: Positions, any integer values, (L,).
        head_width: A, even.
        theta: Base of the geometric series of frequencies.

    Source: Su et al., arXiv 2104.09864, section 3.2.
    """
    exponent = torch.arange(0, head_width, 2, device=positions_L.device, dtype=torch.float32) / head_width
    angle = positions_L.float().unsqueeze(-1) / theta**exponent
    return angle.cos(), angle.sin()


def rotate(x_LxA: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of the last dimension by the given angles (the Llama layout).

    Args:
        x_LxA: Queries or keys, (..., A).
        cos: Cosines, broadcastable to (..., A/2).
        sin: Sines, likewise.

    Returns:
        The rotated tensor, the shape and dtype of `x_LxA`.
    """
    first, second = x_LxA.chunk(2, dim=-1)
    cos, sin = cos.to(x_LxA.dtype), sin.to(x_LxA.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

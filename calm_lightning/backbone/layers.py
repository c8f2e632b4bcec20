"""Parts of the Llama-style block: RMSNorm, rotary embedding, SwiGLU.

Shape suffixes: B batch, L positions, D width, H heads, A width of one head.
Projections that read the same input are one matrix (q, k, v; gate, up): fewer, larger matmuls.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _FewPassRMSNorm(torch.autograd.Function):
    """RMSNorm in as few passes over memory as eager operations allow.

    PyTorch has a fused kernel on GPUs only; on CPUs its composition of small operations costs two to four times this
    (1,500 to 12,000 rows of width 192, forward and backward), which at small sizes is a tenth of a training step.
    """

    @staticmethod
    def forward(ctx: Any, x_xD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Return x / sqrt(mean(x^2) + eps) * weight, (..., D), in the wider of the two dtypes."""
        width = x_xD.shape[-1]
        wide = torch.promote_types(x_xD.dtype, torch.float32)
        square_x1: Tensor = torch.linalg.vector_norm(x_xD, dim=-1, keepdim=True, dtype=wide).square_()
        scale_x1 = square_x1.div_(width).add_(eps).rsqrt_()
        ctx.save_for_backward(x_xD, weight_D, scale_x1)
        return (x_xD * scale_x1).mul_(weight_D)

    @staticmethod
    def backward(ctx: Any, grad_xD: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of x and weight."""
        x_xD, weight_D, scale_x1 = ctx.saved_tensors
        width = x_xD.shape[-1]
        normal_xD = x_xD * scale_x1
        product_PD = (grad_xD * normal_xD).reshape(-1, width)
        mean_x1 = (product_PD @ weight_D).div_(width).view_as(scale_x1)
        grad_input_xD = (grad_xD * weight_D).addcmul_(normal_xD, mean_x1, value=-1).mul_(scale_x1)
        return grad_input_xD.to(x_xD.dtype), product_PD.sum(0), None


class RMSNorm(nn.Module):
    """Divides by the root mean square of the last dimension and scales by a learned weight.

    Source: Zhang & Sennrich, arXiv 1910.07467, equation 4.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_xD: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        if x_xD.device.type == "cpu":
            return _FewPassRMSNorm.apply(x_xD, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return functional.rms_norm(x_xD, self.weight.shape, self.weight.to(x_xD.dtype), self.eps)


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
        return self.down(functional.silu(gate) * up)


class ResidualSwiGLU(nn.Module):
    """Pre-norm residual feed-forward, `x + SwiGLU(RMSNorm(x))`: a block that mixes no positions."""

    def __init__(self, width: int, intermediate: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(width, norm_eps)
        self.mlp = SwiGLU(width, intermediate)

    def forward(self, hidden_xD: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        return hidden_xD + self.mlp(self.norm(hidden_xD))


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

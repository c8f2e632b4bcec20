"""The network inside the flow and diffusion heads: a residual MLP steered by time and hidden state (AdaLN).

Shape suffixes: x any leading dimensions, P flattened positions, D width, Z latent dimension, F time frequencies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from calm_lightning.backbone.transformer import init_xavier
from calm_lightning.language_model.heads.base import NORM_EPS
from calm_lightning.language_model.heads.registry import TIME_FEATURES

_LONGEST_PERIOD = 10_000.0


def time_features(time_x: Tensor) -> Tensor:
    """Return cosines and sines of a time (...) on a geometric series of frequencies: (..., 256), float32.

    Source: Vaswani et al., arXiv 1706.03762, section 3.5; in this form (cosines first) Dhariwal & Nichol, 2105.05233.
    """
    half = TIME_FEATURES // 2
    steps_F = torch.arange(half, device=time_x.device, dtype=torch.float32) / half
    angle_xF = time_x.float().unsqueeze(-1) * torch.exp(-math.log(_LONGEST_PERIOD) * steps_F)
    return torch.cat((angle_xF.cos(), angle_xF.sin()), dim=-1)


class ModulatedBlock(nn.Module):
    """`x + gate * MLP(LayerNorm(x) * (1 + scale) + shift)`, where the steering vector gives shift, scale and gate."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d, eps=NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, d))
        self.modulation = nn.Linear(d, 3 * d)

    def forward(self, state_xD: Tensor, steering_xD: Tensor) -> Tensor:
        """Map states (..., D) to (..., D); the steering, after its SiLU, may have fewer leading dimensions."""
        shift, scale, gate = self.modulation(steering_xD).chunk(3, dim=-1)
        return state_xD + gate * self.mlp(torch.addcmul(shift, self.norm(state_xD), 1 + scale))


class ModulatedMLP(nn.Module):
    """Maps a noisy latent, its time and a hidden state to a prediction.

    Whatever depends on hidden state and time alone is computed once for all draws that share them.

    Args:
        d: Width of the hidden state and of the network.
        l: Latent dimension.
        outputs: Width of the prediction.
        blocks: Number of residual blocks.

    Source: Li et al., arXiv 2406.11838 (a diffusion loss per token); Peebles & Xie, arXiv 2212.09748 (AdaLN-Zero).
    """

    def __init__(self, d: int, l: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.input = nn.Linear(l, d)
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, d), nn.SiLU(), nn.Linear(d, d))
        self.condition = nn.Linear(d, d)
        self.blocks = nn.ModuleList(ModulatedBlock(d) for _ in range(blocks))
        self.final_modulation = nn.Linear(d, 2 * d)
        self.to_output = nn.Linear(d, outputs)
        self._initialise()

    def _initialise(self) -> None:
        """Start as the zero map: every modulation and the output at zero."""
        init_xavier(self)
        for name, weight in self.named_parameters():
            if name in ("time.0.weight", "time.2.weight"):
                nn.init.normal_(weight, std=0.02)
            elif name.endswith(("modulation.weight", "to_output.weight")):
                nn.init.zeros_(weight)

    def forward(self, latent_xPZ: Tensor, time_xP: Tensor, condition_PD: Tensor) -> Tensor:
        """Return predictions (..., P, outputs).

        Args:
            latent_xPZ: Noisy latents, (..., P, Z).
            time_xP: Time of each, in steps of 1/1000; broadcasts to (..., P).
            condition_PD: What `self.condition` made of the hidden states, (P, D).
        """
        steering_xPD = functional.silu(self.time(time_features(time_xP)) + condition_PD)
        state_xPD = self.input(latent_xPZ)
        for block in self.blocks:
            state_xPD = block(state_xPD, steering_xPD)
        shift, scale = self.final_modulation(steering_xPD).chunk(2, dim=-1)
        normal_xPD = functional.layer_norm(state_xPD, state_xPD.shape[-1:], eps=NORM_EPS)
        return self.to_output(torch.addcmul(shift, normal_xPD, 1 + scale))

"""The energy head (one network call per draw) and the energy score it is trained with.

Shape suffixes: P flattened positions, D width, Z latent dimension (the paper's l), N head draws, M posterior targets.
The head's cost is N draws per position in training and 1 in generation; everything that depends on the hidden state
alone (its embedding, and its half of each block's first matrix) is computed once per position.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from calm_lightning.backbone.transformer import init_xavier
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.language_model.heads.base import NORM_EPS, GenerativeHead


class EnergyBlock(nn.Module):
    """One residual block: `e + Linear(SiLU(gate) * up)`, gate and up from an MLP over (LayerNorm(e), c)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d, eps=NORM_EPS)
        self.mix = nn.Linear(2 * d, d)
        self.middle = nn.Linear(d, d)
        self.gate_up = nn.Linear(d, 2 * d)
        self.down = nn.Linear(d, d)

    def forward(self, noise_NPD: Tensor, condition_PD: Tensor) -> Tensor:
        """Map the draws' states (N, P, D) to (N, P, D) given the condition (P, D)."""
        noise_half_DD, condition_half_DD = self.mix.weight.chunk(2, dim=1)
        per_position_PD = functional.linear(condition_PD, condition_half_DD, self.mix.bias)
        mixed_NPD = functional.linear(self.norm(noise_NPD), noise_half_DD) + per_position_PD
        hidden_NPD = functional.silu(self.middle(functional.silu(mixed_NPD)))
        gate_NPD, up_NPD = self.gate_up(hidden_NPD).chunk(2, dim=-1)
        return noise_NPD + self.down(functional.silu(gate_NPD) * up_NPD)


class EnergyHead(GenerativeHead):
    """Draws latents from a hidden state and noise in one forward pass.

    Args:
        config: Shape of the head (d, l, noise, noise_size, head_blocks) and of its loss (N, M, alpha).

    Source: arXiv 2510.27688, the energy-based generative head.
    """

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__(config)
        d, l, blocks = config.d, config.latent_width(), config.head_blocks
        self.noise, self.noise_size = config.noise, config.noise_size
        self.N, self.targets, self.alpha = config.N, config.M, config.alpha
        self.noise_embedding = nn.Linear(config.noise_size, d)
        self.noise_norm = nn.LayerNorm(d, eps=NORM_EPS)
        self.hidden_embedding = nn.Linear(d, d)
        self.hidden_norm = nn.LayerNorm(d, eps=NORM_EPS)
        self.blocks = nn.ModuleList(EnergyBlock(d) for _ in range(blocks))
        self.final_norm = nn.LayerNorm(d, eps=NORM_EPS)
        self.final_hidden = nn.Linear(d, d)
        self.to_latent = nn.Linear(d, l)
        init_xavier(self)
        nn.init.zeros_(self.to_latent.weight)

    def forward(self, hidden_PD: Tensor, noise_NPU: Tensor) -> Tensor:
        """Return the latents (N, P, Z) that noise makes of hidden states.

        Args:
            hidden_PD: Hidden states, (P, D).
            noise_NPU: Noise, (N, P, noise_size).
        """
        condition_PD = self.hidden_norm(self.hidden_embedding(hidden_PD))
        state_NPD = self.noise_norm(self.noise_embedding(noise_NPU))
        for block in self.blocks:
            state_NPD = block(state_NPD, condition_PD)
        return self.to_latent(functional.silu(self.final_hidden(self.final_norm(state_NPD))))

    def sample(self, hidden_PD: Tensor, num: int) -> Tensor:
        """See `GenerativeHead.sample`."""
        shape = (num, hidden_PD.shape[0], self.noise_size)
        if self.noise == "gaussian":
            return self.forward(hidden_PD, torch.randn(shape, device=hidden_PD.device))
        return self.forward(hidden_PD, torch.rand(shape, device=hidden_PD.device) - 0.5)

    def loss(self, hidden_PD: Tensor, targets_MPZ: Tensor) -> Tensor:
        """See `GenerativeHead.loss`: the energy loss of N fresh draws."""
        return -energy_score(self.sample(hidden_PD, self.N), targets_MPZ, self.alpha)


def _distances(x_PNZ: Tensor, y_PMZ: Tensor, alpha: float) -> Tensor:
    """Return ||x - y||^alpha of every pair at every position, (P, N, M), with gradient 0 at distance 0.

    From inner products, so that no (N, M, P, Z) tensor exists.
    """
    squares = x_PNZ.square().sum(-1).unsqueeze(2) + y_PMZ.square().sum(-1).unsqueeze(1)
    squared_PNM = torch.baddbmm(squares, x_PNZ, y_PMZ.transpose(1, 2), alpha=-2)
    # Below the smallest normal float the root's gradient is infinite; clamp makes it zero there. A small alpha would
    # turn even that float into a distance worth noticing, so a distance of zero is zero by the mask.
    tiny = torch.finfo(squared_PNM.dtype).tiny
    return (squared_PNM.clamp(min=tiny) ** (alpha / 2)) * (squared_PNM > tiny)


def energy_score(draws_NPZ: Tensor, targets_MPZ: Tensor, alpha: float) -> Tensor:
    """Return the energy score of every position, higher is better: (P,).

    `1/(N(N-1)) sum_{n != k} ||x_n - x_k||^alpha - 2/(NM) sum_{n,m} ||x_n - y_m||^alpha`; its negative mean is the
    loss. Strictly proper for 0 < alpha < 2. Cost per position: matmuls of N x M x Z and N x N x Z; memory N (M + N).

    Args:
        draws_NPZ: Head draws x, (N, P, Z), N at least 2.
        targets_MPZ: Posterior draws y of the true next chunk, (M, P, Z).
        alpha: Exponent of the distance.

    Source: arXiv 2510.27688, the energy loss; Szekely & Rizzo 2013.
    """
    N, M = draws_NPZ.shape[0], targets_MPZ.shape[0]
    with torch.autocast(draws_NPZ.device.type, enabled=False):
        # Distances ignore a common shift; centring keeps |x|^2 + |y|^2 - 2xy from cancelling. Draws are centred anew
        # among themselves: early in training they lie much closer to one another than to the targets.
        centre_PZ = targets_MPZ.mean(0)
        x_PNZ = (draws_NPZ.to(centre_PZ.dtype) - centre_PZ).transpose(0, 1)
        y_PMZ = (targets_MPZ - centre_PZ).transpose(0, 1)
        to_targets_P = _distances(x_PNZ, y_PMZ, alpha).sum((1, 2))
        own_PNZ = x_PNZ - x_PNZ.mean(1, keepdim=True)
        between_PNN = _distances(own_PNZ, own_PNZ, alpha)
        diagonal = torch.eye(N, dtype=torch.bool, device=between_PNN.device)
        between_P = between_PNN.masked_fill(diagonal, 0).sum((1, 2))
        return between_P / (N * (N - 1)) - to_targets_P * (2 / (N * M))

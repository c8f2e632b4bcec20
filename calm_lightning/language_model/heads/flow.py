"""The flow-matching head: noise is carried to a latent along a learned velocity field.

Shape suffixes: P flattened positions, D width, Z latent dimension (the paper's l), N draws.
Cost of a draw: `network_calls` passes through the network; a training step makes N per position.
Source: arXiv 2510.27688, the alternative heads; Lipman et al., arXiv 2210.02747 (conditional flow matching).
"""

from __future__ import annotations

import torch
from torch import Tensor

from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.language_model.heads.base import GenerativeHead
from calm_lightning.language_model.heads.mlp import ModulatedMLP
from calm_lightning.language_model.heads.registry import sampling_plan

TIME_STEPS = 1000
"""The network is told floor(1000 t) of a time t in [0, 1)."""


class FlowHead(GenerativeHead):
    """Regresses the velocity z - x0 at x_t = (1 - t) x0 + t z; draws by integrating it from t = 0 to 1.

    Args:
        config: d, l, head_blocks, N (posterior draws per position in the loss), sampling_steps, solver: "midpoint" (two
            network calls per step) or "euler" (one).
    """

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__(config)
        self.l, self.targets = config.latent_width(), config.N
        self.steps, self.solver = sampling_plan(config)
        self.net = ModulatedMLP(config.d, self.l, self.l, config.head_blocks)

    def velocity(self, latent_NPZ: Tensor, time_NP: Tensor, condition_PD: Tensor) -> Tensor:
        """Return the velocity (..., P, Z) at latents (..., P, Z) and times in [0, 1), broadcastable to (..., P)."""
        return self.net(latent_NPZ, (time_NP * TIME_STEPS).floor(), condition_PD)

    def loss(self, hidden_PD: Tensor, targets_MPZ: Tensor) -> Tensor:
        """See `GenerativeHead.loss`; a uniform time and a Gaussian start are drawn per target."""
        time_MP = torch.rand(targets_MPZ.shape[:2], device=hidden_PD.device)
        return self.velocity_error(hidden_PD, targets_MPZ, torch.randn_like(targets_MPZ), time_MP).mean(0)

    def velocity_error(self, hidden_PD: Tensor, targets_MPZ: Tensor, start_MPZ: Tensor, time_MP: Tensor) -> Tensor:
        """Return the mean squared error of the velocity over latent dimensions, (M, P).

        Args:
            hidden_PD: Hidden states, (P, D).
            targets_MPZ: Latents z, (M, P, Z).
            start_MPZ: Noise x0, (M, P, Z).
            time_MP: Times t in [0, 1), (M, P).
        """
        path_MPZ = torch.lerp(start_MPZ, targets_MPZ, time_MP.unsqueeze(-1))
        velocity_MPZ = self.velocity(path_MPZ, time_MP, self.net.condition(hidden_PD))
        return (velocity_MPZ.float() - (targets_MPZ - start_MPZ)).square().mean(-1)

    def sample(self, hidden_PD: Tensor, num: int) -> Tensor:
        """See `GenerativeHead.sample`."""
        start_NPZ = torch.randn((num, hidden_PD.shape[0], self.l), device=hidden_PD.device)
        return self.integrate(hidden_PD, start_NPZ)

    def integrate(self, hidden_PD: Tensor, start_NPZ: Tensor) -> Tensor:
        """Carry noise (N, P, Z) to latents (N, P, Z), float32, given hidden states (P, D)."""
        condition_PD = self.net.condition(hidden_PD)
        length = 1 / self.steps
        state_NPZ = start_NPZ
        for step in range(self.steps):
            # In float32: floor(1000 t) must fall as it does for a time made by float32 arithmetic.
            time = torch.tensor([step * length], device=start_NPZ.device)
            point_NPZ = state_NPZ
            if self.solver == "midpoint":
                point_NPZ = state_NPZ + self.velocity(state_NPZ, time, condition_PD).float() * (length / 2)
                time = time + length / 2
            state_NPZ = state_NPZ + self.velocity(point_NPZ, time, condition_PD).float() * length
        return state_NPZ

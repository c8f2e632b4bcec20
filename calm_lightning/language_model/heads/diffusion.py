"""The diffusion head: noise is turned into a latent by undoing Gaussian noise step by step.

Shape suffixes: P flattened positions, D width, Z latent dimension (the paper's l), N draws, x leading dimensions.
Cost of a draw: one network call per step, about 100 of them; a training step makes N calls per position.
Source: arXiv 2510.27688, the alternative heads; Nichol & Dhariwal, arXiv 2102.09672 (cosine, learned variance).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.language_model.heads.base import GenerativeHead
from calm_lightning.language_model.heads.mlp import ModulatedMLP
from calm_lightning.language_model.heads.registry import sampling_plan
from calm_lightning.language_model.heads.schedule import Chain

TRAINING_STEPS = 1000
LATENT_BOUND = 10.0
"""Predicted latents are held within it while drawing. Latents are nearly standard normal: only an error meets it, and
without it a small error in the first steps, where next to nothing of the latent is left, grows several hundredfold."""


class DiffusionHead(GenerativeHead):
    """Predicts the noise in a noisy latent and how to mix two bounds of the reverse step's variance.

    Args:
        config: d, l, head_blocks, N (posterior draws per position in the loss), sampling_steps (2 to 1000), solver:
            "ddpm" draws every reverse step; "ddim" follows its deterministic mean (arXiv 2010.02502, eta = 0).
    """

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__(config)
        self.l, self.targets = config.latent_width(), config.N
        steps, self.solver = sampling_plan(config)
        self.net = ModulatedMLP(config.d, self.l, 2 * self.l, config.head_blocks)
        self.training_chain = Chain.full(TRAINING_STEPS)
        self.sampling_chain = self.training_chain.respaced(steps)

    def _place_chains(self, device: torch.device) -> None:
        """Move the tables to where they are used; they are no buffers, since they follow from the configuration."""
        if self.training_chain.kept.device != device:
            self.training_chain, self.sampling_chain = self.training_chain.to(device), self.sampling_chain.to(device)

    def add_noise(self, latent_xZ: Tensor, noise_xZ: Tensor, step_x: Tensor) -> Tensor:
        """Return the noisy latent (..., Z) after the training chain's steps 0..step, step (...)."""
        self._place_chains(latent_xZ.device)
        kept_x1 = _at(self.training_chain.kept, step_x)
        return kept_x1.sqrt().float() * latent_xZ + (1 - kept_x1).sqrt().float() * noise_xZ

    def loss(self, hidden_PD: Tensor, targets_MPZ: Tensor) -> Tensor:
        """See `GenerativeHead.loss`; a uniform step and Gaussian noise are drawn per target."""
        step_MP = torch.randint(TRAINING_STEPS, targets_MPZ.shape[:2], device=hidden_PD.device)
        noise_MPZ = torch.randn_like(targets_MPZ)
        noise_error, variance_bound = self.errors(hidden_PD, targets_MPZ, noise_MPZ, step_MP)
        return (noise_error + variance_bound).mean(0)

    def errors(
        self, hidden_PD: Tensor, targets_MPZ: Tensor, noise_MPZ: Tensor, step_MP: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the two parts of the loss, each (M, P), means over latent dimensions.

        Args:
            hidden_PD: Hidden states, (P, D).
            targets_MPZ: Latents, (M, P, Z).
            noise_MPZ: Gaussian noise, (M, P, Z).
            step_MP: Steps of the training chain, (M, P).

        Returns:
            noise_error: Squared error of the predicted noise; trains the mean.
            variance_bound: Bits per dimension of the variational bound at that step; trains the variance alone, the
                predicted mean taking no gradient from it.
        """
        noisy_MPZ = self.add_noise(targets_MPZ, noise_MPZ, step_MP)
        output = self.net(noisy_MPZ, step_MP, self.net.condition(hidden_PD)).float()
        predicted_MPZ, mix_MPZ = output.chunk(2, dim=-1)
        noise_error_MP = (predicted_MPZ - noise_MPZ).square().mean(-1)
        chain = self.training_chain
        mean, log_variance = reverse_step(chain, noisy_MPZ, predicted_MPZ.detach(), mix_MPZ, step_MP)
        true_mean = _posterior_mean(chain, targets_MPZ, noisy_MPZ, step_MP)
        true_log_variance = _at(chain.log_posterior, step_MP)
        divergence_MP = _gaussian_kl(true_mean, true_log_variance, mean, log_variance).mean(-1)
        likelihood_MP = -_binned_log_likelihood(targets_MPZ, mean, 0.5 * log_variance).mean(-1)
        return noise_error_MP, torch.where(step_MP == 0, likelihood_MP, divergence_MP) / math.log(2)

    def sample(self, hidden_PD: Tensor, num: int) -> Tensor:
        """See `GenerativeHead.sample`."""
        self._place_chains(hidden_PD.device)
        chain, condition_PD = self.sampling_chain, self.net.condition(hidden_PD)
        steps = torch.arange(len(chain.time), device=hidden_PD.device)
        state_NPZ = torch.randn((num, hidden_PD.shape[0], self.l), device=hidden_PD.device)
        for index in reversed(range(len(chain.time))):
            step = steps[index : index + 1]
            predicted, mix = self.predict(state_NPZ, step, condition_PD)
            if self.solver == "ddim":
                state_NPZ = _deterministic_step(chain, state_NPZ, predicted, step)
                continue
            state_NPZ, log_variance = reverse_step(chain, state_NPZ, predicted, mix, step, LATENT_BOUND)
            if index > 0:
                state_NPZ = state_NPZ + (0.5 * log_variance).exp() * torch.randn_like(state_NPZ)
        return state_NPZ

    def predict(self, state_NPZ: Tensor, step_x: Tensor, condition_PD: Tensor) -> tuple[Tensor, Tensor]:
        """Return predicted noise and variance mix, each (..., P, Z), float32.

        Args:
            state_NPZ: Noisy latents, (..., P, Z).
            step_x: Steps of the sampling chain, broadcastable to (..., P).
            condition_PD: What the network's `condition` made of the hidden states, (P, D).
        """
        self._place_chains(state_NPZ.device)
        time_x = self.sampling_chain.time[step_x]
        predicted, mix = self.net(state_NPZ, time_x, condition_PD).float().chunk(2, dim=-1)
        return predicted, mix


def reverse_step(
    chain: Chain,
    state_xZ: Tensor,
    predicted_xZ: Tensor,
    mix_xZ: Tensor,
    step_x: Tensor,
    bound: float = math.inf,
) -> tuple[Tensor, Tensor]:
    """Return mean and log variance, each (..., Z), of the state one step earlier.

    Args:
        chain: The chain whose steps are meant.
        state_xZ: The noisy latent, (..., Z).
        predicted_xZ: The noise predicted in it, (..., Z).
        mix_xZ: -1 chooses the posterior's variance, 1 the step's beta; interpolated in the logarithm, (..., Z).
        step_x: Steps, broadcastable to (...).
        bound: Largest coordinate of the latent that the predicted noise amounts to.

    Source: Nichol & Dhariwal, arXiv 2102.09672, equations 9 to 11 and 15.
    """
    share = (mix_xZ + 1) / 2
    log_variance = share * _at(chain.log_beta, step_x) + (1 - share) * _at(chain.log_posterior, step_x)
    latent_xZ = _latent_from_noise(chain, state_xZ, predicted_xZ, step_x).clamp(-bound, bound)
    return _posterior_mean(chain, latent_xZ, state_xZ, step_x), log_variance


def _at(table: Tensor, step_x: Tensor) -> Tensor:
    """Return the table's values at steps (...), (..., 1)."""
    return table[step_x].unsqueeze(-1)


def _latent_from_noise(chain: Chain, state_xZ: Tensor, noise_xZ: Tensor, step_x: Tensor) -> Tensor:
    kept = _at(chain.kept, step_x)
    return (1 / kept).sqrt().float() * state_xZ - (1 / kept - 1).sqrt().float() * noise_xZ


def _posterior_mean(chain: Chain, latent_xZ: Tensor, state_xZ: Tensor, step_x: Tensor) -> Tensor:
    return _at(chain.mean_latent, step_x) * latent_xZ + _at(chain.mean_state, step_x) * state_xZ


def _deterministic_step(chain: Chain, state_xZ: Tensor, noise_xZ: Tensor, step_x: Tensor) -> Tensor:
    """Return the state one step earlier on the path that adds no fresh noise."""
    kept = _at(chain.kept, step_x).float()
    before = torch.where(step_x.unsqueeze(-1) > 0, _at(chain.kept, (step_x - 1).clamp(min=0)).float(), 1.0)
    latent_xZ = ((state_xZ - (1 - kept).sqrt() * noise_xZ) / kept.sqrt()).clamp(-LATENT_BOUND, LATENT_BOUND)
    noise_xZ = (state_xZ - kept.sqrt() * latent_xZ) / (1 - kept).sqrt()
    return before.sqrt() * latent_xZ + (1 - before).sqrt() * noise_xZ


def _gaussian_kl(mean_a: Tensor, log_variance_a: Tensor, mean_b: Tensor, log_variance_b: Tensor) -> Tensor:
    """Return KL(a || b) of diagonal Gaussians, elementwise, nats."""
    ratio = log_variance_a - log_variance_b
    return 0.5 * (ratio.exp() - 1 - ratio + (mean_a - mean_b).square() * (-log_variance_b).exp())


def _binned_log_likelihood(latent: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return the log probability of the bin of width 2/255 around a latent, elementwise, nats.

    The bound's last term for 8-bit images in [-1, 1], which the released code applies to latents as it is; bins beyond
    +-0.999 are open. It only trains the variance of the last step.
    Source: Ho et al., arXiv 2006.11239, equation 13, with the tanh approximation of the normal distribution function.
    """
    centred, scale = latent - mean, (-log_std).exp()
    upper, lower = (_normal_cdf(scale * (centred + side / 255)) for side in (1, -1))
    tiny = 1e-12
    inner = (upper - lower).clamp(min=tiny).log()
    left, right = upper.clamp(min=tiny).log(), (1 - lower).clamp(min=tiny).log()
    return torch.where(latent < -0.999, left, torch.where(latent > 0.999, right, inner))


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

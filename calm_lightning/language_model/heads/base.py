"""What every generative head offers: the language model, its stage and the samplers know heads by this alone.

Shape suffixes: P flattened positions, D width, Z latent dimension (the paper's l), M targets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from calm_lightning.language_model.config import LanguageModelConfig

NORM_EPS = 1e-6


class GenerativeHead(nn.Module, ABC):
    """Draws latents from the distribution that a hidden state stands for, and learns from draws of the truth.

    Args:
        config: Shape of the head and of its loss; every head reads the fields that concern it.

    Attributes:
        targets: Posterior draws per position that `loss` is to be given.
    """

    targets: int

    @abstractmethod
    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()

    @abstractmethod
    def sample(self, hidden_PD: Tensor, num: int) -> Tensor:
        """Draw `num` latents per hidden state (P, D), independently: (num, P, Z)."""

    @abstractmethod
    def loss(self, hidden_PD: Tensor, targets_MPZ: Tensor) -> Tensor:
        """Return the training loss of every position, float32, (P,).

        Args:
            hidden_PD: Hidden states, (P, D).
            targets_MPZ: `targets` draws of the true next latent per position, (M, P, Z), float32.
        """

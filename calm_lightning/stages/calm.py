"""Stage 2: training the continuous language model against a frozen autoencoder.

Shape suffixes: B blocks, T tokens, L chunks, K tokens per chunk, P = B * (L - 1) positions, D width,
Z latent dimension, N head draws, M posterior targets, G start positions, S samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from calm_lightning.autoencoder.model import ChunkAutoencoder, draw_posterior
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.heads.energy import energy_score
from calm_lightning.metrics import names
from calm_lightning.metrics.brier_lm import brier_from_samples
from calm_lightning.sampling.continuations import continue_chunks, targets_at
from calm_lightning.sampling.generate import generate_chunks
from calm_lightning.stages.config import EvaluationConfig, OptimConfig
from calm_lightning.stages.scoring import ScoredStage


class CalmStage(ScoredStage):
    """Trains next-latent prediction. `train/loss` is the energy loss per position."""

    loss_name = names.VAL_ENERGY_LOSS

    model: ContinuousLM

    def __init__(
        self, model: ContinuousLM, autoencoder: ChunkAutoencoder, optim: OptimConfig, evaluation: EvaluationConfig
    ) -> None:
        super().__init__(optim, evaluation)
        self.model = model
        self.autoencoder = autoencoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> CalmStage:
        """Switch modes; the autoencoder stays in eval mode."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    def loss(self, tokens_BT: Tensor) -> Tensor:
        """Return the mean energy loss over the positions of token blocks (B, T), a scalar."""
        config = self.model.config
        chunks_BLK = tokens_BT.unflatten(1, (-1, self.model.K))
        with torch.no_grad():
            mean_PZ, log_std_PZ = self.autoencoder.encode(chunks_BLK[:, 1:].flatten(0, 1))
            targets_MPZ = draw_posterior(mean_PZ, log_std_PZ, config.M)
        hidden_PD = self.model(chunks_BLK[:, :-1]).flatten(0, 1)
        draws_NPZ = self.model.head.sample(hidden_PD, config.N)
        return -energy_score(draws_NPZ, targets_MPZ, config.alpha).mean()

    def scores(self, tokens_BT: Tensor, starts_G: Tensor) -> Tensor:
        """Return Brier-1..4 from S sampled continuations per start position, (B, G, 4)."""
        samples_BGS4 = continue_chunks(
            self.model, self.autoencoder.decode_tokens, tokens_BT, starts_G, self.evaluation.samples
        )
        target_BG4 = targets_at(tokens_BT, starts_G)
        return brier_from_samples(samples_BGS4.flatten(0, 1), target_BG4.flatten(0, 1)).unflatten(
            0, target_BG4.shape[:2]
        )

    @torch.no_grad()
    def generate(self, prompt_T: Tensor, num_tokens: int, temperature: float) -> Tensor:
        """Return `num_tokens` generated token ids that continue the prompt (T,), at temperature 1/n."""
        return generate_chunks(self.model, self.autoencoder.decode_tokens, prompt_T, num_tokens, round(1 / temperature))

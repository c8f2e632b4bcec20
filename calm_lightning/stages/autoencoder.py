"""Stage 1: training the chunk autoencoder.

Shape suffixes: B blocks, T tokens, C = B * T / K chunks, K tokens per chunk.
"""

from __future__ import annotations

from torch import Tensor

from calm_lightning.autoencoder.loss import AutoencoderLoss, autoencoder_loss
from calm_lightning.autoencoder.model import ChunkAutoencoder, draw_posterior
from calm_lightning.data.batch import TokenBatch
from calm_lightning.metrics import names
from calm_lightning.stages.base import Stage
from calm_lightning.stages.config import EvaluationConfig, OptimConfig


class AutoencoderStage(Stage):
    """Trains K tokens -> latent -> K tokens. `train/loss` is nats per chunk plus beta * KL."""

    model: ChunkAutoencoder

    def __init__(self, model: ChunkAutoencoder, optim: OptimConfig, evaluation: EvaluationConfig) -> None:
        super().__init__(optim, evaluation)
        self.model = model

    def _objective(self, tokens_CK: Tensor) -> tuple[AutoencoderLoss, Tensor, Tensor]:
        """Return the objective of one posterior draw, the draw's logits (C, K, V), and mu (C, Z)."""
        mean_CZ, log_std_CZ = self.model.encode(tokens_CK)
        logits_CKV = self.model.decode(draw_posterior(mean_CZ, log_std_CZ, 1)[0])
        config = self.model.config
        loss = autoencoder_loss(logits_CKV, tokens_CK, mean_CZ, log_std_CZ, config.beta, config.kl_clip)
        return loss, logits_CKV, mean_CZ

    def loss(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Return K * cross-entropy + beta * clipped KL of token blocks (B, T); it sees chunks, not documents."""
        return self._objective(tokens_BT.view(-1, self.model.K))[0].total

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Log the objective's parts and token accuracy from z = mu and from a posterior draw."""
        tokens_CK = batch.tokens.view(-1, self.model.K)
        objective, logits_CKV, mean_CZ = self._objective(tokens_CK)
        from_mean = (self.model.decode_tokens(mean_CZ) == tokens_CK).float().mean()
        from_draw = (logits_CKV.argmax(-1) == tokens_CK).float().mean()
        self.validation_loss(names.VAL_LOSS, objective.total, batch)
        self.log_mean(names.VAL_CROSS_ENTROPY, objective.cross_entropy, batch)
        self.log_mean(names.VAL_KL, objective.kl, batch)
        self.log_mean(names.VAL_ACCURACY_MEAN, from_mean, batch)
        self.log_mean(names.VAL_ACCURACY_SAMPLED, from_draw, batch)

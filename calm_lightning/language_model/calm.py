"""The continuous language model: a transformer over chunks whose head draws the next latent.

Shape suffixes: B batch, L chunks, K tokens per chunk, D width, P flattened positions, Z latent dimension.
Source: arXiv 2510.27688, next-vector prediction; discrete input (table 5): the model reads tokens, never latents.
"""

from __future__ import annotations

from torch import Tensor, nn

from calm_lightning.backbone.transformer import Transformer, init_weights, init_xavier
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.language_model.heads.energy import NORM_EPS, EnergyHead


class ChunkInput(nn.Module):
    """Compresses the embeddings of K tokens into one input vector of the backbone."""

    def __init__(self, K: int, d: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, d)
        self.compress = nn.Sequential(
            nn.Linear(K * d, 2 * d), nn.SiLU(), nn.Linear(2 * d, d), nn.LayerNorm(d, eps=NORM_EPS)
        )

    def forward(self, tokens_xK: Tensor) -> Tensor:
        """Map chunks of tokens (..., K) to input vectors (..., D)."""
        return self.compress(self.embedding(tokens_xK).flatten(-2))


class ContinuousLM(nn.Module):
    """Reads chunks of tokens and draws the latent of the next chunk. Knows no autoencoder.

    Args:
        config: Shape of backbone and head.
        vocabulary: Vocabulary size V.
    """

    def __init__(self, config: LanguageModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.K, self.l = config.K, config.latent_width()
        self.input = ChunkInput(self.K, config.d, vocabulary)
        self.backbone = Transformer(config.backbone())
        init_weights(self)
        init_xavier(self.input)
        self.head = EnergyHead(config.d, self.l, config.noise_size, config.head_blocks)

    def forward(self, tokens_BLK: Tensor) -> Tensor:
        """Return hidden states (B, L, D); position i has seen chunks 0..i and is to predict chunk i + 1."""
        return self.backbone(self.input(tokens_BLK))

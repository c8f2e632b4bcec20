"""The continuous language model: a transformer over chunks whose head draws the next latent.

Shape suffixes: B batch, L chunks, K tokens per chunk, D width, P flattened positions, Z latent dimension, x any.
Source: arXiv 2510.27688, next-vector prediction; table 5 for what the model may read (discrete tokens are best).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calm_lightning.backbone.transformer import Transformer, init_weights, init_xavier
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.language_model.documents import first_seen
from calm_lightning.language_model.heads.base import NORM_EPS, GenerativeHead
from calm_lightning.language_model.heads.registry import build_head


class ChunkInput(nn.Module):
    """Compresses one chunk (the embeddings of its K tokens, its latent, or both) into one input of the backbone."""

    def __init__(self, config: LanguageModelConfig, vocabulary: int) -> None:
        super().__init__()
        d = config.d
        self.reads_tokens, self.reads_latents = config.input != "latent", config.input != "discrete"
        if self.reads_tokens:
            self.embedding = nn.Embedding(vocabulary, d)
        self.compress = nn.Sequential(
            nn.Linear(config.input_width(), 2 * d), nn.SiLU(), nn.Linear(2 * d, d), nn.LayerNorm(d, eps=NORM_EPS)
        )

    def forward(self, tokens_xK: Tensor, latents_xZ: Tensor | None = None) -> Tensor:
        """Map chunks to input vectors (..., D).

        Args:
            tokens_xK: Their tokens, (..., K); not looked at where only latents are read.
            latents_xZ: Their latents, (..., Z); needed where latents are read.
        """
        parts = [self.embedding(tokens_xK).flatten(-2)] if self.reads_tokens else []
        if self.reads_latents:
            assert latents_xZ is not None, "a model that reads latents was given none"
            parts.append(latents_xZ)
        return self.compress(torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0])


class ContinuousLM(nn.Module):
    """Reads chunks and draws the latent of the next one. Knows no autoencoder.

    Args:
        config: Shape of backbone and head.
        vocabulary: Vocabulary size V.
    """

    def __init__(self, config: LanguageModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.K, self.l = config.K, config.latent_width()
        self.input = ChunkInput(config, vocabulary)
        self.backbone = Transformer(config.backbone())
        init_weights(self)
        init_xavier(self.input)
        self.head: GenerativeHead = build_head(config)

    @property
    def reads_latents(self) -> bool:
        """Whether the input needs the latents of chunks."""
        return self.input.reads_latents

    def first_seen(self, documents_BT: Tensor | None) -> Tensor | None:
        """Return the first chunk that each chunk sees, (B, L), of the documents of all tokens; see `first_seen`."""
        return first_seen(self.config, documents_BT, self.K)

    def forward(self, tokens_BLK: Tensor, latents_BLZ: Tensor | None = None, first_BL: Tensor | None = None) -> Tensor:
        """Run the backbone over chunks.

        Args:
            tokens_BLK: Their tokens, (B, L, K).
            latents_BLZ: Their latents, (B, L, Z), where the model reads latents.
            first_BL: First chunk that each chunk sees, (B, L), of `first_seen`; None means the first of all.

        Returns:
            Hidden states, (B, L, D); position i has seen chunks up to i and is to predict chunk i + 1.
        """
        return self.backbone(self.input(tokens_BLK, latents_BLZ), first_BL)

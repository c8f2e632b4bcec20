"""The chunk autoencoder: K tokens to one latent vector and back. Chunks do not see each other.

Shape suffixes: C chunks (any number), K tokens per chunk, E width, Z latent dimension (the paper's l), V vocabulary.
Source: arXiv 2510.27688, the robust autoencoder (no attention: the authors found that it costs BrierLM).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.backbone.layers import ResidualSwiGLU, RMSNorm
from calm_lightning.backbone.transformer import init_weights


class Encoder(nn.Module):
    """Tokens to the mean and log standard deviation of the posterior."""

    def __init__(self, config: AutoencoderConfig, K: int, l: int) -> None:
        super().__init__()
        half = config.encoder_layers // 2
        self.token_blocks = nn.ModuleList(_block(config) for _ in range(half))
        self.squeeze = nn.Linear(K * config.d, config.d)
        self.chunk_blocks = nn.ModuleList(_block(config) for _ in range(half))
        self.norm = RMSNorm(config.d, config.norm_eps)
        self.to_latent = nn.Linear(config.d, 2 * l)

    def forward(self, embedded_CKE: Tensor) -> tuple[Tensor, Tensor]:
        """Map embedded chunks (C, K, E) to mu and log sigma, each (C, Z)."""
        for block in self.token_blocks:
            embedded_CKE = block(embedded_CKE)
        hidden_CE = self.squeeze(embedded_CKE.flatten(1))
        for block in self.chunk_blocks:
            hidden_CE = block(hidden_CE)
        mean_CZ, log_std_CZ = self.to_latent(self.norm(hidden_CE)).chunk(2, dim=-1)
        return mean_CZ, log_std_CZ


class Decoder(nn.Module):
    """Latents to the K hidden states whose product with the embedding matrix are the logits."""

    def __init__(self, config: AutoencoderConfig, K: int, l: int) -> None:
        super().__init__()
        half = config.decoder_layers // 2
        self.K = K
        self.from_latent = nn.Linear(l, config.d)
        self.chunk_blocks = nn.ModuleList(_block(config) for _ in range(half))
        self.expand = nn.Linear(config.d, K * config.d)
        self.token_blocks = nn.ModuleList(_block(config) for _ in range(half))
        self.norm = RMSNorm(config.d, config.norm_eps)

    def forward(self, latent_CZ: Tensor) -> Tensor:
        """Map latents (C, Z) to normalised hidden states (C, K, E)."""
        hidden_CE = self.from_latent(latent_CZ)
        for block in self.chunk_blocks:
            hidden_CE = block(hidden_CE)
        hidden_CKE = self.expand(hidden_CE).unflatten(-1, (self.K, -1))
        for block in self.token_blocks:
            hidden_CKE = block(hidden_CKE)
        return self.norm(hidden_CKE)


def _block(config: AutoencoderConfig) -> ResidualSwiGLU:
    return ResidualSwiGLU(config.d, config.intermediate, config.norm_eps)


class ChunkAutoencoder(nn.Module):
    """A variational autoencoder of K tokens whose logits are tied to its token embedding.

    Args:
        config: Shape and regularisers.
        K: Tokens per chunk.
        l: Latent dimension.
        vocabulary: Vocabulary size V.
    """

    def __init__(self, config: AutoencoderConfig, K: int, l: int, vocabulary: int) -> None:
        super().__init__()
        self.config, self.K, self.l, self.vocabulary = config, K, l, vocabulary
        self.embedding = nn.Embedding(vocabulary, config.d)
        self.encoder = Encoder(config, K, l)
        self.decoder = Decoder(config, K, l)
        init_weights(self)

    def encode(self, tokens_CK: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and log sigma of the posterior, each (C, Z); drops tokens in training mode (DropToken)."""
        if self.training and self.config.drop_token > 0:
            dropped = torch.rand(tokens_CK.shape, device=tokens_CK.device) < self.config.drop_token
            tokens_CK = tokens_CK.masked_fill(dropped, self.config.mask_id)
        mean_CZ, log_std_CZ = self.encoder(self.embedding(tokens_CK))
        return mean_CZ, log_std_CZ

    def decode(self, latent_CZ: Tensor) -> Tensor:
        """Return logits (C, K, V) of latents (C, Z); drops latent coordinates in training mode (DropLatent)."""
        dropped_CZ = functional.dropout(latent_CZ, self.config.drop_latent, self.training)
        return functional.linear(self.decoder(dropped_CZ), self.embedding.weight)

    def decode_tokens(self, latent_CZ: Tensor) -> Tensor:
        """Return the most probable tokens (..., K) of latents (..., Z)."""
        flat_CK = self.decode(latent_CZ.flatten(0, -2)).argmax(dim=-1)
        return flat_CK.unflatten(0, latent_CZ.shape[:-1])


def draw_posterior(mean_xZ: Tensor, log_std_xZ: Tensor, num: int) -> Tensor:
    """Draw `num` latents from N(mu, sigma^2), (num, ..., Z), float32, by reparameterisation."""
    mean, std = mean_xZ.float(), log_std_xZ.float().exp()
    return torch.addcmul(mean, torch.randn((num, *mean.shape), device=mean.device), std)

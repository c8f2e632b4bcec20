"""The chunk autoencoder: K tokens to one latent vector and back. Chunks do not see each other.

Shape suffixes: C chunks (any number), K tokens per chunk, E width, Z latent dimension (the paper's l), V vocabulary.
Source: arXiv 2510.27688, the robust autoencoder (no attention: the authors found that it costs BrierLM).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.autoencoder.nearest import NearestTokens
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
        return self.token_states(self.expand(self.chunk_states(latent_CZ)).unflatten(-1, (self.K, -1)))

    def chunk_states(self, latent_CZ: Tensor) -> Tensor:
        """Map latents (C, Z) to the states (C, E) that all tokens of a chunk are made of."""
        hidden_CE = self.from_latent(latent_CZ)
        for block in self.chunk_blocks:
            hidden_CE = block(hidden_CE)
        return hidden_CE

    def expand_at(self, hidden_CE: Tensor, position: int) -> Tensor:
        """Return what `expand` makes of chunk states (C, E) for one of the K positions, (C, E)."""
        rows = slice(position * hidden_CE.shape[-1], (position + 1) * hidden_CE.shape[-1])
        return functional.linear(hidden_CE, self.expand.weight[rows], self.expand.bias[rows])

    def token_states(self, hidden_xE: Tensor) -> Tensor:
        """Map expanded states (..., E) to normalised hidden states (..., E), each position for itself."""
        for block in self.token_blocks:
            hidden_xE = block(hidden_xE)
        return self.norm(hidden_xE)


def _block(config: AutoencoderConfig) -> ResidualSwiGLU:
    return ResidualSwiGLU(config.d, config.intermediate, config.norm_eps)


class ChunkAutoencoder(nn.Module):
    """A variational autoencoder of K tokens whose logits are tied to its token embedding (by default).

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
        if not config.tied:
            self.logits = nn.Linear(config.d, vocabulary, bias=False)
        self._nearest = NearestTokens()
        init_weights(self)

    @property
    def logits_weight(self) -> Tensor:
        """The matrix (V, E) whose product with the decoder's hidden states are the logits."""
        return self.embedding.weight if self.config.tied else self.logits.weight

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
        return functional.linear(self.decoder(dropped_CZ), self.logits_weight)

    def decode_tokens(self, latent_CZ: Tensor) -> Tensor:
        """Return the most probable tokens (..., K) of latents (..., Z)."""
        return self._nearest(self.decoder(latent_CZ.flatten(0, -2)), self.logits_weight).unflatten(
            0, latent_CZ.shape[:-1]
        )

    def decode_position(self, states_CE: Tensor, position: int) -> Tensor:
        """Return the most probable token (C,) at one position of chunks, from `decoder.chunk_states` (C, E)."""
        return self._nearest(self.decoder.token_states(self.decoder.expand_at(states_CE, position)), self.logits_weight)


def draw_posterior(mean_xZ: Tensor, log_std_xZ: Tensor, num: int) -> Tensor:
    """Draw `num` latents from N(mu, sigma^2), (num, ..., Z), float32, by reparameterisation."""
    mean, std = mean_xZ.float(), log_std_xZ.float().exp()
    return torch.addcmul(mean, torch.randn((num, *mean.shape), device=mean.device), std)

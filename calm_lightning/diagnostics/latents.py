"""How latents and the autoencoder's posterior agree: distances, round trips, confidence.

All work is done in slices of `CHUNKS` chunks, so memory does not grow with the text.

Shape suffixes: C chunks (any number), K tokens per chunk, Z latent dimension, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from calm_lightning.sampling.codec import Codec

CHUNKS = 4096
"""Chunks that pass through the autoencoder at a time."""
LOGITS = 2**24
"""Logits held at a time."""


class LogitCodec(Codec, Protocol):
    """A codec that also says how sure it is; `ChunkAutoencoder` is one."""

    K: int
    vocabulary: int

    def decode(self, latent_CZ: Tensor) -> Tensor:
        """Return logits (C, K, V) of latents (C, Z)."""


def posterior(codec: Codec, tokens_CK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the posterior's mu and sigma, each (C, Z), float32. Cost: one encoder pass."""
    parts = [codec.encode(part_CK) for part_CK in tokens_CK.split(CHUNKS)]
    means, log_stds = zip(*parts, strict=True)
    return torch.cat(means).float(), torch.cat(log_stds).float().exp()


def decoded(codec: Codec, latents_CZ: Tensor) -> Tensor:
    """Return the tokens (C, K) of latents (C, Z). Cost: one decoder pass."""
    return torch.cat([codec.decode_tokens(part_CZ) for part_CZ in latents_CZ.split(CHUNKS)])


def z_scores(codec: Codec, latents_CZ: Tensor, tokens_CK: Tensor) -> Tensor:
    """Return (z - mu) / sigma with the posterior of the given tokens, (C, Z). Cost: one encoder pass.

    Args:
        codec: The autoencoder.
        latents_CZ: Latents, (C, Z).
        tokens_CK: The tokens they were decoded to, (C, K).
    """
    mean_CZ, std_CZ = posterior(codec, tokens_CK)
    return (latents_CZ.float() - mean_CZ) / std_CZ


def distance(z_scores_CZ: Tensor) -> Tensor:
    """Return the root mean square z-score of each latent, (C,): 1 is typical of the posterior itself.

    The Mahalanobis distance to the posterior divided by sqrt(l).
    """
    return z_scores_CZ.square().mean(-1).sqrt()


def round_trip_changes(codec: Codec, tokens_CK: Tensor) -> Tensor:
    """Return which tokens differ after encode -> mu -> decode, bool (C, K). Cost: one encoder and decoder pass."""
    return decoded(codec, posterior(codec, tokens_CK)[0]) != tokens_CK


def confidence(codec: LogitCodec, latents_CZ: Tensor) -> Tensor:
    """Return the decoder's largest softmax probability at each token, (C, K). Cost: one decoder pass."""
    size = max(1, LOGITS // (codec.K * codec.vocabulary))
    return torch.cat([codec.decode(part_CZ).float().softmax(-1).amax(-1) for part_CZ in latents_CZ.split(size)])

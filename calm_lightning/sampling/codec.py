"""What samplers need of an autoencoder, and the latents of true text that some language models read.

Shape suffixes: C chunks, K tokens per chunk, Z latent dimension, x any leading dimensions.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from calm_lightning.autoencoder.model import draw_posterior
from calm_lightning.language_model.calm import ContinuousLM


class Codec(Protocol):
    """Tokens to latents and back; `ChunkAutoencoder` is one."""

    def encode(self, tokens_CK: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and log sigma of the posterior, each (C, Z), of chunks (C, K)."""

    def decode_tokens(self, latent_xZ: Tensor) -> Tensor:
        """Return the most probable tokens (..., K) of latents (..., Z)."""


def true_latents(model: ContinuousLM, codec: Codec, tokens_xK: Tensor) -> Tensor | None:
    """Draw the latents of true chunks (..., K) from their posteriors, (..., Z); None where the model reads none.

    Drawn rather than set to the mean, as in training: what the model reads of its own text is drawn, too.
    """
    if not model.reads_latents:
        return None
    mean_CZ, log_std_CZ = codec.encode(tokens_xK.flatten(0, -2))
    return draw_posterior(mean_CZ, log_std_CZ, 1)[0].unflatten(0, tokens_xK.shape[:-1])

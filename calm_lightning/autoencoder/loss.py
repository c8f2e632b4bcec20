"""The autoencoder's objective: reconstruction plus clipped KL.

Shape suffixes: C chunks, K tokens per chunk, Z latent dimension, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class AutoencoderLoss:
    """The objective and its parts.

    Attributes:
        total: K * cross_entropy + beta * kl_clipped, scalar.
        cross_entropy: Mean over tokens, nats, scalar.
        kl: KL of posterior and N(0, I) summed over l and averaged over chunks, nats, before clipping, scalar.
        kl_clipped: The same after clipping each dimension from below, scalar.
    """

    total: Tensor
    cross_entropy: Tensor
    kl: Tensor
    kl_clipped: Tensor


def kl_per_dimension(mean_CZ: Tensor, log_std_CZ: Tensor) -> Tensor:
    """Return KL(N(mu, sigma^2) || N(0, 1)) of every latent dimension, (C, Z), nats, float32.

    Source: arXiv 2510.27688, the KL term; Kingma & Welling, arXiv 1312.6114, appendix B.
    """
    mean, log_std = mean_CZ.float(), log_std_CZ.float()
    return 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std)


def autoencoder_loss(
    logits_CKV: Tensor, tokens_CK: Tensor, mean_CZ: Tensor, log_std_CZ: Tensor, beta: float, kl_clip: float
) -> AutoencoderLoss:
    """Return K * mean cross-entropy + beta * KL, the KL clipped from below per dimension ("free bits").

    Args:
        logits_CKV: Decoder logits, (C, K, V).
        tokens_CK: The true tokens, (C, K).
        mean_CZ: Posterior means, (C, Z).
        log_std_CZ: Posterior log standard deviations, (C, Z).
        beta: Weight of the KL term.
        kl_clip: Floor per dimension and chunk, nats.

    Source: arXiv 2510.27688, the objective of the autoencoder with KL clipping.
    """
    cross_entropy = functional.cross_entropy(logits_CKV.flatten(0, 1).float(), tokens_CK.flatten())
    kl_CZ = kl_per_dimension(mean_CZ, log_std_CZ)
    kl_clipped = kl_CZ.clamp(min=kl_clip).sum(-1).mean()
    total = tokens_CK.shape[1] * cross_entropy + beta * kl_clipped
    return AutoencoderLoss(total, cross_entropy, kl_CZ.sum(-1).mean(), kl_clipped)

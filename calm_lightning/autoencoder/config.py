"""Configuration of the chunk autoencoder; defaults are those of arXiv 2510.27688."""

from dataclasses import dataclass


@dataclass
class AutoencoderConfig:
    """Shape and regularisers of the chunk autoencoder. K and l live in `model`, which it serves.

    Attributes:
        d: Width of the token embedding and of every hidden state.
        intermediate: Width of the SwiGLU feed-forwards.
        encoder_layers: Residual blocks of the encoder, half before and half after the squeeze (even).
        decoder_layers: Residual blocks of the decoder, half before and half after the expansion (even).
        beta: Weight of the KL term.
        kl_clip: Floor of the KL per latent dimension, nats ("free bits"); 0 turns clipping off.
        drop_token: Probability that an input token is replaced by `mask_id` (training only).
        drop_latent: Dropout on z before the decoder (training only).
        mask_id: Token id that stands for a dropped input token.
        norm_eps: Epsilon of every RMSNorm.
        tied: Whether the logits share the embedding matrix; only imported models have a matrix of their own.
    """

    d: int = 512
    intermediate: int = 1280
    encoder_layers: int = 2
    decoder_layers: int = 2
    beta: float = 1e-3
    kl_clip: float = 0.5
    drop_token: float = 0.15
    drop_latent: float = 0.15
    mask_id: int = 0
    norm_eps: float = 1e-6
    tied: bool = True

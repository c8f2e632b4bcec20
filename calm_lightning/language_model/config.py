"""Configuration shared by the continuous language model and the token baseline."""

from dataclasses import dataclass

from calm_lightning.backbone.config import BackboneConfig


@dataclass
class LanguageModelConfig:
    """Shape of a language model and of its generative head.

    The baseline uses the backbone's fields and `vocabulary` only. Symbols are the paper's (arXiv 2510.27688).

    Attributes:
        K: Tokens per chunk.
        l: Latent dimension; null means 32 * K.
        vocabulary: Vocabulary size V; null means that of the corpus' tokenizer.
        d: Hidden size of backbone and head.
        intermediate: Width of the backbone's SwiGLU feed-forward.
        layers: Transformer blocks.
        heads: Attention heads; must divide `d`.
        rope_theta: Base of the rotary position embedding.
        norm_eps: Epsilon of the backbone's RMSNorms.
        head: Generative head: "energy".
        head_blocks: Residual blocks of the head (paper: a quarter of `layers`).
        noise_size: Dimension of the head's noise, drawn from U(-0.5, 0.5).
        N: Head samples per position in the energy loss, at least 2.
        M: Posterior targets per position in the energy loss.
        alpha: Exponent of the energy distance, 0 < alpha < 2.
    """

    K: int = 4
    l: int | None = None
    vocabulary: int | None = None
    d: int = 256
    intermediate: int = 688
    layers: int = 4
    heads: int = 4
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    head: str = "energy"
    head_blocks: int = 1
    noise_size: int = 64
    N: int = 8
    M: int = 100
    alpha: float = 1.0

    def latent_width(self) -> int:
        """Return l, the latent dimension, with the default 32 * K applied."""
        return self.l if self.l is not None else 32 * self.K

    def backbone(self) -> BackboneConfig:
        """Return the part of this configuration that shapes the backbone."""
        return BackboneConfig(self.d, self.intermediate, self.layers, self.heads, self.rope_theta, self.norm_eps)

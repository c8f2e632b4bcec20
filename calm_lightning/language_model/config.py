"""Configuration shared by the continuous language model and the token baseline."""

from dataclasses import dataclass

from calm_lightning.backbone.config import BackboneConfig

INPUTS = ("discrete", "latent", "both")
NOISES = ("uniform", "gaussian")


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
        input: What the model reads of the previous chunk: "discrete" (its tokens), "latent" (a latent drawn from
            the autoencoder's posterior; in generation the model's own draw) or "both".
        head: Generative head: "energy", "flow" or "diffusion".
        head_blocks: Residual blocks of the head (paper: a quarter of `layers`).
        noise: Energy head: distribution of its noise, "uniform" (-0.5 to 0.5) or "gaussian" (standard normal).
        noise_size: Energy head: dimension of its noise.
        N: Energy head: samples per position in the loss, at least 2. Flow and diffusion: posterior targets per
            position, at least 1.
        M: Energy head: posterior targets per position in the loss.
        alpha: Energy head: exponent of the energy distance, 0 < alpha <= 2 (strictly proper below 2 only).
        sampling_steps: Flow and diffusion: steps of one draw; null means 4 and 100.
        solver: Flow: "midpoint" (two network calls per step) or "euler". Diffusion: "ddpm" (learned variance) or
            "ddim" (deterministic). Null means the first.
        cross_document_attention: Whether a position sees the documents before its own in the same block.
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
    input: str = "discrete"
    head: str = "energy"
    head_blocks: int = 1
    noise: str = "uniform"
    noise_size: int = 64
    N: int = 8
    M: int = 100
    alpha: float = 1.0
    sampling_steps: int | None = None
    solver: str | None = None
    cross_document_attention: bool = True

    def latent_width(self) -> int:
        """Return l, the latent dimension, with the default 32 * K applied."""
        return self.l if self.l is not None else 32 * self.K

    def input_width(self) -> int:
        """Return the width of what is compressed into one input of the backbone."""
        tokens = 0 if self.input == "latent" else self.K * self.d
        return tokens + (0 if self.input == "discrete" else self.latent_width())

    def backbone(self) -> BackboneConfig:
        """Return the part of this configuration that shapes the backbone."""
        return BackboneConfig(self.d, self.intermediate, self.layers, self.heads, self.rope_theta, self.norm_eps)

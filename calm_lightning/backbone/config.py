"""Shape of the Llama-style transformer that both language models stand on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneConfig:
    """Shape of a decoder-only transformer: RMSNorm, RoPE, SwiGLU, no biases.

    Attributes:
        d: Hidden size.
        intermediate: Width of the SwiGLU feed-forward.
        layers: Number of transformer blocks.
        heads: Attention heads; must divide `d`.
        rope_theta: Base of the rotary position embedding.
        norm_eps: Epsilon of every RMSNorm.
    """

    d: int
    intermediate: int
    layers: int
    heads: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6

"""Sizes of the building blocks, named and shaped as the modules they describe.

A size keeps matrix weights apart from vectors (biases, norms): both are parameters, only the former cost
FLOPs here, 2 per weight and application. Element-wise work, norms, softmax and embedding lookups count
as 0; at these widths they are below one percent of the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.backbone.config import BackboneConfig
from calm_lightning.language_model.config import LanguageModelConfig


@dataclass(frozen=True)
class Size:
    """Parameters of a module.

    Attributes:
        weights: Entries of matrices that a vector is multiplied by.
        vectors: Entries of biases and norms.
    """

    weights: int = 0
    vectors: int = 0

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return self.weights + self.vectors

    @property
    def forward(self) -> float:
        """FLOPs of applying every matrix once."""
        return 2.0 * self.weights

    def __add__(self, other: Size) -> Size:
        return Size(self.weights + other.weights, self.vectors + other.vectors)

    def __rmul__(self, count: int) -> Size:
        return Size(count * self.weights, count * self.vectors)


def linear(inputs: int, outputs: int, bias: bool = True) -> Size:
    """Return the size of a Linear from `inputs` to `outputs` features."""
    return Size(inputs * outputs, outputs if bias else 0)


def rms_norm(width: int) -> Size:
    """Return the size of an RMSNorm."""
    return Size(vectors=width)


def layer_norm(width: int) -> Size:
    """Return the size of a LayerNorm with bias."""
    return Size(vectors=2 * width)


def swiglu(width: int, intermediate: int) -> Size:
    """Return the size of a SwiGLU feed-forward (gate, up, down; no biases)."""
    return 3 * linear(width, intermediate, bias=False)


def backbone(config: BackboneConfig) -> Size:
    """Return the size of the transformer without embeddings: attention projections, SwiGLU, norms."""
    attention = 4 * linear(config.d, config.d, bias=False)
    layer = attention + swiglu(config.d, config.intermediate) + 2 * rms_norm(config.d)
    return config.layers * layer + rms_norm(config.d)


def input_compression(config: LanguageModelConfig) -> Size:
    """Return the size of the map from a chunk (its embeddings, its latent, or both) to one backbone input."""
    d = config.d
    return linear(config.input_width(), 2 * d) + linear(2 * d, d) + layer_norm(d)


@dataclass(frozen=True)
class AutoencoderSize:
    """Sizes of the chunk autoencoder's parts, by how often they run; the tied embedding is not among them.

    Attributes:
        encoder_token: Runs on each of the K tokens.
        encoder_chunk: Runs once per chunk.
        decoder_chunk: Runs once per chunk.
        decoder_token: Runs on each of the K decoder states.
        logits: The tied embedding as output matrix, V x E; runs on each of the K decoder states.
    """

    encoder_token: Size
    encoder_chunk: Size
    decoder_chunk: Size
    decoder_token: Size
    logits: Size

    @property
    def encoder(self) -> Size:
        """The encoder's parameters, embedding left out."""
        return self.encoder_token + self.encoder_chunk

    @property
    def decoder(self) -> Size:
        """The decoder's parameters, tied embedding left out."""
        return self.decoder_token + self.decoder_chunk


def autoencoder(config: AutoencoderConfig, K: int, l: int, V: int) -> AutoencoderSize:
    """Return the sizes of a chunk autoencoder for chunks of K tokens, l latent dimensions, V tokens."""
    E = config.d
    block = swiglu(E, config.intermediate) + rms_norm(E)
    encoder_half, decoder_half = config.encoder_layers // 2, config.decoder_layers // 2
    return AutoencoderSize(
        encoder_token=encoder_half * block,
        encoder_chunk=linear(K * E, E) + encoder_half * block + rms_norm(E) + linear(E, 2 * l),
        decoder_chunk=linear(l, E) + decoder_half * block + linear(E, K * E),
        decoder_token=decoder_half * block + rms_norm(E),
        logits=linear(E, V, bias=False),
    )

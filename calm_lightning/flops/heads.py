"""Sizes of the generative heads: by how often their parts run, in training and in a draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from calm_lightning.flops.layers import Size, layer_norm, linear
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.language_model.heads.registry import TIME_FEATURES, network_calls


@dataclass(frozen=True)
class HeadSize:
    """Sizes of a head's parts.

    Attributes:
        position: What depends on the hidden state only, and so runs once per position however many samples
            are drawn: the hidden Linear and, in the energy head, the half of each block's first Linear on it.
        draw: Runs at every network call.
        source: The Linears on noise, noisy latent and time: run at every network call, and no gradient flows to
            their input.
        calls: Network calls of one draw in generation; a training step makes one per sample.
        loss_products: Pairs of vectors of length l whose inner products the loss needs at a position: of samples
            with targets, and among samples.
    """

    position: Size
    draw: Size
    source: Size
    calls: int
    loss_products: tuple[int, int] = (0, 0)

    @property
    def whole(self) -> Size:
        """All parameters of the head."""
        return self.position + self.draw + self.source

    @property
    def generation(self) -> float:
        """FLOPs of one draw in generation."""
        return self.position.forward + self.calls * (self.draw + self.source).forward


def _energy(config: LanguageModelConfig) -> HeadSize:
    """Source: arXiv 2510.27688, the energy-based generative head."""
    d, l = config.d, config.latent_width()
    block_position = linear(d, d, bias=False)
    block_draw = layer_norm(d) + linear(d, d) + linear(d, d) + linear(d, 2 * d) + linear(d, d)
    return HeadSize(
        position=linear(d, d) + layer_norm(d) + config.head_blocks * block_position,
        draw=config.head_blocks * block_draw + 2 * layer_norm(d) + linear(d, d) + linear(d, l),
        source=linear(config.noise_size, d),
        calls=1,
        loss_products=(config.N * config.M, config.N * config.N),
    )


def _modulated_mlp(config: LanguageModelConfig, outputs: int) -> HeadSize:
    """Source: arXiv 2510.27688, the flow and diffusion heads."""
    d = config.d
    block = layer_norm(d) + 2 * linear(d, d) + linear(d, 3 * d)
    return HeadSize(
        position=linear(d, d),
        draw=linear(d, d) + config.head_blocks * block + linear(d, 2 * d) + linear(d, outputs),
        source=linear(config.latent_width(), d) + linear(TIME_FEATURES, d),
        calls=network_calls(config),
    )


def _flow(config: LanguageModelConfig) -> HeadSize:
    return _modulated_mlp(config, config.latent_width())


def _diffusion(config: LanguageModelConfig) -> HeadSize:
    return _modulated_mlp(config, 2 * config.latent_width())


HEAD_SIZES: dict[str, Callable[[LanguageModelConfig], HeadSize]] = {
    "energy": _energy,
    "flow": _flow,
    "diffusion": _diffusion,
}


def head_size(config: LanguageModelConfig) -> HeadSize:
    """Return the sizes of the head that `config.head` names."""
    return HEAD_SIZES[config.head](config)

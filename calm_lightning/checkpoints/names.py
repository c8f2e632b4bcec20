"""The names of tensors, theirs and ours, in one table per kind of model that both directions follow.

A table gives for each tensor of ours the released tensors that make it: one (a rename) or several of equal height,
concatenated along their rows (q, k, v and gate, up are matrices of their own in the released code, one matrix each
here). Reading concatenates, writing splits, and neither loses a bit. The tables follow from a configuration, so every
released tensor is known beforehand: what is missing, unknown or of another shape is listed by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.language_model.config import LanguageModelConfig

Table = dict[str, tuple[str, ...]]
EMBEDDED = "ae_model."
"""Prefix of the autoencoder's tensors inside a released language model."""


@dataclass(frozen=True)
class Alias:
    """A second name that released checkpoints give to the same tensors.

    Attributes:
        name: The second name, or the prefix of the second names.
        of: What it stands for, likewise.
        alone: Whether a checkpoint may hold the second names only.
    """

    name: str
    of: str
    alone: bool = False

    def names(self, table: Table) -> dict[str, str]:
        """Return the second name of every tensor of a table that has one, with the name it stands for."""
        theirs = (name for parts in table.values() for name in parts if name.startswith(self.of))
        return {self.name + name.removeprefix(self.of): name for name in theirs}


@dataclass(frozen=True)
class Layout:
    """All tensors of one kind of model.

    Attributes:
        table: Released names by our name.
        alias: Second names of some of them.
    """

    table: Table
    alias: Alias | None = None

    def below(self, prefix: str) -> Layout:
        """Return the layout of a checkpoint that holds this one's tensors below a prefix."""
        table = {ours: tuple(prefix + name for name in theirs) for ours, theirs in self.table.items()}
        alias = self.alias and Alias(prefix + self.alias.name, prefix + self.alias.of, self.alias.alone)
        return Layout(table, alias)

    def to_released(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return released tensors, second names included, from a state dict of ours; parts are views."""
        released: dict[str, Tensor] = {}
        for ours, theirs in self.table.items():
            released |= dict(zip(theirs, state[ours].chunk(len(theirs)), strict=True))
        if self.alias:
            released |= {second: released[name] for second, name in self.alias.names(self.table).items()}
        return released


def _below(table: Table, ours: str, theirs: str) -> Table:
    return {f"{ours}.{name}": tuple(f"{theirs}.{part}" for part in parts) for name, parts in table.items()}


def _linear(names: Mapping[str, str]) -> Table:
    """Return the rows of modules that have a weight and a bias, by our name of the module."""
    return {f"{ours}.{part}": (f"{theirs}.{part}",) for ours, theirs in names.items() for part in ("weight", "bias")}


_SWIGLU: Table = {
    "mlp.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.down.weight": ("mlp.down_proj.weight",),
}
_RESIDUAL_BLOCK: Table = {"norm.weight": ("layernorm.weight",), **_SWIGLU}
_BACKBONE_BLOCK: Table = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "attention.qkv.weight": tuple(f"self_attn.{name}_proj.weight" for name in "qkv"),
    "attention.out.weight": ("self_attn.o_proj.weight",),
    "mlp_norm.weight": ("post_attention_layernorm.weight",),
    **_SWIGLU,
}
_AUTOENCODER: Table = {
    "embedding.weight": ("encoder.embed_tokens.weight",),
    "encoder.norm.weight": ("encoder.norm.weight",),
    "decoder.norm.weight": ("decoder.norm.weight",),
    **_linear(
        {
            "encoder.squeeze": "encoder.squeeze_layer",
            "encoder.to_latent": "encoder.hidden_to_latent",
            "decoder.from_latent": "decoder.latent_to_hidden",
            "decoder.expand": "decoder.expand_layer",
        }
    ),
}
_INPUT: Table = {
    "input.embedding.weight": ("transformer.embed_tokens.weight",),
    **_linear({f"input.compress.{index}": f"embed_proj.{index}" for index in (0, 2, 3)}),
}
_ENERGY = _linear(
    {
        "noise_embedding": "noise_embd",
        "noise_norm": "norm_noise",
        "hidden_embedding": "hidden_embd",
        "hidden_norm": "norm_hidden",
        "final_norm": "final_layer.in_ln",
        "final_hidden": "final_layer.linears.0",
        "to_latent": "final_layer.linears.2",
    }
)
_ENERGY_BLOCK = _linear(
    {"norm": "in_ln", "mix": "linears.0", "middle": "linears.2", "gate_up": "linears.4", "down": "down_proj"}
)
_MODULATED = _linear(
    {
        "input": "input_proj",
        "time.0": "time_embed.mlp.0",
        "time.2": "time_embed.mlp.2",
        "condition": "cond_embed",
        "final_modulation": "final_layer.adaLN_modulation.1",
        "to_output": "final_layer.linear",
    }
)
_MODULATED_BLOCK = _linear({"norm": "in_ln", "mlp.0": "mlp.0", "mlp.2": "mlp.2", "modulation": "adaLN_modulation.1"})


def autoencoder_layout(config: AutoencoderConfig) -> Layout:
    """Return the tensors of `ChunkAutoencoder`; the first half of a side's released layers is its first stack."""
    table = dict(_AUTOENCODER)
    for side, layers, stacks in (
        ("encoder", config.encoder_layers, ("token_blocks", "chunk_blocks")),
        ("decoder", config.decoder_layers, ("chunk_blocks", "token_blocks")),
    ):
        for index in range(layers):
            half, position = divmod(index, layers // 2)
            table |= _below(_RESIDUAL_BLOCK, f"{side}.{stacks[half]}.{position}", f"{side}.{side}_layers.{index}")
    if config.tied:
        return Layout(table, Alias("decoder.lm_head_weight", of="encoder.embed_tokens.weight"))
    return Layout(table | {"logits.weight": ("decoder.lm_head_weight",)})


def _backbone(layers: int, source: str) -> Table:
    table: Table = {"backbone.norm.weight": (f"{source}.norm.weight",)}
    for index in range(layers):
        table |= _below(_BACKBONE_BLOCK, f"backbone.blocks.{index}", f"{source}.layers.{index}")
    return table


def _energy_head(blocks: int) -> Layout:
    table = _below(_ENERGY, "head", "mlp_generator")
    for index in range(blocks):
        table |= _below(_ENERGY_BLOCK, f"head.blocks.{index}", f"mlp_generator.mlp_blocks.{index}")
    return Layout(table, Alias("generative_head.", of="mlp_generator.", alone=True))


def _modulated_head(blocks: int) -> Layout:
    table = _below(_MODULATED, "head.net", "generative_head.net")
    for index in range(blocks):
        table |= _below(_MODULATED_BLOCK, f"head.net.blocks.{index}", f"generative_head.net.res_blocks.{index}")
    return Layout(table)


_HEADS: dict[str, Callable[[int], Layout]] = {
    "energy": _energy_head,
    "flow": _modulated_head,
    "diffusion": _modulated_head,
}


def calm_layout(config: LanguageModelConfig) -> Layout:
    """Return the tensors of a `ContinuousLM` with discrete input, without those of its autoencoder."""
    head = _HEADS[config.head](config.head_blocks)
    return Layout(_INPUT | _backbone(config.layers, "transformer") | head.table, head.alias)


def baseline_layout(config: LanguageModelConfig) -> Layout:
    """Return the tensors of `TokenLM`."""
    table: Table = {"embedding.weight": ("model.embed_tokens.weight",), "lm_head.weight": ("lm_head.weight",)}
    return Layout(table | _backbone(config.layers, "model"))

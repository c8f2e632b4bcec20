"""Released tensors into a state dict of ours, with every one of them accounted for.

Whatever is missing, unknown, of another shape or at odds with its second name ends up in one list of problems, so that
a checkpoint is understood completely or refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.checkpoints.names import Layout
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.config import LanguageModelConfig

_ROTARY = re.compile(r"(transformer|model)\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")

Shapes = dict[str, tuple[int, ...]]


def _shapes(build: Callable[[], nn.Module]) -> Shapes:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}


def autoencoder_shapes(config: AutoencoderConfig, K: int, l: int, vocabulary: int) -> Shapes:
    """Return the shapes of an autoencoder's state dict, without making its weights."""
    return _shapes(lambda: ChunkAutoencoder(config, K, l, vocabulary))


def language_model_shapes(stage: str, config: LanguageModelConfig) -> Shapes:
    """Return the shapes of a language model's state dict, without making its weights."""
    vocabulary = config.vocabulary
    assert vocabulary is not None
    return _shapes(lambda: (ContinuousLM if stage == "calm" else TokenLM)(config, vocabulary))


def listing(kind: str, names: list[str]) -> list[str]:
    """Return one problem that lists names, or none where there are none."""
    return [f"{kind} {', '.join(names)}"] if names else []


def same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same dtype, shape and bits."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(tensor.reshape(-1).contiguous().view(torch.uint8) for tensor in (one, other)))


def to_ours(weights: Mapping[str, Tensor], layout: Layout, shapes: Shapes) -> tuple[dict[str, Tensor], list[str]]:
    """Translate released tensors.

    Args:
        weights: Released tensors; all of them must belong to the layout.
        layout: Names in both directions.
        shapes: Shapes of our tensors.

    Returns:
        The state dict in stored dtypes, complete only if the second value, the problems found, is empty.
    """
    weights, problems = _settle_second_names(weights, layout)
    expected = {name: ours for ours, theirs in layout.table.items() for name in theirs}
    wrong, mixed, state = [], [], {}
    for ours, theirs in layout.table.items():
        rows, *rest = shapes[ours]
        part = (rows // len(theirs), *rest)
        found = {name: weights[name] for name in theirs if name in weights}
        wrong += [f"{name} {tuple(t.shape)} instead of {part}" for name, t in found.items() if tuple(t.shape) != part]
        if len({t.dtype for t in found.values()}) > 1:
            mixed.append(" and ".join(theirs))
        elif len(found) == len(theirs) and not wrong:
            state[ours] = torch.cat(list(found.values())) if len(found) > 1 else next(iter(found.values()))
    broken = [name for name in expected if name in weights and not bool(weights[name].isfinite().all())]
    problems += listing("not all numbers are finite in", broken)
    problems += listing("it lacks", [name for name in expected if name not in weights])
    problems += listing("it has unknown tensors", [name for name in weights if name not in expected])
    problems += listing("of another shape than config.json says:", wrong)
    return state, problems + listing("parts of one matrix differ in dtype:", mixed)


def _settle_second_names(weights: Mapping[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights without second names, which must be complete and equal to the first ones."""
    kept = dict(weights)
    if layout.alias is None:
        return kept, []
    second_names = layout.alias.names(layout.table)
    if not any(name.startswith(layout.alias.name) for name in weights):
        return kept, []
    if layout.alias.alone and not any(name.startswith(layout.alias.of) for name in weights):
        return {second_names.get(name, name): tensor for name, tensor in weights.items()}, []
    absent, unequal = [], []
    for second, first in second_names.items():
        if second not in kept:
            absent.append(second)
        elif first in kept and not same(kept[second], kept[first]):
            unequal.append(f"{second} and {first}")
        kept.pop(second, None)
    problems = listing("it lacks", absent) + listing("two names of one tensor hold different values:", unequal)
    return kept, problems


def without_rotary(weights: Mapping[str, Tensor], config: LanguageModelConfig) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights without stored rotary frequencies, which must be those that the configuration gives.

    Older writers store them; they carry no information, unless they contradict rope_theta.
    """
    kept, problems = {}, []
    width = config.d // config.heads
    frequencies = config.rope_theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    for name, tensor in weights.items():
        if not _ROTARY.fullmatch(name):
            kept[name] = tensor
        elif tensor.shape != frequencies.shape or not torch.allclose(tensor.double(), frequencies, rtol=1e-2, atol=0):
            problems.append(f"{name} is not what rope_theta={config.rope_theta:g} gives")
    return kept, problems

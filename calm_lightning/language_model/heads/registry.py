"""The heads there are, by the name that `model.head` takes. Knows no torch: validation and cost models read it too."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calm_lightning.language_model.config import LanguageModelConfig
    from calm_lightning.language_model.heads.base import GenerativeHead

TIME_FEATURES = 256
"""Sines and cosines that tell a flow or diffusion network the time, half each."""
MOST_STEPS = 1000
"""Most sampling steps of any head: what a network is told of time has this resolution."""


@dataclass(frozen=True)
class HeadEntry:
    """What is known of a head without building it.

    Attributes:
        module: Module below `calm_lightning.language_model.heads`.
        class_name: Its class in that module.
        default_steps: Sampling steps where `model.sampling_steps` is null.
        solvers: Network calls per sampling step, by solver; the first solver is the default. Empty: no steps.
        fewest_steps: Fewest sampling steps that make sense.
    """

    module: str
    class_name: str
    default_steps: int
    solvers: dict[str, int]
    fewest_steps: int = 1


HEADS = {
    "energy": HeadEntry("energy", "EnergyHead", 1, {}),
    "flow": HeadEntry("flow", "FlowHead", 4, {"midpoint": 2, "euler": 1}),
    "diffusion": HeadEntry("diffusion", "DiffusionHead", 100, {"ddpm": 1, "ddim": 1}, fewest_steps=2),
}


def sampling_plan(config: LanguageModelConfig) -> tuple[int, str]:
    """Return the number of sampling steps and the solver of a head, defaults applied ("" where it has none)."""
    entry = HEADS[config.head]
    steps = config.sampling_steps if config.sampling_steps is not None else entry.default_steps
    return steps, config.solver or next(iter(entry.solvers), "")


def network_calls(config: LanguageModelConfig) -> int:
    """Return how often the head's network runs for one draw."""
    steps, solver = sampling_plan(config)
    return steps * HEADS[config.head].solvers.get(solver, 1)


def sampling_in_words(config: LanguageModelConfig) -> str:
    """Return how a head draws where that is a choice, for example "flow, 4 midpoint steps"; "" where it is not."""
    steps, solver = sampling_plan(config)
    return f"{config.head}, {steps} {solver} steps" if solver else ""


def build_head(config: LanguageModelConfig) -> GenerativeHead:
    """Return a freshly initialised head of the kind `config.head` names."""
    entry = HEADS[config.head]
    module = importlib.import_module(f"calm_lightning.language_model.heads.{entry.module}")
    kind: type[GenerativeHead] = getattr(module, entry.class_name)
    return kind(config)

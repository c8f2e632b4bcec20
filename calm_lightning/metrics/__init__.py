"""TOKENS -> SCORE: BrierLM, and the one vocabulary of logged names with their units. No model in sight.

`from calm_lightning.metrics import BrierLM` scores any sampler. Names are looked up when first used, so that importing
this package (as everything that reads `metrics.names` does) does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calm_lightning.metrics.brier_lm import BrierLM, BrierLMResult, BrierScores
    from calm_lightning.metrics.protocol import Protocol

_HOME = {"BrierLM": "brier_lm", "BrierLMResult": "brier_lm", "BrierScores": "brier_lm", "Protocol": "protocol"}

__all__ = ["BrierLM", "BrierLMResult", "BrierScores", "Protocol"]


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

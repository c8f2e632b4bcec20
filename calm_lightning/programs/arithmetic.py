"""Where a finished model computes, and in which precision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

BF16 = "bf16-mixed"


def best_device() -> torch.device:
    """Return a CUDA GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def arithmetic(networks: Iterable[nn.Module], precision: str, device: torch.device) -> Iterator[None]:
    """Compute in "32-true" or "bf16-mixed", with weights marked so that each is converted once.

    Nothing is trained here: autocast keeps bf16 copies only of weights that could be trained, and casts others at every
    use; the decoder's screening of float32 logits keeps its copy only of weights that cannot change. The marks are
    restored at the end.

    Args:
        networks: What will run.
        precision: The precision.
        device: Where it will run.
    """
    before = [(weight, weight.requires_grad) for network in networks for weight in network.parameters()]
    try:
        for weight, _ in before:
            weight.requires_grad_(precision == BF16)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == BF16):
            yield
    finally:
        for weight, marked in before:
            weight.requires_grad_(marked)

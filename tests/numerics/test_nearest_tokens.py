"""The screened search for the largest logit never answers from weights that are no longer there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from calm_lightning.autoencoder import nearest
from calm_lightning.autoencoder.nearest import NearestTokens

V, E = 600, 32


@pytest.fixture(autouse=True)
def screening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_bf16_is_fast", lambda: True)
    monkeypatch.setattr(nearest, "SMALLEST_SCREENED", 1)


def direct(states: Tensor, weight: Tensor) -> Tensor:
    return (states @ weight.T).max(-1).indices


def fused_step(layer: nn.Linear, states: Tensor) -> None:
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.5, fused=True)
    layer(states).square().sum().backward()
    optimizer.step()


def below_autograd(layer: nn.Linear, states: Tensor) -> None:
    layer.weight.data.normal_()


def replaced(layer: nn.Linear, states: Tensor) -> None:
    layer.weight = nn.Parameter(torch.randn(V, E))


@pytest.mark.parametrize("change", [fused_step, below_autograd, replaced])
def test_weights_in_training_are_read_anew(change: Callable[[nn.Linear, Tensor], None]) -> None:
    torch.manual_seed(0)
    search, layer, states = NearestTokens(), nn.Linear(E, V, bias=False), torch.randn(200, E)
    for _ in range(3):
        assert torch.equal(search(states, layer.weight), direct(states, layer.weight))
        change(layer, states)


def test_frozen_weights_are_copied_once_and_again_when_they_change() -> None:
    torch.manual_seed(0)
    search, states = NearestTokens(), torch.randn(200, E)
    weights = [torch.randn(V, E) for _ in range(12)]
    for weight in weights:
        assert torch.equal(search(states, weight), direct(states, weight))
        weight.mul_(-1)
        assert torch.equal(search(states, weight), direct(states, weight))
    copy = search._screen
    search(states, weights[-1])
    assert search._screen is copy


def test_networks_made_in_inference_mode_are_served() -> None:
    with torch.inference_mode():
        weight, states = torch.randn(V, E), torch.randn(50, E)
        assert torch.equal(NearestTokens()(states, weight), direct(states, weight))


def test_of_equal_logits_the_first_token_counts() -> None:
    half = torch.randn(V // 2, E)
    weight, states = torch.cat((half, half)), torch.randn(400, E)
    assert torch.equal(NearestTokens()(states, weight), direct(states, weight))

"""The closed forms against torch's own FLOP counter, on real training steps of small models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.backbone.transformer import BranchCache
from calm_lightning.flops import autoencoder_flops, baseline_flops, calm_flops
from calm_lightning.flops.heads import head_size
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.language_model.heads.registry import HEADS, build_head
from calm_lightning.stages.autoencoder import AutoencoderStage
from calm_lightning.stages.baseline import BaselineStage
from calm_lightning.stages.calm import CalmStage
from calm_lightning.stages.config import EvaluationConfig, OptimConfig

V, T, B = 97, 24, 2
AUTO = AutoencoderConfig(d=16, intermediate=40, encoder_layers=4, decoder_layers=2)


def model_config(K: int, N: int = 4) -> LanguageModelConfig:
    return LanguageModelConfig(
        K=K, l=12, d=32, intermediate=88, layers=3, heads=4, head_blocks=2, noise_size=10, N=N, M=7
    )


def tokens(columns: int) -> torch.Tensor:
    return torch.randint(V, (B, columns), generator=torch.Generator().manual_seed(0))


def counted(step: Callable[[], object]) -> FlopCounterMode:
    """Count a step, with attention as plain matrix products: fused CPU kernels are invisible to the counter."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        step()
    return counter


def counted_by_module(counter: FlopCounterMode, path: str) -> int:
    return sum(counter.get_flop_counts()[path].values())


def calm_stage(config: LanguageModelConfig) -> CalmStage:
    autoencoder = ChunkAutoencoder(AUTO, config.K, 12, V)
    return CalmStage(ContinuousLM(config, V), autoencoder, OptimConfig(), EvaluationConfig())


@pytest.mark.parametrize("K", [1, 3, 4])
def test_autoencoder_training_equals_the_counter(K: int) -> None:
    stage = AutoencoderStage(ChunkAutoencoder(AUTO, K, 12, V), OptimConfig(), EvaluationConfig())
    report = autoencoder_flops(AUTO, K, 12, V, T)
    forward = counted(lambda: stage.loss(tokens(T)))
    assert forward.get_total_flops() == B * report.forward_per_block_total
    assert counted_by_module(forward, "Encoder") == B * report.forward_per_block["encoder"]
    assert counted_by_module(forward, "Decoder") == B * report.forward_per_block["decoder"]
    training = counted(lambda: stage.loss(tokens(T)).backward())
    assert training.get_total_flops() == B * report.training_per_block_total


@pytest.mark.parametrize("K", [1, 2, 3, 4])
@pytest.mark.parametrize("N", [2, 5])
def test_calm_training_equals_the_counter(K: int, N: int) -> None:
    config = model_config(K, N)
    stage = calm_stage(config)
    report = calm_flops(config, AUTO, V, T, attention="full")
    forward = counted(lambda: stage.loss(tokens(T)))
    assert forward.get_total_flops() == B * report.forward_per_block_total
    assert counted_by_module(forward, "ContinuousLM.input") == B * report.forward_per_block["input"]
    trunk = report.forward_per_block["backbone"] + report.forward_per_block["attention"]
    assert counted_by_module(forward, "ContinuousLM.backbone") == B * trunk
    training = counted(lambda: stage.loss(tokens(T)).backward())
    assert training.get_total_flops() == B * report.training_per_block_total


@pytest.mark.parametrize("head", ["energy", "flow", "diffusion"])
@pytest.mark.parametrize("read", ["discrete", "latent", "both"])
def test_every_head_and_input_trains_at_the_stated_cost(head: str, read: str) -> None:
    config = replace(model_config(4), head=head, input=read)
    stage = calm_stage(config)
    report = calm_flops(config, AUTO, V, T, attention="full")
    assert counted(lambda: stage.loss(tokens(T))).get_total_flops() == pytest.approx(B * report.forward_per_block_total)
    training = counted(lambda: stage.loss(tokens(T)).backward())
    assert training.get_total_flops() == pytest.approx(B * report.training_per_block_total)


@pytest.mark.parametrize("solver, steps", [("midpoint", 4), ("euler", 3), ("ddpm", 5), ("ddim", 7)])
@torch.no_grad()
def test_a_draw_costs_its_steps(solver: str, steps: int) -> None:
    head = "flow" if solver in HEADS["flow"].solvers else "diffusion"
    config = replace(model_config(4), head=head, solver=solver, sampling_steps=steps)
    network = build_head(config)
    counter = counted(lambda: network.sample(torch.randn(1, config.d), 1))
    assert counter.get_total_flops() == head_size(config).generation


def test_baseline_training_equals_the_counter() -> None:
    config = model_config(K=4)
    stage = BaselineStage(TokenLM(config, V), OptimConfig(), EvaluationConfig())
    report = baseline_flops(config, V, T, attention="full")
    assert counted(lambda: stage.loss(tokens(T))).get_total_flops() == B * report.forward_per_block_total
    training = counted(lambda: stage.loss(tokens(T)).backward())
    assert training.get_total_flops() == B * report.training_per_block_total


@pytest.mark.parametrize("K", [1, 3, 4])
@torch.no_grad()
def test_calm_inference_equals_the_counter_without_attention(K: int) -> None:
    """One generated chunk: a single position attends to itself only, so attention is taken off both sides."""
    config = model_config(K)
    stage = calm_stage(config).eval()
    model, autoencoder = stage.model, stage.autoencoder
    chunk = tokens(K)[:1].reshape(1, 1, K)
    counter = counted(lambda: autoencoder.decode_tokens(model.head.sample(model(chunk).flatten(0, 1), 1)))
    attention_to_itself = 4 * config.layers * config.d
    expected = calm_flops(config, AUTO, V, T).inference_per_token
    per_token = sum(flops for name, flops in expected.items() if name != "attention")
    assert counter.get_total_flops() - attention_to_itself == pytest.approx(K * per_token)


@torch.no_grad()
def test_mean_causal_context_equals_generation_with_a_cache() -> None:
    """Generating a block token by token, each step attending to what came before it and to itself."""
    config = model_config(K=4)
    model = TokenLM(config, V).eval()

    def generate() -> None:
        embedded = model.embedding(tokens(T)[:1])
        hidden, prefix = model.backbone.prefill(embedded[:, :1])
        model.lm_head(hidden)
        own, prefix_length = BranchCache(), torch.tensor([1])
        for position in range(1, T - 1):
            step = embedded[:, position : position + 1]
            model.lm_head(model.backbone.branch_step(step, prefix, own, prefix_length))

    expected = (T - 1) * baseline_flops(config, V, T).inference_per_token_total
    # The first cached step's product over one own position runs element-wise, which the counter does not see.
    unseen = 2 * config.layers * config.d
    assert counted(generate).get_total_flops() + unseen == pytest.approx(expected)


def test_causal_attention_is_about_half_of_full() -> None:
    config = model_config(K=4)
    causal = baseline_flops(config, V, 4096).training_per_block["attention"]
    full = baseline_flops(config, V, 4096, attention="full").training_per_block["attention"]
    assert causal / full == pytest.approx(4096 / (2 * 4095))

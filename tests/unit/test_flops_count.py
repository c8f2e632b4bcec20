"""Counts, their sums and the presets, without running a model."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.config import conf_dir, load_config
from calm_lightning.errors import ConfigError
from calm_lightning.flops import FlopsReport, calm_flops, for_stage
from calm_lightning.flops.cost import model_cost
from calm_lightning.flops.paper import PUBLISHED
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.config import INPUTS, LanguageModelConfig
from calm_lightning.language_model.heads.registry import HEADS

PRESETS = ["autoencoder", *PUBLISHED]
MODEL = LanguageModelConfig(K=4, d=64, intermediate=160, layers=2, heads=4, head_blocks=1)


def module_parameters(stage: str, model: LanguageModelConfig, auto: AutoencoderConfig, V: int) -> int:
    """Count the real module's parameters; on the meta device nothing is allocated."""
    with torch.device("meta"):
        module: torch.nn.Module
        if stage == "autoencoder":
            module = ChunkAutoencoder(auto, model.K, model.latent_width(), V)
        else:
            module = ContinuousLM(model, V) if stage == "calm" else TokenLM(model, V)
    return sum(parameter.numel() for parameter in module.parameters())


def preset_report(preset: str) -> FlopsReport:
    config = load_config([preset])
    assert config.model.vocabulary is not None
    return for_stage(config.stage, config.model, config.autoencoder, config.model.vocabulary, config.data.block_tokens)


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_parameters_equal_the_real_modules(preset: str) -> None:
    config = load_config([preset])
    assert config.model.vocabulary == 128_257
    expected = module_parameters(config.stage, config.model, config.autoencoder, config.model.vocabulary)
    assert preset_report(preset).parameters_total == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_states_its_exact_count_and_meets_the_published_one(preset: str) -> None:
    text = (conf_dir() / "model" / f"{preset}.yaml").read_text()
    stated = re.search(r"Here: ([\d,]+)\.", text)
    assert stated is not None
    total = preset_report(preset).parameters_total
    assert int(stated[1].replace(",", "")) == total
    published = PUBLISHED[preset].parameters if preset in PUBLISHED else 75e6
    # "About 75M" is all that is said of the autoencoder, to two digits.
    assert total == pytest.approx(published, rel=0.01 if preset in PUBLISHED else 0.015)


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_budget_is_the_papers(preset: str) -> None:
    config = load_config([preset])
    per_step = config.data.batch_tokens * config.trainer["accumulate_grad_batches"]
    steps = config.trainer["max_steps"]
    assert (steps, per_step) == ((30_000, 2**19) if preset == "autoencoder" else (250_000, 2**21))
    if config.stage != "autoencoder":
        positions = config.data.block_tokens // (config.model.K if config.stage == "calm" else 1)
        assert positions == 2048


@given(
    stage=st.sampled_from(["autoencoder", "calm", "baseline"]),
    K=st.integers(1, 9),
    l=st.integers(1, 70),
    width=st.integers(1, 6),
    intermediate=st.integers(1, 50),
    layers=st.integers(1, 4),
    blocks=st.integers(1, 3),
    noise=st.integers(1, 40),
    halves=st.integers(1, 3),
    V=st.integers(2, 300),
)
def test_any_shape_has_the_parameters_of_its_module(
    stage: str,
    K: int,
    l: int,
    width: int,
    intermediate: int,
    layers: int,
    blocks: int,
    noise: int,
    halves: int,
    V: int,
) -> None:
    model = LanguageModelConfig(
        K=K, l=l, d=4 * width, intermediate=intermediate, layers=layers, heads=2, head_blocks=blocks, noise_size=noise
    )
    auto = AutoencoderConfig(d=width, intermediate=intermediate, encoder_layers=2 * halves, decoder_layers=2)
    report = for_stage(stage, model, auto, V, 8 * K)
    assert report.parameters_total == module_parameters(stage, model, auto, V)


@pytest.mark.parametrize("stage", ["autoencoder", "calm", "baseline"])
@pytest.mark.parametrize("convention", ["exact", "paper"])
def test_totals_are_sums_and_cost_scales_with_tokens(stage: str, convention: str) -> None:
    report = for_stage(stage, MODEL, AutoencoderConfig(), 1000, 96, convention)  # type: ignore[arg-type]
    assert report.training_per_block_total == pytest.approx(sum(report.training_per_block.values()))
    assert report.training_per_token_total * 96 == pytest.approx(report.training_per_block_total)
    assert report.forward_per_block_total < report.training_per_block_total <= 3 * report.forward_per_block_total
    cost = model_cost("m", report, 960)
    assert cost.training_flops == pytest.approx(10 * report.training_per_block_total)
    assert cost.inference_flops_per_token == pytest.approx(report.inference_per_token_total)
    assert cost.parameters == report.parameters_total


def test_cost_of_calm_contains_its_autoencoder() -> None:
    auto = AutoencoderConfig(d=32, intermediate=64)
    calm, autoencoder = (for_stage(stage, MODEL, auto, 1000, 96) for stage in ("calm", "autoencoder"))
    alone, whole = model_cost("m", calm, 960), model_cost("m", calm, 960, autoencoder, 480)
    assert whole.training_flops - alone.training_flops == pytest.approx(5 * autoencoder.training_per_block_total)
    assert whole.parameters == alone.parameters
    assert sum(part.training_flops for part in whole.components.values()) == pytest.approx(whole.training_flops)


def test_more_draws_cost_training_but_not_inference() -> None:
    auto = AutoencoderConfig(d=32, intermediate=64)
    few, many = (calm_flops(replace(MODEL, N=N), auto, 1000, 96) for N in (2, 12))
    assert many.training_per_block["head"] > 4 * few.training_per_block["head"]
    assert many.training_per_block["backbone"] == few.training_per_block["backbone"]
    assert many.inference_per_token == few.inference_per_token


def test_fewer_positions_per_token_with_larger_chunks() -> None:
    auto = AutoencoderConfig(d=32, intermediate=64)
    costs = [calm_flops(replace(MODEL, K=K, l=64), auto, 1000, 768).training_per_block["backbone"] for K in (1, 2, 4)]
    assert costs[0] / costs[1] == pytest.approx(767 / 383)
    assert costs[0] / costs[2] == pytest.approx(767 / 191)


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(ConfigError, match="stage=calmer must be one of"):
        for_stage("calmer", MODEL, AutoencoderConfig(), 1000, 96)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("read", INPUTS)
def test_parameters_of_every_head_and_input_equal_the_real_modules(head: str, read: str) -> None:
    config = replace(MODEL, head=head, input=read)
    report = for_stage("calm", config, AutoencoderConfig(), 1000, 96)
    assert report.parameters_total == module_parameters("calm", config, AutoencoderConfig(), 1000)


def test_more_sampling_steps_cost_more_inference_and_no_more_training() -> None:
    few, many = (
        for_stage("calm", replace(MODEL, head="flow", sampling_steps=steps), AutoencoderConfig(), 1000, 96)
        for steps in (4, 40)
    )
    assert many.training_per_block == few.training_per_block
    assert 9 < many.inference_per_token["head"] / few.inference_per_token["head"] < 10


def test_counting_does_not_import_torch() -> None:
    code = "import sys, calm_lightning.flops, calm_lightning.flops.cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Every model against numbers the authors' implementation produced (float32, CPU)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.autoencoder.loss import autoencoder_loss, kl_per_dimension
from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.checkpoints.released import autoencoder_weights, baseline_weights, calm_weights
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.language_model.heads.energy import energy_score

GOLDEN = Path(os.environ.get("CALM_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden numbers at {GOLDEN}; set CALM_GOLDEN")


def cases(kind: str) -> list[Any]:
    found = sorted((GOLDEN / kind).glob("*/case.safetensors"))
    return [pytest.param(path.parent, id=f"{kind}-{path.parent.name}") for path in found]


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "checkpoint" / "config.json").read_text())


def read_weights(folder: Path) -> dict[str, Tensor]:
    safe = folder / "checkpoint" / "model.safetensors"
    if safe.exists():
        return load_file(safe)
    return torch.load(folder / "checkpoint" / "pytorch_model.bin", weights_only=True)


def close(ours: Tensor, theirs: Tensor, relative: float = 1e-5) -> None:
    scale = theirs.abs().max().clamp(min=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=relative, atol=float(relative * scale))


def released_autoencoder(folder: Path) -> ChunkAutoencoder:
    config = read_config(folder)
    shape = AutoencoderConfig(
        d=config["hidden_size"],
        intermediate=config["intermediate_size"],
        encoder_layers=config["num_encoder_layers"],
        decoder_layers=config["num_decoder_layers"],
        beta=config["kl_weight"],
        kl_clip=config["kl_clamp"],
        norm_eps=config["rms_norm_eps"],
    )
    model = ChunkAutoencoder(shape, config["patch_size"], config["latent_size"], config["vocab_size"]).eval()
    model.load_state_dict(autoencoder_weights(read_weights(folder), shape.encoder_layers, shape.decoder_layers))
    return model


def backbone_config(config: dict[str, Any]) -> LanguageModelConfig:
    return LanguageModelConfig(
        d=config["hidden_size"],
        intermediate=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        rope_theta=config["rope_theta"],
        norm_eps=config["rms_norm_eps"],
    )


@pytest.mark.parametrize("folder", cases("autoencoder"))
def test_autoencoder(folder: Path) -> None:
    model, case = released_autoencoder(folder), load_file(folder / "case.safetensors")
    tokens_CK = case["input_ids"].reshape(-1, model.K)
    with torch.no_grad():
        mean, log_std = model.encode(tokens_CK)
        close(mean, case["mean"].flatten(0, 1))
        close(log_std, case["log_std"].flatten(0, 1))
        logits = model.decode(case["latents"].flatten(0, 1))
        close(logits.flatten(0, 1), case["decoder_logits"].flatten(0, 1))
        z = mean + case["posterior_eps"].flatten(0, 1) * log_std.exp()
        logits = model.decode(z)
    close(logits.flatten(0, 1), case["recon_logits"].flatten(0, 1))
    loss = autoencoder_loss(logits, tokens_CK, mean, log_std, model.config.beta, model.config.kl_clip)
    close(kl_per_dimension(mean, log_std), case["kl_per_dim"].flatten(0, 1))
    close(loss.cross_entropy, case["cross_entropy_mean"].squeeze())
    close(loss.kl_clipped, case["kl_loss_clipped"].squeeze())
    close(loss.total, case["training_loss_no_dropout"].squeeze())


@pytest.mark.parametrize("folder", cases("energy"))
def test_energy_language_model(folder: Path) -> None:
    config, case = read_config(folder), load_file(folder / "case.safetensors")
    shape = backbone_config(config)
    shape.K, shape.l = config["patch_size"], config["latent_size"]
    shape.head_blocks, shape.noise_size = config["num_mlp_layers"], config["noise_size"]
    model = ContinuousLM(shape, config["vocab_size"]).eval()
    weights = read_weights(folder)
    model.load_state_dict(calm_weights(weights, shape.layers, shape.head_blocks))
    tokens_BLK = case["input_ids"].unflatten(1, (-1, shape.K))
    with torch.no_grad():
        close(model.input(tokens_BLK[:, :-1]), case["compressed_input"])
        hidden_BLD = model(tokens_BLK[:, :-1])
        close(hidden_BLD, case["hidden"])
        draws_NPZ = model.head(case["hidden"].flatten(0, 1), case["head_noise"])
    close(draws_NPZ, case["head_samples"])
    targets_MPZ = case["target_mean"] + case["target_eps"] * case["target_log_std"].exp()
    scored = [name for name in case if name.startswith("energy_score_alpha")]
    assert scored
    for name in scored:
        alpha, _, N = name.removeprefix("energy_score_alpha").partition("_N")
        score_P = energy_score(case["head_samples"][: int(N)], targets_MPZ, float(alpha))
        close(score_P, case[name])
        close(-score_P.mean(), case[name.replace("score", "loss")].squeeze())
    if "decoded_1" in case:
        autoencoder = released_autoencoder(GOLDEN / "autoencoder" / folder.name)
        # Loading the language model untied the released autoencoder's logits matrix; the case was made with that one.
        logits_VE = weights["ae_model.decoder.lm_head_weight"]
        for index in (1, 2):
            with torch.no_grad():
                logits_PKV = autoencoder.decoder(case["head_samples"][index - 1]) @ logits_VE.T
            assert torch.equal(logits_PKV.argmax(-1), case[f"decoded_{index}"].flatten(0, 1).long())


@pytest.mark.parametrize("folder", cases("baseline"))
def test_baseline(folder: Path) -> None:
    config, case = read_config(folder), load_file(folder / "case.safetensors")
    shape = backbone_config(config)
    model = TokenLM(shape, config["vocab_size"]).eval()
    model.load_state_dict(baseline_weights(read_weights(folder), shape.layers))
    with torch.no_grad():
        close(model(case["input_ids"]), case["logits"])

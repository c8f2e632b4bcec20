"""Every model against numbers the authors' implementation produced (float32, CPU), read through the importer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from calm_lightning.autoencoder.loss import autoencoder_loss, kl_per_dimension
from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.checkpoints.files import read_weights
from calm_lightning.checkpoints.released import Released, read_released
from calm_lightning.checkpoints.translate import same
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.heads.energy import EnergyHead, energy_score
from calm_lightning.programs.exporting import export_run
from calm_lightning.programs.importing import import_released

GOLDEN = Path(os.environ.get("CALM_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden numbers at {GOLDEN}; set CALM_GOLDEN")


def checkpoints(kind: str) -> list[Any]:
    """Return every checkpoint directory of a kind, its pickled twins included."""
    found = sorted(path.parent for path in GOLDEN.glob(f"{kind}/*/checkpoint*/config.json"))
    return [pytest.param(path, id=path.relative_to(GOLDEN).as_posix()) for path in found]


def close(ours: Tensor, theirs: Tensor, relative: float = 1e-5) -> None:
    scale = theirs.abs().max().clamp(min=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=relative, atol=float(relative * scale))


def autoencoder_of(released: Released) -> ChunkAutoencoder:
    codec = released.codec() or released
    assert codec.autoencoder is not None
    shape = codec.model
    model = ChunkAutoencoder(codec.autoencoder, shape.K, shape.latent_width(), codec.vocabulary).eval()
    model.load_state_dict(codec.weights)
    return model


@pytest.mark.parametrize("folder", checkpoints("autoencoder"))
def test_autoencoder(folder: Path) -> None:
    model, case = autoencoder_of(read_released(folder)), load_file(folder.parent / "case.safetensors")
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


@pytest.mark.parametrize("folder", checkpoints("energy"))
def test_energy_language_model(folder: Path) -> None:
    released, case = read_released(folder), load_file(folder.parent / "case.safetensors")
    model = ContinuousLM(released.model, released.vocabulary).eval()
    model.load_state_dict(released.weights)
    assert isinstance(model.head, EnergyHead)
    tokens_BLK = case["input_ids"].unflatten(1, (-1, model.K))
    with torch.no_grad():
        close(model.input(tokens_BLK[:, :-1]), case["compressed_input"])
        close(model(tokens_BLK[:, :-1]), case["hidden"])
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


@pytest.mark.parametrize("folder", checkpoints("energy"))
def test_autoencoder_of_the_language_model_decodes_its_draws(folder: Path) -> None:
    case = load_file(folder.parent / "case.safetensors")
    decoded = sorted(name for name in case if name.startswith("decoded_"))
    if not decoded:
        pytest.skip("the case holds no decoded tokens (K < 4)")
    model = autoencoder_of(read_released(folder))
    for name in decoded:
        with torch.no_grad():
            tokens_PK = model.decode_tokens(case["head_samples"][int(name.removeprefix("decoded_")) - 1])
        assert torch.equal(tokens_PK, case[name].flatten(0, 1).long())


@pytest.mark.parametrize("folder", checkpoints("baseline"))
def test_baseline(folder: Path) -> None:
    released, case = read_released(folder), load_file(folder.parent / "case.safetensors")
    model = TokenLM(released.model, released.vocabulary).eval()
    model.load_state_dict(released.weights)
    with torch.no_grad():
        close(model(case["input_ids"]), case["logits"])


@pytest.mark.parametrize("folder", checkpoints("*"))
def test_import_export_import_loses_no_bit(folder: Path, tmp_path: Path) -> None:
    first = import_released(folder, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "exported", "300KB")
    again = import_released(tmp_path / "exported", tmp_path / "again")
    assert again.released.identity == first.released.identity
    assert again.released.weights.keys() == first.released.weights.keys()
    original, exported = read_weights(folder), read_weights(tmp_path / "exported")
    assert original.keys() <= exported.keys()
    assert [name for name, tensor in original.items() if not same(tensor, exported[name])] == []
    if first.released.stage == "calm":
        embedded = {
            f"ae_model.{name}": tensor for name, tensor in read_weights(tmp_path / "exported/autoencoder").items()
        }
        assert all(same(tensor, exported[name]) for name, tensor in embedded.items())

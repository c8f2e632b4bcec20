"""`calm import-hf` and `calm export-hf` as a user sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.checkpoints.files import read_weights, write_json, write_weights
from calm_lightning.checkpoints.keys import write_autoencoder_config, write_language_model_config
from calm_lightning.checkpoints.names import autoencoder_layout, calm_layout
from calm_lightning.cli.checkpoints import export_hf, import_hf
from calm_lightning.cli.main import FrontDoor
from calm_lightning.data.tokenizers import train_bpe
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.models import open_model

AUTOENCODER = AutoencoderConfig(d=8, intermediate=12)
MODEL = LanguageModelConfig(K=2, l=6, vocabulary=257, d=16, intermediate=24, layers=2, heads=2, noise_size=5)
CALM_CONFIG = write_language_model_config("calm", MODEL) | {"ae_path": "/on/their/server", "bos_token_id": 5}

app = typer.Typer(cls=FrontDoor)
app.command()(import_hf)
app.command()(export_hf)


def run(*arguments: str | Path, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A released continuous language model with its autoencoder beside it, none embedded."""
    torch.manual_seed(0)
    codec = ChunkAutoencoder(AUTOENCODER, MODEL.K, 6, 257)
    shelf = (
        ("autoencoder", write_autoencoder_config(AUTOENCODER, MODEL.K, 6, 257), autoencoder_layout(AUTOENCODER), codec),
        ("model", CALM_CONFIG, calm_layout(MODEL), ContinuousLM(MODEL, 257)),
    )
    for name, config, layout, network in shelf:
        (tmp_path / "released" / name).mkdir(parents=True)
        write_weights(tmp_path / "released" / name, layout.to_released(network.state_dict()), 10**9)
        write_json(tmp_path / "released" / name / "config.json", config)
    return tmp_path / "released" / "model"


def test_import_makes_a_finished_run(released: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shown = run("import-hf", released, "--tokenizer", "bytes", "--out", out)
    assert "continuous language model (EnergyTransformer)" in shown
    assert f"the autoencoder was found in {released.parent / 'autoencoder'}" in shown
    assert shown.endswith(f"next: calm eval {out} --text FILE\n")
    opened, direct = open_model(out), open_model(released)
    assert opened.stage == "calm" and opened.config.data.block_tokens == 2048 * MODEL.K
    assert opened.tokenizer is not None and opened.tokenizer.kind == "bytes"
    pairs: list[tuple[nn.Module | None, nn.Module | None]] = [
        (opened.model, direct.model),
        (opened.autoencoder, direct.autoencoder),
    ]
    for ours, theirs in pairs:
        assert ours is not None and theirs is not None
        assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
    assert "nothing was written now" in run("import-hf", released, "--tokenizer", "bytes", "--out", out)
    assert "nothing was written now" in run("import-hf", released, "--out", out)
    other = tmp_path / "other.json"
    train_bpe(["a few words to train on"], 257).save(tmp_path)
    (tmp_path / "tokenizer.json").rename(other)
    refused = run("import-hf", released, "--tokenizer", f"file:{other}", "--out", out, status=2)
    assert "holds the same weights with another tokenizer" in refused


def test_a_tokenizer_can_be_given_later(released: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run("import-hf", released, "--out", out).endswith("--text FILE --tokenizer SPEC\n")
    assert "note: no tokenizer" not in run("import-hf", released, "--tokenizer", "bytes", "--out", out)
    for place in (out, out / "autoencoder"):
        opened = open_model(place)
        assert opened.tokenizer is not None and opened.tokenizer.kind == "bytes"


def test_a_place_that_cannot_be_made_is_one_sentence(released: Path) -> None:
    assert "/proc/none cannot be created" in run("import-hf", released, "--out", "/proc/none", status=2)


def test_export_writes_what_was_imported(released: Path, tmp_path: Path) -> None:
    run("import-hf", released, "--out", tmp_path / "run")
    shown = run("export-hf", tmp_path / "run", tmp_path / "out", "--max-shard-size", "20KB")
    assert "ae_model.*" in shown and f"--ae_name_or_path {tmp_path / 'out' / 'autoencoder'}" in shown
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["ae_path"] == "./autoencoder" and config["bos_token_id"] == 5
    assert config | {"ae_path": CALM_CONFIG["ae_path"]} == CALM_CONFIG | {"torch_dtype": "float32"}
    exported = read_weights(tmp_path / "out")
    assert all(torch.equal(tensor, exported[name]) for name, tensor in read_weights(released).items())
    codec = load_file(released.parent / "autoencoder" / "model.safetensors")
    assert all(torch.equal(tensor, exported[f"ae_model.{name}"]) for name, tensor in codec.items())
    assert open_model(tmp_path / "out").lineage == open_model(released).lineage
    assert "exists already" in run("export-hf", tmp_path / "run", tmp_path / "out", status=2)


def test_failures_are_one_sentence_and_leave_nothing(released: Path, tmp_path: Path) -> None:
    weights = read_weights(released)
    del weights["transformer.norm.weight"]
    write_weights(released, weights, 10**9)
    out = tmp_path / "run"
    for arguments in (
        ("import-hf", released, "--out", out),
        ("import-hf", tmp_path / "nowhere", "--out", out),
        ("import-hf", released.parent / "autoencoder", "--tokenizer", "file:nowhere.json", "--out", out),
        ("export-hf", released, out),
        ("export-hf", released, out, "--max-shard-size", "big"),
    ):
        shown = run(*arguments, status=2)
        assert shown.startswith("error: ") and shown.count("\n") == 1
    assert "it lacks transformer.norm.weight" in run("import-hf", released, "--out", out, status=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["released"]

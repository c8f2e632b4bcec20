"""Checkpoints in the released format: read completely or refused by name, written back bit by bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.checkpoints.files import read_weights, write_json, write_weights
from calm_lightning.checkpoints.keys import write_autoencoder_config, write_language_model_config
from calm_lightning.checkpoints.names import autoencoder_layout, baseline_layout, calm_layout
from calm_lightning.checkpoints.released import read_released
from calm_lightning.checkpoints.translate import same
from calm_lightning.errors import CalmError, CheckpointError, ConfigError, DataError
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.programs.exporting import export_run, parse_size
from calm_lightning.programs.importing import import_released

AUTOENCODER = AutoencoderConfig(d=8, intermediate=12, norm_eps=1e-5)
MODEL = LanguageModelConfig(K=2, l=6, vocabulary=20, d=16, intermediate=24, layers=2, heads=2, noise_size=5, N=3)


def state_of(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return random weights: modules that start at zero would hide a mix-up."""
    return {name: torch.randn_like(tensor).to(dtype) for name, tensor in module.state_dict().items()}


def write(folder: Path, config: dict[str, Any], weights: dict[str, Tensor], shard: int = 10**9) -> Path:
    folder.mkdir(parents=True)
    write_weights(folder, weights, shard)
    write_json(folder / "config.json", config)
    return folder


def write_autoencoder(
    folder: Path,
    auto: AutoencoderConfig = AUTOENCODER,
    model: LanguageModelConfig = MODEL,
    dtype: torch.dtype = torch.float32,
) -> Path:
    K, l, V = model.K, model.latent_width(), model.vocabulary
    assert V is not None
    weights = autoencoder_layout(auto).to_released(state_of(ChunkAutoencoder(auto, K, l, V), dtype))
    return write(folder, write_autoencoder_config(auto, K, l, V), weights)


def write_calm(
    folder: Path,
    model: LanguageModelConfig = MODEL,
    auto: AutoencoderConfig | None = AUTOENCODER,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a continuous language model, with its autoencoder embedded unless `auto` is None."""
    K, l, V = model.K, model.latent_width(), model.vocabulary
    assert V is not None
    weights = calm_layout(model).to_released(state_of(ContinuousLM(model, V), dtype))
    if auto is not None:
        codec = autoencoder_layout(auto).to_released(state_of(ChunkAutoencoder(auto, K, l, V), dtype))
        weights |= {f"ae_model.{name}": tensor for name, tensor in codec.items()}
    return write(folder, write_language_model_config("calm", model), weights)


def write_baseline(folder: Path, **keys: Any) -> Path:
    model = replace(MODEL, vocabulary=20)
    weights = baseline_layout(model).to_released(state_of(TokenLM(model, 20), torch.float32))
    return write(folder, write_language_model_config("baseline", model) | keys, weights)


def rewrite(folder: Path, change: Any) -> None:
    """Apply a change to the weights of a checkpoint directory."""
    weights = read_weights(folder)
    change(weights)
    write_weights(folder, weights, 10**9)


def edit(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def refused(folder: Path, *, autoencoder: Path | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_released(folder, autoencoder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from(["energy", "flow", "diffusion"]),
    K=st.integers(1, 5),
    l=st.integers(1, 7),
    V=st.integers(2, 40),
    blocks=st.integers(1, 2),
    half=st.integers(1, 2),
    tied=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    shard=st.sampled_from(["5GB", "2KB"]),
)
def test_round_trip_is_bit_exact(
    tmp_path_factory: pytest.TempPathFactory,
    head: str,
    K: int,
    l: int,
    V: int,
    blocks: int,
    half: int,
    tied: bool,
    dtype: torch.dtype,
    shard: str,
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    model = replace(MODEL, head=head, K=K, l=l, vocabulary=V, head_blocks=blocks, layers=half)
    auto = replace(AUTOENCODER, encoder_layers=2 * half, tied=tied, norm_eps=1e-6)
    source = write_calm(folder / "source", model, auto, dtype)
    first = import_released(source, folder / "run", tokenizer="none")
    assert first.released.model == replace(model, M=100)
    assert first.released.autoencoder == auto
    export_run(folder / "run", folder / "out", shard)
    again = import_released(folder / "out", folder / "again", tokenizer="none")
    assert again.released.identity == first.released.identity
    original, exported = read_weights(source), read_weights(folder / "out")
    assert original.keys() == exported.keys()
    assert all(same(tensor, exported[name]) and tensor.dtype == dtype for name, tensor in original.items())
    assert json.loads((folder / "out" / "config.json").read_text())["torch_dtype"] == str(dtype)[6:]


def test_a_layout_names_every_tensor_of_our_models() -> None:
    for head in ("energy", "flow", "diffusion"):
        model = replace(MODEL, head=head)
        assert calm_layout(model).table.keys() == ContinuousLM(model, 20).state_dict().keys()
    assert baseline_layout(MODEL).table.keys() == TokenLM(MODEL, 20).state_dict().keys()
    for auto in (AUTOENCODER, replace(AUTOENCODER, tied=False, encoder_layers=4)):
        assert autoencoder_layout(auto).table.keys() == ChunkAutoencoder(auto, 2, 6, 20).state_dict().keys()


def test_reading_does_not_touch_the_random_state(tmp_path: Path) -> None:
    folder = write_calm(tmp_path / "model")
    before = torch.get_rng_state()
    read_released(folder)
    assert torch.equal(before, torch.get_rng_state())


def test_missing_unknown_and_misshapen_tensors_are_named_at_once(tmp_path: Path) -> None:
    folder = write_calm(tmp_path / "model")

    def damage(weights: dict[str, Tensor]) -> None:
        del weights["transformer.layers.1.self_attn.k_proj.weight"]
        del weights["ae_model.decoder.expand_layer.bias"]
        weights["transformer.layers.2.extra.weight"] = torch.zeros(3)
        weights["ae_model.encoder.surprise"] = torch.zeros(3)
        weights["embed_proj.3.bias"] = torch.zeros(7)

    rewrite(folder, damage)
    message = refused(folder)
    assert "it lacks transformer.layers.1.self_attn.k_proj.weight" in message
    assert "it lacks ae_model.decoder.expand_layer.bias" in message
    assert "unknown tensors transformer.layers.2.extra.weight" in message
    assert "unknown tensors ae_model.encoder.surprise" in message
    assert "embed_proj.3.bias (7,) instead of (16,)" in message


def test_second_names_must_agree_and_may_be_the_only_ones(tmp_path: Path) -> None:
    folder, name = write_calm(tmp_path / "model"), "noise_embd.weight"
    whole = read_released(folder)

    def only_second_names(weights: dict[str, Tensor]) -> None:
        for key in [key for key in weights if key.startswith("mlp_generator.")]:
            del weights[key]

    rewrite(folder, lambda weights: weights.update({f"generative_head.{name}": weights[f"mlp_generator.{name}"] + 1}))
    assert f"generative_head.{name} and mlp_generator.{name}" in refused(folder)
    rewrite(folder, lambda weights: weights.pop(f"generative_head.{name}"))
    assert f"it lacks generative_head.{name}" in refused(folder)
    rewrite(folder, lambda weights: weights.update({f"generative_head.{name}": weights[f"mlp_generator.{name}"]}))
    rewrite(folder, only_second_names)
    assert read_released(folder).identity == whole.identity


def test_parts_of_one_matrix_must_share_a_dtype(tmp_path: Path) -> None:
    folder, name = write_baseline(tmp_path / "model"), "model.layers.0.mlp.up_proj.weight"
    rewrite(folder, lambda weights: weights.update({name: weights[name].bfloat16()}))
    assert name in refused(folder) and "differ in dtype" in refused(folder)


def test_rotary_buffers_are_checked_and_dropped(tmp_path: Path) -> None:
    folder, name = write_baseline(tmp_path / "model"), "model.layers.0.self_attn.rotary_emb.inv_freq"
    plain = read_released(folder)
    rewrite(folder, lambda weights: weights.update({name: 10_000.0 ** -(torch.arange(0, 8, 2) / 8)}))
    assert read_released(folder).identity == plain.identity
    edit(folder, rope_theta=500.0)
    assert f"{name} is not what rope_theta=500 gives" in refused(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 10_000.0}),
        ("num_key_value_heads", 1),
        ("head_dim", 4),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("num_attention_heads", 3),
        ("hidden_size", None),
        ("num_hidden_layers", "two"),
        ("vocab_size", True),
        ("num_hidden_layers", 10**12),
        ("rms_norm_eps", "small"),
    ],
)
def test_what_the_models_lack_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    folder = write_baseline(tmp_path / "model")
    edit(folder, **{key: value})
    assert key.replace("rope_parameters", "rope_scaling") in refused(folder)


def test_every_wrong_key_is_listed(tmp_path: Path) -> None:
    folder = write_autoencoder(tmp_path / "auto")
    edit(folder, latent_size=0, hidden_act="relu", num_encoder_layers=3, patch_size=None)
    message = refused(folder)
    assert all(key in message for key in ("latent_size=0", "hidden_act='relu'", "num_encoder_layers=3", "patch_size"))


@pytest.mark.parametrize("named", [None, [], "Autoencoder", ["GPT2LMHeadModel"], ["Autoencoder", "LlamaForCausalLM"]])
def test_unknown_architectures_are_refused(tmp_path: Path, named: object) -> None:
    folder = write_autoencoder(tmp_path / "auto")
    edit(folder, architectures=named)
    assert "known are Autoencoder, EnergyTransformer" in refused(folder)


def test_tied_embeddings_of_a_baseline_are_copied(tmp_path: Path) -> None:
    folder = write_baseline(tmp_path / "model", tie_word_embeddings=True)
    assert "lm_head.weight differs" in refused(folder)
    rewrite(folder, lambda weights: weights.pop("lm_head.weight"))
    released = import_released(folder, tmp_path / "run").released
    assert same(released.weights["lm_head.weight"], released.weights["embedding.weight"])
    edit(folder, tie_word_embeddings=False)
    assert "it lacks lm_head.weight" in refused(folder)


def test_given_autoencoder_wins_over_the_embedded_one(tmp_path: Path) -> None:
    folder = write_calm(tmp_path / "models" / "model")
    other = write_autoencoder(tmp_path / "other")
    given = read_released(folder, other)
    assert given.autoencoder_source == str(other) and given.autoencoder == AUTOENCODER
    assert given.autoencoder_weights is not None
    assert all(same(given.autoencoder_weights[name], tensor) for name, tensor in read_released(other).weights.items())
    assert given.identity != read_released(folder).identity
    import_released(other, tmp_path / "run", tokenizer="none")
    assert read_released(folder, tmp_path / "run").identity == given.identity
    (tmp_path / "run" / "model.safetensors").unlink()
    assert "has not finished training" in refused(folder, autoencoder=tmp_path / "run")


def test_embedded_autoencoder_takes_its_epsilon_from_a_fitting_neighbour(tmp_path: Path) -> None:
    folder = write_calm(tmp_path / "model")
    alone = read_released(folder)
    assert alone.autoencoder is not None and alone.autoencoder.norm_eps == 1e-6
    assert any("released defaults" in note and "norm_eps=1e-06" in note for note in alone.notes)
    write_autoencoder(tmp_path / "narrow", replace(AUTOENCODER, intermediate=10, norm_eps=1e-3))
    write_autoencoder(tmp_path / "other-K", model=replace(MODEL, K=3))
    write_autoencoder(tmp_path / "fitting")
    beside = read_released(folder)
    assert beside.autoencoder is not None and beside.autoencoder.norm_eps == 1e-5
    assert any("fitting" in note for note in beside.notes)


def test_logits_matrix_of_its_own_is_kept(tmp_path: Path) -> None:
    untied = replace(AUTOENCODER, tied=False, norm_eps=1e-6)
    released = read_released(write_calm(tmp_path / "model", auto=untied))
    assert released.autoencoder == untied and released.autoencoder_weights is not None
    network = ChunkAutoencoder(untied, MODEL.K, 6, 20).eval()
    network.load_state_dict(released.autoencoder_weights)
    latent = torch.randn(5, 6)
    with torch.no_grad():
        logits = network.decode(latent)
        assert torch.equal(logits, network.decoder(latent) @ released.autoencoder_weights["logits.weight"].T)
    rewrite(tmp_path / "model", lambda weights: weights.pop("ae_model.decoder.lm_head_weight"))
    tied = read_released(tmp_path / "model")
    assert tied.autoencoder is not None and tied.autoencoder.tied
    assert any("no ae_model.decoder.lm_head_weight is stored" in note for note in tied.notes)


def test_autoencoder_beside_the_model_is_found_or_asked_for(tmp_path: Path) -> None:
    folder = write_calm(tmp_path / "model", auto=None)
    assert "embeds no autoencoder" in refused(folder) and "patch_size=2" in refused(folder)
    write_autoencoder(tmp_path / "one")
    assert read_released(folder).autoencoder_source == str(tmp_path / "one")
    write_autoencoder(tmp_path / "two")
    assert f"choose one with --autoencoder: {tmp_path / 'one'}, {tmp_path / 'two'}" in refused(folder)
    write_autoencoder(folder / "autoencoder")
    assert read_released(folder).autoencoder_source == str(folder / "autoencoder")
    unfit = write_autoencoder(tmp_path / "unfit", model=replace(MODEL, l=5))
    assert "latent_size is 5 instead of 6" in refused(folder, autoencoder=unfit)
    assert "not an autoencoder" in refused(folder, autoencoder=folder)
    assert "is an autoencoder itself" in refused(unfit, autoencoder=unfit)
    assert "has no use for the autoencoder" in refused(write_baseline(tmp_path / "base"), autoencoder=unfit)


def test_an_existing_directory_is_kept_unless_it_is_the_same_import(tmp_path: Path) -> None:
    first, second = write_autoencoder(tmp_path / "first"), write_autoencoder(tmp_path / "second")
    made = import_released(first, tmp_path / "run")
    assert not made.existed and import_released(first, tmp_path / "run").existed
    for folder, spec, hint in ((second, None, "holds another model"), (first, "file:x", "cannot be read")):
        with pytest.raises(CalmError, match=hint):
            import_released(folder, tmp_path / "run", tokenizer=spec)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep me")
    with pytest.raises(CheckpointError, match="is no imported checkpoint"):
        import_released(first, tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep me"
    with pytest.raises(CheckpointError, match="exists already"):
        export_run(tmp_path / "run", tmp_path / "notes")


def test_a_tokenizer_must_fit_the_vocabulary(tmp_path: Path) -> None:
    folder = write_autoencoder(tmp_path / "auto", model=replace(MODEL, vocabulary=257))
    imported = import_released(folder, tmp_path / "run", tokenizer="bytes")
    assert imported.tokenizer is not None and (tmp_path / "run" / "tokenizer" / "record.json").is_file()
    with pytest.raises(CheckpointError, match="another tokenizer"):
        import_released(folder, tmp_path / "run", tokenizer="none")
    small = write_autoencoder(tmp_path / "small")
    with pytest.raises(DataError, match="257 ids and the model a vocabulary of 20"):
        import_released(small, tmp_path / "other", tokenizer="bytes")
    with pytest.raises(DataError, match="would train a new one"):
        import_released(small, tmp_path / "other", tokenizer="bpe:300")
    assert not (tmp_path / "other").exists()


def test_what_the_format_cannot_say_is_refused_by_name(tmp_path: Path) -> None:
    import_released(write_calm(tmp_path / "model"), tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    path.write_text(
        path.read_text().replace("input: discrete", "input: both").replace("noise: uniform", "noise: gaussian")
    )
    with pytest.raises(CheckpointError, match=r"cannot say model.input=both .* and model.noise=gaussian"):
        export_run(tmp_path / "run", tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_training_settings_that_the_format_cannot_say_are_noted(tmp_path: Path) -> None:
    import_released(write_calm(tmp_path / "model"), tmp_path / "run")
    for path in (tmp_path / "run" / "config.yaml", tmp_path / "run" / "autoencoder" / "config.yaml"):
        path.write_text(path.read_text().replace("M: 100", "M: 7").replace("drop_token: 0.15", "drop_token: 0.3"))
    exported = export_run(tmp_path / "run", tmp_path / "out")
    assert exported.autoencoder is not None
    assert "model.M=7" in exported.checkpoint.notes[0] and "drop_token=0.3" in exported.autoencoder.notes[0]


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 MB", 1_500_000), ("300kb", 300_000)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5", "GB", "-1GB", "0KB", "five GB"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--max-shard-size"):
        parse_size(text)


@pytest.mark.parametrize("key, value", [("rms_norm_eps", -1.0), ("rope_theta", 0.0), ("beta", 0.0)])
def test_numbers_that_make_no_sense_are_refused(key: str, value: float, tmp_path: Path) -> None:
    folder = write_calm(tmp_path / "model")
    edit(folder, **{key: value})
    with pytest.raises(CheckpointError, match=f"{key}=.* must be a positive number"):
        read_released(folder)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    folder = write_calm(tmp_path / "model")

    def damage(weights: dict[str, Tensor]) -> None:
        for name, tensor in weights.items():
            if name.endswith("norm_noise.bias"):
                tensor[0] = float("nan")

    rewrite(folder, damage)
    with pytest.raises(CheckpointError, match=r"not all numbers are finite in .*norm_noise\.bias"):
        read_released(folder)

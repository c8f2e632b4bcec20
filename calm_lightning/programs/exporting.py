"""A finished run becomes a checkpoint directory in the released format, which the authors' code loads.

A continuous language model embeds its autoencoder, as released ones do, and also carries it as a checkpoint of its own
in `autoencoder/`, because the authors' code first opens `ae_path`. Tensors keep their stored dtype and bits. What the
format cannot say is refused by name where it changes what the model computes, and noted where it mattered to training.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from calm_lightning.assembly import CONFIG, RESULT, TOKENIZER, WEIGHTS, load_result, own_autoencoder
from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.checkpoints.autoencoders import AUTOENCODER_DIR
from calm_lightning.checkpoints.files import CONFIG_FILE, whole_directory, write_json, write_weights
from calm_lightning.checkpoints.keys import (
    RELEASED_M,
    keep_foreign_keys,
    write_autoencoder_config,
    write_language_model_config,
)
from calm_lightning.checkpoints.names import EMBEDDED, autoencoder_layout, baseline_layout, calm_layout
from calm_lightning.checkpoints.translate import Shapes, autoencoder_shapes, language_model_shapes, listing
from calm_lightning.config import RunConfig, load_config
from calm_lightning.data.tokenizers import open_tokenizer
from calm_lightning.errors import CheckpointError, ConfigError
from calm_lightning.language_model.config import LanguageModelConfig

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
_LLAMA3_END_OF_TEXT = 128_001


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint in the released format, before it is written.

    Attributes:
        config: Content of config.json.
        weights: Tensors by released names.
        notes: What a user should know.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        directory: The checkpoint directory.
        checkpoint: The run's model.
        autoencoder: A language model's autoencoder, or None.
    """

    directory: Path
    checkpoint: Checkpoint
    autoencoder: Checkpoint | None


def parse_size(text: str) -> int:
    """Return the bytes that a size such as 5GB or 500MB stands for.

    Raises:
        ConfigError: It is no such size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]B)", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise ConfigError(f"--max-shard-size {text} must be a number of KB, MB or GB, for example 5GB")
    return size


def export_run(
    run_dir: str | Path, out: str | Path, max_shard_size: str = "5GB", autoencoder: str | Path | None = None
) -> Exported:
    """Write a finished run as a checkpoint directory in the released format.

    Args:
        run_dir: A finished run of any stage.
        out: The directory to make.
        max_shard_size: Largest file of weights; more are written in shards with an index.
        autoencoder: Run directory of a language model's autoencoder; None means the one it was trained with.

    Raises:
        CheckpointError: The run has not finished or is damaged, the format cannot say what it is, or `out` exists.
        ConfigError: `max_shard_size` is no size.
    """
    largest = parse_size(max_shard_size)
    folder, target = Path(run_dir), Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists already: choose another directory, or delete it first")
    config, source = _open(folder)
    if config.stage == "autoencoder":
        exported = Exported(target, _autoencoder(folder, config, source), None)
    elif config.stage == "baseline":
        exported = Exported(target, _language_model(folder, config, source), None)
    else:
        model = _language_model(folder, config, source)
        codec = _codec(folder, config, Path(autoencoder) if autoencoder else own_autoencoder(folder, config))
        model.weights.update({EMBEDDED + name: tensor for name, tensor in codec.weights.items()})
        exported = Exported(target, model, codec)
    with whole_directory(target.resolve()) as scratch:
        _write(scratch, exported.checkpoint, largest)
        if exported.autoencoder:
            (scratch / AUTOENCODER_DIR).mkdir()
            _write(scratch / AUTOENCODER_DIR, exported.autoencoder, largest)
    return exported


def _open(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Return a finished run's configuration, and the config.json it was imported from (or nothing)."""
    if not (folder / RESULT).is_file():
        state = "has not finished training" if (folder / CONFIG).is_file() else "holds no run"
        raise CheckpointError(f"{folder} {state}: give the directory of a finished run (it has a {RESULT})")
    result = load_result(folder)
    source = result.get("source")
    config_json = source.get("config") if isinstance(source, dict) else None
    return load_config([str(folder / CONFIG)]), config_json if isinstance(config_json, dict) else {}


def _load(folder: Path, shapes: Shapes) -> dict[str, Tensor]:
    """Return a run's weights in their stored dtype, checked against its configuration."""
    path = folder / WEIGHTS
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    wrong = [name for name in shapes if name not in weights or tuple(weights[name].shape) != shapes[name]]
    wrong += [name for name in weights if name not in shapes]
    if wrong:
        raise CheckpointError(f"{path} does not fit {folder / CONFIG}{listing(':', wrong)[0]}")
    return weights


def _autoencoder(folder: Path, config: RunConfig, source: dict[str, Any]) -> Checkpoint:
    model, shape = config.model, config.autoencoder
    K, l, vocabulary = model.K, model.latent_width(), _vocabulary(folder, model)
    weights = _load(folder, autoencoder_shapes(shape, K, l, vocabulary))
    ours = write_autoencoder_config(shape, K, l, vocabulary)
    released = autoencoder_layout(shape).to_released(weights)
    return Checkpoint(_complete(folder, ours, source), released, _autoencoder_notes(shape))


def _autoencoder_notes(shape: AutoencoderConfig) -> list[str]:
    notes = []
    if shape.drop_token != shape.drop_latent:
        notes.append(
            f"autoencoder.drop_token={shape.drop_token:g} is not in the format, whose one rate for both is "
            f"drop_latent={shape.drop_latent:g}; it matters to training only"
        )
    if shape.mask_id:
        notes.append(f"autoencoder.mask_id={shape.mask_id} is not in the format (0); it matters to training only")
    return notes


def _language_model(folder: Path, config: RunConfig, source: dict[str, Any]) -> Checkpoint:
    model = config.model
    _vocabulary(folder, model)
    # First, since it refuses models that the format has no names for.
    ours = write_language_model_config(config.stage, model)
    weights = _load(folder, language_model_shapes(config.stage, model))
    layout = calm_layout(model) if config.stage == "calm" else baseline_layout(model)
    notes = []
    if config.stage == "calm" and model.head == "energy" and model.M != RELEASED_M:
        notes.append(f"model.M={model.M} is not in the format ({RELEASED_M}); it matters to training only")
    return Checkpoint(_complete(folder, ours, source), layout.to_released(weights), notes)


def _vocabulary(folder: Path, model: LanguageModelConfig) -> int:
    if model.vocabulary is None:
        raise CheckpointError(f"{folder / CONFIG} does not say the vocabulary: it is no finished run's")
    return model.vocabulary


def _codec(folder: Path, config: RunConfig, place: Path) -> Checkpoint:
    """Return the autoencoder at `place` of a continuous language model's run."""
    theirs, source = _open(place)
    if theirs.stage != "autoencoder":
        raise CheckpointError(f"{place} is a run of stage {theirs.stage}, not the autoencoder of {folder}")
    ours = config.model
    for key in ("K", "l", "vocabulary"):
        if getattr(theirs.model, key) != getattr(ours, key):
            raise CheckpointError(
                f"the autoencoder {place} has model.{key}={getattr(theirs.model, key)}, {folder} "
                f"{getattr(ours, key)}: it is another model's"
            )
    return _autoencoder(place, theirs, source)


def _complete(folder: Path, ours: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    """Return config.json with the ids of begin and end of text, or all that its source said beyond ours."""
    if source or not (folder / TOKENIZER).is_dir():
        return keep_foreign_keys(ours, source)
    tokenizer = open_tokenizer(folder / TOKENIZER)
    begin = tokenizer.separator_id
    return {**ours, "bos_token_id": begin, "eos_token_id": _LLAMA3_END_OF_TEXT if tokenizer.kind == "llama3" else begin}


def _write(directory: Path, checkpoint: Checkpoint, largest: int) -> None:
    write_weights(directory, checkpoint.weights, largest)
    dtype = Counter(tensor.dtype for tensor in checkpoint.weights.values()).most_common(1)[0][0]
    write_json(directory / CONFIG_FILE, {**checkpoint.config, "torch_dtype": str(dtype).removeprefix("torch.")})

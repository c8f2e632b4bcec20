"""The autoencoder of a language model, wherever it comes from: a directory, the checkpoint itself, a run of ours.

An embedded autoencoder has tensors but no config.json: widths and layer counts follow from the shapes, and the rest
(the epsilon of its norms is all that matters to inference) from a fitting autoencoder beside it or the released
defaults. Its logits matrix is stored apart from the embedding and, in some checkpoints, differs from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.checkpoints.files import CONFIG_FILE, read_config, read_weights
from calm_lightning.checkpoints.keys import AUTOENCODER, architecture, read_autoencoder_config
from calm_lightning.checkpoints.names import EMBEDDED, autoencoder_layout
from calm_lightning.checkpoints.translate import autoencoder_shapes, listing, same, to_ours
from calm_lightning.errors import CheckpointError
from calm_lightning.language_model.config import LanguageModelConfig

_EMBEDDING, _LOGITS = "encoder.embed_tokens.weight", "decoder.lm_head_weight"
_FIRST_GATE = "encoder.encoder_layers.0.mlp.gate_proj.weight"
RUN_CONFIG, RUN_WEIGHTS = "config.yaml", "model.safetensors"
AUTOENCODER_DIR = "autoencoder"
"""A language model's autoencoder inside its directory, in exported checkpoints and in imported runs."""


@dataclass(frozen=True)
class AutoencoderParts:
    """An autoencoder that was read completely.

    Attributes:
        origin: Where it comes from, for messages.
        config: Its configuration.
        K: Tokens per chunk.
        l: Latent dimension.
        vocabulary: Vocabulary size V.
        weights: State dict of `ChunkAutoencoder`, in the stored dtypes.
        notes: What a user should know.
    """

    origin: str
    config: AutoencoderConfig
    K: int
    l: int
    vocabulary: int
    weights: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)


def read_autoencoder(directory: Path) -> AutoencoderParts:
    """Read an autoencoder from a released-format directory or a finished run of ours.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    if (directory / RUN_CONFIG).is_file():
        return _from_run(directory)
    config = read_config(directory)
    found = architecture(config, str(directory / CONFIG_FILE))
    if found != AUTOENCODER:
        raise CheckpointError(f"{directory} holds a model of architecture {found}, not an autoencoder")
    return released_autoencoder(directory, config)


def released_autoencoder(directory: Path, config: Mapping[str, Any]) -> AutoencoderParts:
    """Read the autoencoder of a released-format directory whose config.json is `config`.

    Raises:
        CheckpointError: It is damaged, incomplete, or holds what ours lacks.
    """
    shape, K, l, vocabulary = read_autoencoder_config(config, str(directory / CONFIG_FILE))
    weights = read_weights(directory)
    shape = replace(shape, tied=_is_tied(weights, ""))
    state, problems = to_ours(weights, autoencoder_layout(shape), autoencoder_shapes(shape, K, l, vocabulary))
    if problems:
        raise CheckpointError(f"the checkpoint {directory} cannot be imported: {'; '.join(problems)}")
    return AutoencoderParts(str(directory), shape, K, l, vocabulary, state, _tied_note(shape))


def _is_tied(weights: Mapping[str, Tensor], prefix: str) -> bool:
    """Return whether no logits matrix is stored, or one equal to the embedding."""
    logits, embedding = weights.get(prefix + _LOGITS), weights.get(prefix + _EMBEDDING)
    return logits is None or (embedding is not None and same(logits, embedding))


def _tied_note(shape: AutoencoderConfig) -> list[str]:
    return [] if shape.tied else [f"the autoencoder's logits matrix ({_LOGITS}) is its own, not the embedding"]


def read_embedded(
    weights: Mapping[str, Tensor], model: LanguageModelConfig, directory: Path
) -> tuple[AutoencoderParts | None, list[str]]:
    """Read the autoencoder inside a language model's checkpoint.

    Args:
        weights: The tensors below its prefix, prefix included.
        model: The language model's configuration: it decides K, l and V.
        directory: The checkpoint, beside which a released configuration of the same shape may lie.

    Returns:
        The autoencoder, and what is wrong with its tensors (then it is None).
    """
    essential = [EMBEDDED + name for name in (_EMBEDDING, _FIRST_GATE)]
    absent = [name for name in essential if name not in weights or weights[name].ndim != 2]
    if absent:
        return None, listing("it lacks (as a matrix)", absent)
    shape = AutoencoderConfig(
        d=weights[essential[0]].shape[1],
        intermediate=weights[essential[1]].shape[0],
        encoder_layers=_count_layers(weights, "encoder"),
        decoder_layers=_count_layers(weights, "decoder"),
        tied=_is_tied(weights, EMBEDDED),
    )
    l, vocabulary = model.latent_width(), model.vocabulary
    assert vocabulary is not None
    layout = autoencoder_layout(shape).below(EMBEDDED)
    state, problems = to_ours(weights, layout, autoencoder_shapes(shape, model.K, l, vocabulary))
    if problems:
        return None, problems
    shape, note = _settings_from_beside(directory, shape, model)
    notes = [note, *_tied_note(shape)]
    if EMBEDDED + _LOGITS not in weights:
        notes.append(f"no {EMBEDDED}{_LOGITS} is stored: the autoencoder's logits share its embedding")
    return AutoencoderParts(f"embedded in {directory}", shape, model.K, l, vocabulary, state, notes), []


def _count_layers(weights: Mapping[str, Tensor], side: str) -> int:
    """Return the number of layers of one side, even as it must be: what is then missing will be listed."""
    pattern = re.compile(re.escape(EMBEDDED) + rf"{side}\.{side}_layers\.(\d{{1,4}})\.")
    found = [int(match[1]) for name in weights if (match := pattern.match(name))]
    layers = min(max(found, default=0) + 1, 2 * len(weights))
    return layers + layers % 2


def _beside(directory: Path) -> list[Path]:
    """Return the places where the autoencoder of a checkpoint may lie: inside it, then next to it, by name."""
    try:
        siblings = sorted(path for path in directory.resolve().parent.iterdir() if path != directory.resolve())
    except OSError:
        siblings = []
    return [path for path in (directory / AUTOENCODER_DIR, *siblings) if (path / CONFIG_FILE).is_file()]


def _fitting(directory: Path, model: LanguageModelConfig) -> list[tuple[Path, AutoencoderConfig]]:
    """Return the released autoencoders beside a checkpoint whose K, l and V are the language model's."""
    fitting = []
    for place in _beside(directory):
        try:
            config = read_config(place)
            if architecture(config, str(place)) != AUTOENCODER:
                continue
            shape, K, l, vocabulary = read_autoencoder_config(config, str(place))
        except CheckpointError:
            continue  # a neighbour that is no usable autoencoder is no reason to refuse this checkpoint
        if (K, l, vocabulary) == (model.K, model.latent_width(), model.vocabulary):
            fitting.append((place, shape))
    return fitting


def _settings_from_beside(
    directory: Path, shape: AutoencoderConfig, model: LanguageModelConfig
) -> tuple[AutoencoderConfig, str]:
    """Return an inferred configuration with the settings no tensor tells, and a note on where they are from."""
    inferred = ("d", "intermediate", "encoder_layers", "decoder_layers")
    found = [
        (place, replace(config, tied=shape.tied))
        for place, config in _fitting(directory, model)
        if all(getattr(config, name) == getattr(shape, name) for name in inferred)
    ]
    if found and all(config == found[0][1] for _, config in found):
        return found[0][1], f"settings of the embedded autoencoder are those of {found[0][0]}"
    settings = {name: value for name, value in asdict(shape).items() if name not in (*inferred, "tied", "mask_id")}
    said = ", ".join(f"{name}={value:g}" for name, value in settings.items())
    return shape, f"the embedded autoencoder has no configuration of its own: released defaults are used ({said})"


def read_beside(directory: Path, model: LanguageModelConfig) -> AutoencoderParts:
    """Read the one autoencoder that lies inside or next to a checkpoint and fits it.

    Raises:
        CheckpointError: There is none, or more than one.
    """
    places = [place for place, _ in _fitting(directory, model)]
    inside = [place for place in places if place == directory / AUTOENCODER_DIR]
    places = inside or places
    shape = f"patch_size={model.K}, latent_size={model.latent_width()}, vocab_size={model.vocabulary}"
    if not places:
        raise CheckpointError(
            f"{directory} embeds no autoencoder and none with {shape} lies beside it: give its directory "
            f"(--autoencoder DIR; the released one is CALM-Autoencoder)"
        )
    if len(places) > 1:
        raise CheckpointError(
            f"several autoencoders beside {directory} have {shape}: choose one with --autoencoder: "
            f"{', '.join(map(str, places))}"
        )
    parts = read_autoencoder(places[0])
    return replace(parts, notes=[f"the autoencoder was found in {places[0]}", *parts.notes])


def _from_run(directory: Path) -> AutoencoderParts:
    """Read the autoencoder of a finished run; its config.yaml is resolved, so it says everything."""
    path = directory / RUN_CONFIG
    if not (directory / RUN_WEIGHTS).is_file():
        raise CheckpointError(f"{directory} has not finished training: run its command again to continue it")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        stage, model = config["stage"], config["model"]
        known = {part.name for part in fields(AutoencoderConfig)}
        shape = AutoencoderConfig(**{key: value for key, value in config["autoencoder"].items() if key in known})
        K, l, vocabulary = (int(model[key]) for key in ("K", "l", "vocabulary"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} is not the configuration of a finished run ({error!r})") from None
    if stage != "autoencoder":
        raise CheckpointError(f"{directory} is a run of stage {stage}, not of an autoencoder")
    try:
        weights = load_file(directory / RUN_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory / RUN_WEIGHTS} cannot be read: {error}") from None
    shapes = autoencoder_shapes(shape, K, l, vocabulary)
    wrong = [name for name in shapes.keys() | weights.keys() if tuple(_shape(weights, name)) != shapes.get(name, ())]
    if wrong:
        raise CheckpointError(f"{directory / RUN_WEIGHTS} does not fit {path}: {', '.join(sorted(wrong))}")
    return AutoencoderParts(str(directory), shape, K, l, vocabulary, weights)


def _shape(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return tuple(weights[name].shape) if name in weights else ()

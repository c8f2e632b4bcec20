"""Reads a checkpoint directory in the format of the authors' release: config.json and weights.

A language model needs the autoencoder whose latents it draws. Which one that is follows one order: the directory that
is given, the tensors embedded in the checkpoint (what the authors' code would run), a directory beside it. The path in
a released config.json is one on the authors' server and is not looked at.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.checkpoints.autoencoders import (
    AutoencoderParts,
    read_autoencoder,
    read_beside,
    read_embedded,
    released_autoencoder,
)
from calm_lightning.checkpoints.files import CONFIG_FILE, read_config, read_weights
from calm_lightning.checkpoints.keys import (
    AUTOENCODER,
    architecture,
    read_language_model_config,
    write_autoencoder_config,
    write_language_model_config,
)
from calm_lightning.checkpoints.names import EMBEDDED, Layout, baseline_layout, calm_layout
from calm_lightning.checkpoints.translate import language_model_shapes, same, to_ours, without_rotary
from calm_lightning.errors import CheckpointError
from calm_lightning.language_model.config import LanguageModelConfig


@dataclass(frozen=True)
class Released:
    """A checkpoint that was read and understood completely.

    Attributes:
        path: Its directory.
        stage: "calm", "baseline" or "autoencoder".
        model: Configuration of the language model; of an autoencoder's only K, l and vocabulary mean something.
        autoencoder: Configuration of the autoencoder, None for a baseline.
        vocabulary: Vocabulary size V.
        weights: State dict of the stage's model by our names, in the stored dtypes.
        autoencoder_weights: State dict of a language model's autoencoder, None for the other stages.
        autoencoder_source: Where that came from, "" for the other stages.
        config: Content of config.json.
        notes: What a user should know: assumptions made, where the autoencoder was found.
    """

    path: Path
    stage: str
    model: LanguageModelConfig
    autoencoder: AutoencoderConfig | None
    vocabulary: int
    weights: dict[str, Tensor]
    autoencoder_weights: dict[str, Tensor] | None
    autoencoder_source: str
    config: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @cached_property
    def identity(self) -> str:
        """SHA-256 over configuration, autoencoder, and every tensor's name, dtype, shape and bits."""
        if self.stage == "autoencoder":
            assert self.autoencoder is not None
            said = write_autoencoder_config(self.autoencoder, self.model.K, self.model.latent_width(), self.vocabulary)
        else:
            said = write_language_model_config(self.stage, self.model)
        codec = self.codec()
        digest = hashlib.sha256(json.dumps([said, codec.identity if codec else ""], sort_keys=True).encode())
        for name, tensor in sorted(self.weights.items()):
            digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def codec(self) -> Released | None:
        """Return a language model's autoencoder as a checkpoint of its own, None for the other stages."""
        if self.autoencoder_weights is None:
            return None
        shape = LanguageModelConfig(K=self.model.K, l=self.model.latent_width(), vocabulary=self.vocabulary)
        return replace(
            self,
            path=Path(self.autoencoder_source),
            stage="autoencoder",
            model=shape,
            weights=self.autoencoder_weights,
            autoencoder_weights=None,
            autoencoder_source="",
            config={},
            notes=[],
        )


def is_released(path: str | Path) -> bool:
    """Return whether a directory looks like a checkpoint in the released format."""
    return (Path(path) / CONFIG_FILE).is_file()


def read_released(path: str | Path, autoencoder: str | Path | None = None) -> Released:
    """Read a checkpoint directory.

    Args:
        path: Directory with config.json and weights.
        autoencoder: Directory of the autoencoder of a continuous language model, in the released format or a run
            directory of ours; None to use the embedded one, or one that lies beside the checkpoint.

    Raises:
        CheckpointError: The directory is no checkpoint, is damaged, holds what our models lack, or no autoencoder
            was found.
    """
    folder = Path(path)
    config = read_config(folder)
    if architecture(config, str(folder / CONFIG_FILE)) == AUTOENCODER:
        if autoencoder is not None:
            raise CheckpointError(f"{folder} is an autoencoder itself: it has no use for {autoencoder}")
        parts = released_autoencoder(folder, config)
        shape = LanguageModelConfig(K=parts.K, l=parts.l, vocabulary=parts.vocabulary)
        return Released(
            folder, "autoencoder", shape, parts.config, parts.vocabulary, parts.weights, None, "", config, parts.notes
        )
    stage, model = read_language_model_config(config, str(folder / CONFIG_FILE))
    weights, problems = without_rotary(read_weights(folder), model)
    if stage == "calm":
        return _read_calm(folder, config, model, weights, problems, autoencoder)
    if autoencoder is not None:
        raise CheckpointError(f"{folder} is a token baseline: it has no use for the autoencoder {autoencoder}")
    return _read_baseline(folder, config, model, weights, problems)


def _read_calm(
    folder: Path,
    config: dict[str, Any],
    model: LanguageModelConfig,
    weights: dict[str, Tensor],
    problems: list[str],
    autoencoder: str | Path | None,
) -> Released:
    """Read a continuous language model and settle which autoencoder is its own."""
    embedded = {name: tensor for name, tensor in weights.items() if name.startswith(EMBEDDED)}
    own = {name: tensor for name, tensor in weights.items() if name not in embedded}
    codec, notes = None, []
    if embedded:
        codec, found = read_embedded(embedded, model, folder)
        problems = problems + found
    state = _translate(folder, "calm", model, own, calm_layout(model), problems)
    if autoencoder is not None:
        codec = read_autoencoder(Path(autoencoder))
        if embedded:
            notes.append(f"the autoencoder embedded in the checkpoint is not used: {autoencoder} was given")
    if codec is None:
        codec = read_beside(folder, model)
    _check_fit(folder, model, codec)
    notes += codec.notes
    return Released(
        folder, "calm", model, codec.config, codec.vocabulary, state, codec.weights, codec.origin, config, notes
    )


def _read_baseline(
    folder: Path, config: dict[str, Any], model: LanguageModelConfig, weights: dict[str, Tensor], problems: list[str]
) -> Released:
    """Read a token language model."""
    weights, notes, found = _untie(weights, config)
    state = _translate(folder, "baseline", model, weights, baseline_layout(model), problems + found)
    assert model.vocabulary is not None
    return Released(folder, "baseline", model, None, model.vocabulary, state, None, "", config, notes)


def _translate(
    folder: Path,
    stage: str,
    model: LanguageModelConfig,
    weights: dict[str, Tensor],
    layout: Layout,
    problems: list[str],
) -> dict[str, Tensor]:
    """Return the state dict of a language model.

    Raises:
        CheckpointError: There are problems, those found before included.
    """
    state, found = to_ours(weights, layout, language_model_shapes(stage, model))
    if problems + found:
        raise CheckpointError(f"the checkpoint {folder} cannot be imported: {'; '.join(problems + found)}")
    return state


def _untie(weights: dict[str, Tensor], config: dict[str, Any]) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Give a baseline whose embeddings are tied an output matrix of its own; return weights, notes, problems."""
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    if config.get("tie_word_embeddings") is not True or embedding not in weights:
        return weights, [], []
    if head in weights and not same(weights[head], weights[embedding]):
        return weights, [], [f"tie_word_embeddings=true, but {head} differs from {embedding}"]
    note = "the output matrix is a copy of the embedding (tie_word_embeddings=true)"
    return {**weights, head: weights[embedding]}, [note], []


def _check_fit(folder: Path, model: LanguageModelConfig, codec: AutoencoderParts) -> None:
    """Raise if an autoencoder's latents are not those of a language model."""
    pairs = (
        ("patch_size", model.K, codec.K),
        ("latent_size", model.latent_width(), codec.l),
        ("vocab_size", model.vocabulary, codec.vocabulary),
    )
    differing = [f"{key} is {theirs} instead of {ours}" for key, ours, theirs in pairs if ours != theirs]
    if differing:
        raise CheckpointError(f"the autoencoder {codec.origin} does not fit {folder}: its {', its '.join(differing)}")

"""A trained model opened from disk, whatever made it: a run of ours, or a checkpoint in the released format.

Evaluation, generation, diagnosis and export all start here. Every network is on the CPU, in float32 and eval mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from calm_lightning.assembly import (
    CONFIG,
    RESULT,
    TOKENIZER,
    find_autoencoder,
    load_autoencoder,
    load_result,
    load_weights,
    own_autoencoder,
)
from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.checkpoints.released import Released, is_released, read_released
from calm_lightning.config import RunConfig, load_config
from calm_lightning.config.validation import validate
from calm_lightning.data.corpus import Corpus
from calm_lightning.data.tokenizers import Llama3Tokenizer, Tokenizer, make_tokenizer, open_tokenizer
from calm_lightning.errors import CheckpointError, ConfigError, DataError
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM

CONTEXT = 2048
"""Positions the released models are trained with: chunks for CALM, tokens for the Transformer."""
NO_TOKENIZER = "none"


@dataclass(frozen=True)
class OpenModel:
    """A trained model and what is needed to use it. Its networks are frozen.

    Attributes:
        path: Where it was found.
        stage: "autoencoder", "calm" or "baseline".
        config: Its resolved configuration.
        model: The network of the stage.
        autoencoder: The autoencoder a language model of stage "calm" draws latents of, else None.
        tokenizer: The tokenizer whose ids it knows, or None where that is not recorded.
        lineage: Identities of the model and of its autoencoder, as far as they are known.
    """

    path: Path
    stage: str
    config: RunConfig
    model: nn.Module
    autoencoder: ChunkAutoencoder | None
    tokenizer: Tokenizer | None
    lineage: dict[str, str]


def open_model(
    path: str | Path,
    *,
    autoencoder: str | None = None,
    sampling_steps: int | None = None,
    solver: str | None = None,
) -> OpenModel:
    """Open a run directory, or a directory in the released format.

    Args:
        path: The directory.
        autoencoder: Directory of the autoencoder to use instead of the model's own.
        sampling_steps: Steps of a flow or diffusion head's draws, instead of the trained configuration's.
        solver: Its solver, likewise.

    Raises:
        CheckpointError: There is no finished model, or it or its autoencoder is damaged or does not fit.
        ConfigError: The model's head has no such steps or solver.
    """
    changes = {"sampling_steps": sampling_steps, "solver": solver}
    drawing = {name: value for name, value in changes.items() if value is not None}
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a directory: name a run directory or a released checkpoint's directory")
    if (folder / RESULT).is_file():
        return _open_run(folder, autoencoder, drawing)
    if is_released(folder):
        return _open_released(folder, autoencoder, drawing)
    if (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} has not finished training: run its command again to continue it")
    raise CheckpointError(f"{folder} holds neither a run ({RESULT}) nor a released checkpoint (config.json, weights)")


def _drawn_otherwise(config: RunConfig, drawing: Mapping[str, Any]) -> RunConfig:
    """Return the configuration with other sampling steps or another solver."""
    if drawing and config.stage != "calm":
        raise ConfigError(
            f"sampling steps and solver are those of a flow or diffusion head, not of stage {config.stage}"
        )
    config = replace(config, model=replace(config.model, **drawing))
    validate(config)
    return config


def _open_run(folder: Path, autoencoder: str | None, drawing: Mapping[str, Any]) -> OpenModel:
    result = load_result(folder)
    config = _drawn_otherwise(load_config([str(folder / CONFIG)]), drawing)
    lineage = {"model": result["identity"]}
    network = _network(config)
    load_weights(network, folder)
    codec = None
    if config.stage == "calm":
        found = find_autoencoder(autoencoder or str(own_autoencoder(folder, config)))
        theirs, ours = found.config.model, config.model
        if (theirs.K, theirs.latent_width(), theirs.vocabulary) != (ours.K, ours.latent_width(), ours.vocabulary):
            raise CheckpointError(
                f"the autoencoder {found.run_dir} has K={theirs.K}, l={theirs.latent_width()}, "
                f"V={theirs.vocabulary}; {folder} needs K={ours.K}, l={ours.latent_width()}, V={ours.vocabulary}"
            )
        codec = load_autoencoder(found).eval().requires_grad_(False)
        config = replace(config, autoencoder=found.config.autoencoder)
        lineage["autoencoder"] = found.identity
    return OpenModel(
        folder, config.stage, config, network.eval().requires_grad_(False), codec, _tokenizer(folder, config), lineage
    )


def _tokenizer(folder: Path, config: RunConfig) -> Tokenizer | None:
    """Return the tokenizer kept with a run, or that of its corpus (runs made before it was kept)."""
    if (folder / TOKENIZER).is_dir():
        return open_tokenizer(folder / TOKENIZER)
    if not config.data.corpus:
        return None
    try:
        return Corpus(config.data).tokenizer
    except DataError:
        return None


def _open_released(folder: Path, autoencoder: str | None, drawing: Mapping[str, Any]) -> OpenModel:
    released = read_released(folder, autoencoder)
    config = _drawn_otherwise(run_config(released), drawing)
    lineage = {"model": released.identity}
    network = _network(config)
    network.load_state_dict(released.weights)
    codec = None
    theirs = released.codec()
    if theirs is not None:
        codec = _autoencoder(config)
        codec.load_state_dict(theirs.weights)
        codec.eval().requires_grad_(False)
        lineage["autoencoder"] = theirs.identity
    tokenizer, _ = tokenizer_of(None, released.vocabulary, folder)
    network.eval().requires_grad_(False)
    return OpenModel(folder, config.stage, config, network, codec, tokenizer, lineage)


def run_config(released: Released) -> RunConfig:
    """Return the configuration that a released checkpoint amounts to, with the context it was trained with."""
    K = 1 if released.stage == "baseline" else released.model.K
    config = RunConfig(stage=released.stage, model=replace(released.model, l=released.model.latent_width()))
    T = CONTEXT * K
    return replace(
        config,
        autoencoder=released.autoencoder or config.autoencoder,
        data=replace(config.data, block_tokens=T, batch_tokens=T, eval_batch_tokens=T),
        evaluation=replace(config.evaluation, start_stride=math.lcm(config.evaluation.start_stride, K)),
        trainer={**config.trainer, "precision": "32-true"},
    )


def _network(config: RunConfig) -> nn.Module:
    """Return the network that a configuration describes, not yet filled.

    Raises:
        CheckpointError: The configuration was not resolved.
    """
    V = config.model.vocabulary
    if V is None:
        raise CheckpointError(f"the {CONFIG} of this run is not that of a finished one: put the original file back")
    if config.stage == "autoencoder":
        return _autoencoder(config)
    return TokenLM(config.model, V) if config.stage == "baseline" else ContinuousLM(config.model, V)


def _autoencoder(config: RunConfig) -> ChunkAutoencoder:
    assert config.model.vocabulary is not None
    return ChunkAutoencoder(config.autoencoder, config.model.K, config.model.latent_width(), config.model.vocabulary)


def tokenizer_of(spec: str | None, vocabulary: int, path: Path) -> tuple[Tokenizer | None, list[str]]:
    """Return the tokenizer of a released model, and what to say where there is none.

    Args:
        spec: As `make_tokenizer` takes it, or "none"; None means Llama 3's for its vocabulary, if it can be found.
        vocabulary: The model's vocabulary size V.
        path: Directory of the checkpoint.

    Raises:
        DataError: A spec was given that cannot be used.
    """
    later = "import again with --tokenizer to score or generate text"
    if spec == NO_TOKENIZER:
        return None, [f"no tokenizer: {later}"]
    if spec is None:
        if vocabulary != Llama3Tokenizer.vocabulary:
            beside = path / "tokenizer.json"
            hint = f" (for example --tokenizer file:{beside})" if beside.is_file() else ""
            return None, [f"no tokenizer is known for a vocabulary of {vocabulary:,}: {later}{hint}"]
        try:
            return make_tokenizer("llama3", ()), ["tokenizer: Llama 3, known by the vocabulary of 128,257"]
        except DataError as error:
            return None, [f"no tokenizer: {error}; then {later}"]
    if spec.startswith("bpe:"):
        raise DataError(f"--tokenizer {spec} would train a new one: give the tokenizer the model was trained with")
    tokenizer = make_tokenizer(spec, ())
    if tokenizer.vocabulary > vocabulary:
        raise DataError(
            f"tokenizer {spec} has {tokenizer.vocabulary:,} ids and the model a vocabulary of {vocabulary:,}: "
            f"give the tokenizer it was trained with"
        )
    return tokenizer, []

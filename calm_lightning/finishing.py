"""What a run leaves behind once it is trained: tokenizer, weights, a text sample, and last the result."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from calm_lightning.assembly import RESULT, SAMPLE, TOKENIZER, WEIGHTS
from calm_lightning.checkpoints.files import save_tensors
from calm_lightning.config import RunConfig
from calm_lightning.data.datamodule import PileDataModule
from calm_lightning.data.texts import CorpusSplit
from calm_lightning.data.tokenizers import save_tokenizer
from calm_lightning.language_model.heads.registry import sampling_in_words
from calm_lightning.metrics import names
from calm_lightning.metrics.protocol import ALIGNED, Protocol
from calm_lightning.stages.base import Stage
from calm_lightning.stages.scoring import ScoredStage
from calm_lightning.tracking.journal import by_step, read_journal
from calm_lightning.tracking.provenance import commit

PROMPT_SHOWN = 48
"""Tokens of the prompt that a text sample shows."""


def write_finished(
    config: RunConfig, data: PileDataModule, stage: Stage, run_dir: Path, identities: dict[str, str], name: str
) -> None:
    """Write tokenizer, trained weights, text sample, and last of all the result that marks the run as finished."""
    save_tokenizer(data.tokenizer, run_dir / TOKENIZER)
    _save_weights(stage.model.state_dict(), run_dir / WEIGHTS)
    if isinstance(stage, ScoredStage) and config.evaluation.text_tokens:
        write_text(run_dir / SAMPLE, _sample_text(config, data, stage))
    steps = by_step(read_journal(run_dir))
    last = max(step for step, values in steps.items() if names.TRAIN_FLOPS in values)
    metrics = {key: value for key, value in steps[last].items() if not key.startswith("train/")}
    result = {
        "identity": identities["model"],
        "name": name,
        "stage": config.stage,
        "metrics": metrics,
        "protocol": _protocol(config, identities, metrics, stage.device.type),
        "train_flops": metrics[names.TRAIN_FLOPS_TOTAL],
        "replaced_blocks": data.replaced,
        "mlflow_run_id": None,
    }
    write_text(run_dir / RESULT, json.dumps(result, indent=2))


def _save_weights(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write weights atomically.

    Raises:
        CheckpointError: The file cannot be written, for example because the disk is full.
    """
    scratch = path.with_name(path.name + ".tmp")
    try:
        save_tensors(scratch, weights)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _protocol(
    config: RunConfig, identities: dict[str, str], metrics: dict[str, float], device: str
) -> dict[str, object]:
    """Return how the run was scored: a score without this is not comparable."""
    text = CorpusSplit(config.data, config.data.eval_split, commands=True)
    language_model = config.stage != "autoencoder"
    T, blocks = config.data.block_tokens, text.block_numbers(config.data.block_tokens, config.data.eval_max_blocks)
    return Protocol(
        name=ALIGNED,
        block_tokens=T,
        start_stride=config.evaluation.start_stride if language_model else None,
        samples=config.evaluation.samples if language_model else 1,
        corpus=text.sha256,
        split=text.split,
        blocks=len(blocks),
        max_blocks=config.data.eval_max_blocks,
        documents=int(metrics.get(names.SCORED_DOCUMENTS, 0)),
        tokens=T * len(blocks),
        left_out_tokens=text.tokens - T * len(blocks),
        tokenizer=text.tokenizer,
        precision=str(config.trainer["precision"]),
        seed=config.seed,
        commit=commit(),
        batch_tokens=config.data.eval_batch_tokens,
        device=device,
        model={name: value for name, value in identities.items() if name != "corpus"},
        sampler=sampling_in_words(config.model) if config.stage == "calm" else "",
    ).to_dict()


def _sample_text(config: RunConfig, data: PileDataModule, stage: ScoredStage) -> str:
    """Return a prompt from the evaluation split and its continuation, as text."""
    batch = next(iter(data.val_dataloader()))
    prompt_T = batch.tokens[0, : config.data.block_tokens // 4 // config.model.K * config.model.K]
    torch.manual_seed(config.seed)
    stage.eval()
    assert batch.documents is not None
    documents_T = batch.documents[0, : len(prompt_T)].to(stage.device)
    length = min(config.evaluation.text_tokens, config.data.block_tokens)
    temperature = config.evaluation.text_temperature
    generated_T = stage.generate(prompt_T.to(stage.device), length, temperature, documents_T)
    return (
        f"temperature {temperature}\n"
        f"--- prompt\n{data.tokenizer.decode(prompt_T[-PROMPT_SHOWN:].tolist())}\n"
        f"--- continuation\n{data.tokenizer.decode(generated_T.tolist())}\n"
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    scratch = path.with_name(path.name + ".tmp")
    try:
        scratch.write_text(text)
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # a full disk is noticed on a descriptor, which has no name
        raise

"""The composition root: RunConfig -> data + stage + trainer -> RunResult.

A run is named by its identity (what changes its numbers). Executing the same configuration again finds the same run
directory and continues it, or returns at once if it has finished. A run directory holds config.yaml, metrics.jsonl
(every logged number), checkpoints/, and once finished tokenizer/, model.safetensors, sample.txt and result.json.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from calm_lightning.assembly import (
    CHECKPOINT,
    CONFIG,
    RESULT,
    SAMPLE,
    TOKENIZER,
    WEIGHTS,
    FinishedAutoencoder,
    build_ledger,
    build_stage,
    build_trainer,
    default_name,
    lightning_interrupts,
    load_result,
    resolve,
)
from calm_lightning.checkpoints.files import save_tensors
from calm_lightning.config import RunConfig, identity, to_yaml
from calm_lightning.config.validation import validate
from calm_lightning.data.datamodule import PileDataModule
from calm_lightning.data.texts import CorpusSplit
from calm_lightning.data.tokenizers import save_tokenizer
from calm_lightning.errors import BusyError, CheckpointError
from calm_lightning.language_model.heads.registry import sampling_in_words
from calm_lightning.metrics import names
from calm_lightning.metrics.names import ScorePoint
from calm_lightning.metrics.protocol import ALIGNED, Protocol
from calm_lightning.stages.allocator import keep_freed_memory
from calm_lightning.stages.base import Stage
from calm_lightning.stages.scoring import ScoredStage
from calm_lightning.stages.watch import RunStopped, Watch
from calm_lightning.tracking.journal import MetricsJournal, by_step, read_journal
from calm_lightning.tracking.provenance import commit

if TYPE_CHECKING:
    from calm_lightning.tracking.mlflow import MlflowTracker

PROMPT_SHOWN = 48
"""Tokens of the prompt that a text sample shows."""


@dataclass(frozen=True)
class RunResult:
    """What a finished run left behind.

    Attributes:
        run_dir: The run directory.
        identity: SHA-256 of everything that changes the run's numbers.
        name: Readable name.
        stage: "autoencoder", "calm" or "baseline".
        points: Every evaluation of a language model, the untrained one first; empty for autoencoders.
        metrics: All values of the last evaluation, by name.
        train_flops: Training FLOPs, the autoencoder's share included.
        text: The generated sample; empty for autoencoders.
        mlflow_run_id: Where MLflow has it, if it does.
        reused: Whether it had finished before, so that nothing was trained now.
    """

    run_dir: Path
    identity: str
    name: str
    stage: str
    points: tuple[ScorePoint, ...]
    metrics: dict[str, float]
    train_flops: float
    text: str
    mlflow_run_id: str | None
    reused: bool


@dataclass(frozen=True)
class RunPlace:
    """What a configuration stands for, before anything is trained or written.

    Attributes:
        config: The configuration, with what corpus, hardware and autoencoder decide filled in.
        identity: SHA-256 of everything that changes the run's numbers.
        name: Readable name.
        run_dir: The run directory, whether it exists or not.
        lineage: Hashes of corpus and autoencoder.
        data: The data module.
        autoencoder: The autoencoder that it uses, None for other stages.
    """

    config: RunConfig
    identity: str
    name: str
    run_dir: Path
    lineage: dict[str, str]
    data: PileDataModule
    autoencoder: FinishedAutoencoder | None

    @property
    def finished(self) -> bool:
        """Whether the run has been trained to its end."""
        return (self.run_dir / RESULT).is_file()


def locate(config: RunConfig) -> RunPlace:
    """Return a run's identity and where it is or will be; nothing is trained or written.

    Raises:
        CalmError: The corpus or the autoencoder is missing, or does not fit the model.
    """
    apart = config.stage != "autoencoder" and not config.model.cross_document_attention
    data = PileDataModule(config.data, config.seed, documents=apart)
    config, found = resolve(config, data)
    lineage = {"corpus": data.corpus.hash} | ({"autoencoder": found.identity} if found else {})
    run_identity = identity(config, **lineage)
    name = config.name or default_name(config)
    run_dir = Path(config.work_dir) / config.stage / f"{name}-{run_identity[:10]}"
    return RunPlace(config, run_identity, name, run_dir, lineage, data, found)


def execute(
    config: RunConfig,
    *,
    parent_run_id: str | None = None,
    tags: dict[str, str] | None = None,
    progress: bool = True,
    watch: Watch | None = None,
) -> RunResult:
    """Train and score one run, continue it, or return its result if it has finished.

    Args:
        config: The configuration; `resolve` fills in what corpus, hardware and autoencoder decide.
        parent_run_id: MLflow run that this one is a child of.
        tags: Further MLflow tags.
        progress: Whether to show a progress bar.
        watch: Is told of evaluations and may stop the run between steps.

    Raises:
        CalmError: Whatever the user can mend, in one sentence.
        RunStopped: The watcher stopped it; executing it again continues.
        KeyboardInterrupt: The user stopped it; executing it again continues.
    """
    validate(config)
    keep_freed_memory()
    place = locate(config)
    config, data, found, run_dir = place.config, place.data, place.autoencoder, place.run_dir
    run_identity, name, lineage = place.identity, place.name, place.lineage
    run_dir.mkdir(parents=True, exist_ok=True)
    with _only_process(run_dir):
        if (run_dir / RESULT).is_file():
            load_result(run_dir)
        _write(run_dir / CONFIG, to_yaml(config))
        tracker = _track(config, run_dir, run_identity, name, parent_run_id, tags or {}, lineage, found)
        reused = (run_dir / RESULT).is_file()
        try:
            if not reused:
                stage = _train(config, data, found, run_dir, progress, watch)
                _finish(config, data, stage, run_dir, {"model": run_identity} | lineage, name)
        except BaseException as error:
            if tracker:
                stopped = isinstance(error, (KeyboardInterrupt, RunStopped))
                run_id = tracker.finish("KILLED" if stopped else "FAILED")
                if isinstance(error, RunStopped):
                    error.mlflow_run_id = run_id
            raise
        if tracker:
            run_id = tracker.finish("FINISHED", [run_dir / part for part in (CONFIG, RESULT, SAMPLE)])
            result = load_result(run_dir)
            if run_id and result["mlflow_run_id"] != run_id:
                _write(run_dir / RESULT, json.dumps({**result, "mlflow_run_id": run_id}, indent=2))
    return read_result(run_dir, reused=reused)


def read_result(run_dir: Path, *, reused: bool = True) -> RunResult:
    """Read a finished run from its directory.

    Raises:
        CheckpointError: The run has not finished.
    """
    if not (run_dir / RESULT).is_file():
        raise CheckpointError(f"{run_dir} holds no finished run: run its command again to continue it")
    result = load_result(run_dir)
    sample = run_dir / SAMPLE
    return RunResult(
        run_dir=run_dir,
        identity=result["identity"],
        name=result["name"],
        stage=result["stage"],
        points=read_points(run_dir),
        metrics=result["metrics"],
        train_flops=result["train_flops"],
        text=sample.read_text() if sample.is_file() else "",
        mlflow_run_id=result["mlflow_run_id"],
        reused=reused,
    )


def read_points(run_dir: Path) -> tuple[ScorePoint, ...]:
    """Return every evaluation of a language model's run so far, by rising step.

    Raises:
        TrackingError: The journal is damaged.
    """
    steps = by_step(read_journal(run_dir))
    points = (ScorePoint.from_metrics(step, dict(values)) for step, values in steps.items())
    return tuple(point for point in points if point is not None)


def _train(
    config: RunConfig,
    data: PileDataModule,
    found: FinishedAutoencoder | None,
    run_dir: Path,
    progress: bool,
    watch: Watch | None,
) -> Stage:
    """Train to the last step, from a checkpoint if there is one, evaluating before the first and after the last."""
    stage = build_stage(config, found)
    ledger = build_ledger(config, found)
    journal = MetricsJournal(run_dir)
    checkpoint = run_dir / CHECKPOINT
    trainer = build_trainer(config, ledger, journal, checkpoint, progress, watch)
    resume = checkpoint.is_file()
    with lightning_interrupts(trainer):
        journal.rewind(trainer.strategy.checkpoint_io.load_checkpoint(checkpoint)["global_step"] if resume else -1)
        if not resume:
            trainer.validate(stage, datamodule=data, verbose=False)
        trainer.fit(stage, datamodule=data, ckpt_path=checkpoint if resume else None, weights_only=True)
        if names.TRAIN_FLOPS not in by_step(read_journal(run_dir)).get(trainer.global_step, {}):
            trainer.validate(stage, datamodule=data, verbose=False)
    return stage


def _finish(
    config: RunConfig, data: PileDataModule, stage: Stage, run_dir: Path, identities: dict[str, str], name: str
) -> None:
    """Write tokenizer, trained weights, text sample, and last of all the result that marks the run as finished."""
    save_tokenizer(data.tokenizer, run_dir / TOKENIZER)
    _save_weights(stage.model.state_dict(), run_dir / WEIGHTS)
    if isinstance(stage, ScoredStage) and config.evaluation.text_tokens:
        _write(run_dir / SAMPLE, _sample_text(config, data, stage))
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
    _write(run_dir / RESULT, json.dumps(result, indent=2))


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


def _track(
    config: RunConfig,
    run_dir: Path,
    run_identity: str,
    name: str,
    parent_run_id: str | None,
    tags: dict[str, str],
    lineage: dict[str, str],
    found: FinishedAutoencoder | None,
) -> MlflowTracker | None:
    """Start MLflow tracking, if it is asked for."""
    if not config.tracking.mlflow:
        return None
    from calm_lightning.tracking.mlflow import MlflowTracker, run_tags

    resolved = asdict(config)
    own_tags = run_tags(
        resolved,
        run_dir=run_dir,
        corpus=lineage["corpus"],
        autoencoder_identity=found.identity if found else "",
        autoencoder_run_id=(found.mlflow_run_id or "") if found else "",
    )
    return MlflowTracker(
        config.tracking,
        config.work_dir,
        run_dir,
        identity=run_identity,
        name=name,
        params=resolved,
        tags=own_tags | tags,
        parent_run_id=parent_run_id,
    ).start()


@contextmanager
def _only_process(run_dir: Path) -> Iterator[None]:
    """Hold the run directory against a second process that would train the same run."""
    with (run_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BusyError(f"another process is training {run_dir}: wait for it to finish, or stop it") from None
        yield


def _write(path: Path, text: str) -> None:
    """Write a text file atomically."""
    scratch = path.with_name(path.name + ".tmp")
    try:
        scratch.write_text(text)
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # a full disk is noticed on a descriptor, which has no name
        raise

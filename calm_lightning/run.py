"""The composition root: RunConfig -> data + stage + trainer -> RunResult.

A run is named by its identity (what changes its numbers). Executing the same configuration again finds the same run
directory and continues it, or returns at once if it has finished. A run directory holds config.yaml, metrics.jsonl
(every logged number), checkpoints/, and once finished model.safetensors, sample.txt and result.json.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.config import RunConfig, identity, load_config, to_yaml, validate
from calm_lightning.data.datamodule import PileDataModule
from calm_lightning.errors import CalmError, CheckpointError, ConfigError
from calm_lightning.flops.count import for_stage
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.metrics.names import ScorePoint
from calm_lightning.stages.allocator import keep_freed_memory
from calm_lightning.stages.autoencoder import AutoencoderStage
from calm_lightning.stages.base import Stage
from calm_lightning.stages.baseline import BaselineStage
from calm_lightning.stages.calm import CalmStage
from calm_lightning.stages.callbacks import AtomicCheckpointIO, CostLedger, ResumeCheckpoint, StreamPlace
from calm_lightning.stages.scoring import ScoredStage
from calm_lightning.tracking.journal import MetricsJournal, by_step, read_journal

if TYPE_CHECKING:
    from calm_lightning.tracking.mlflow import MlflowTracker

RESULT, CONFIG, WEIGHTS, SAMPLE, CHECKPOINT = (
    "result.json",
    "config.yaml",
    "model.safetensors",
    "sample.txt",
    "checkpoints/last.ckpt",
)


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
class FinishedAutoencoder:
    """A trained autoencoder found in a run directory."""

    run_dir: Path
    config: RunConfig
    identity: str
    train_flops: float
    mlflow_run_id: str | None


def resolve_precision(precision: object) -> object:
    """Return a Lightning precision; "auto" becomes bf16-mixed where the hardware multiplies bf16, else 32-true."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    return "bf16-mixed" if torch.backends.cpu.get_cpu_capability() == "AVX512" and _has_bf16() else "32-true"


def _has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def default_name(config: RunConfig) -> str:
    """Return a name a person can read, for example calm-K4-l128-N8-d256-s0."""
    model = config.model
    parts = {
        "autoencoder": f"autoencoder-K{model.K}-l{model.latent_width()}-d{config.autoencoder.d}",
        "calm": f"calm-K{model.K}-l{model.latent_width()}-N{model.N}-d{model.d}",
        "baseline": f"baseline-d{model.d}",
    }
    return f"{parts[config.stage]}-s{config.seed}"


def find_autoencoder(run_dir: str) -> FinishedAutoencoder:
    """Open a finished autoencoder run.

    Raises:
        CheckpointError: There is none at `run_dir`, or it has not finished.
    """
    folder = Path(run_dir)
    if not (folder / RESULT).is_file():
        state = "has not finished training" if (folder / CONFIG).is_file() else "holds no run"
        raise CheckpointError(
            f"autoencoder_run={run_dir} {state}: run `calm train autoencoder ...` to its end and pass its run directory"
        )
    result = json.loads((folder / RESULT).read_text())
    if result["stage"] != "autoencoder":
        raise CheckpointError(f"autoencoder_run={run_dir} is a run of stage {result['stage']}, not of an autoencoder")
    config = load_config([str(folder / CONFIG)])
    return FinishedAutoencoder(folder, config, result["identity"], result["train_flops"], result["mlflow_run_id"])


def resolve(config: RunConfig, data: PileDataModule) -> tuple[RunConfig, FinishedAutoencoder | None]:
    """Fill in what the corpus, the hardware and the autoencoder decide, and check that they fit.

    Raises:
        ConfigError: The autoencoder or the vocabulary does not fit the model.
        CheckpointError: The autoencoder cannot be found.
    """
    vocabulary = config.model.vocabulary or data.vocabulary
    if vocabulary < data.vocabulary:
        raise ConfigError(
            f"model.vocabulary={vocabulary} is smaller than the {data.vocabulary} tokens of the corpus {config.data.corpus}"
        )
    model = replace(config.model, vocabulary=vocabulary, l=config.model.latent_width())
    trainer = {**config.trainer, "precision": resolve_precision(config.trainer.get("precision", "auto"))}
    config = replace(config, model=model, trainer=trainer)
    if config.stage != "calm":
        return config, None
    if not config.autoencoder_run:
        raise ConfigError(
            "autoencoder_run is empty: train one with `calm train autoencoder ...` and pass autoencoder_run=RUN_DIRECTORY"
        )
    found = find_autoencoder(config.autoencoder_run)
    theirs = found.config.model
    for key, ours, other in (("K", model.K, theirs.K), ("l", model.l, theirs.l)):
        if ours != other:
            raise ConfigError(
                f"model.{key}={ours} but the autoencoder {found.run_dir} has {key}={other}: "
                f"set model.{key}={other} or pass another autoencoder_run"
            )
    if vocabulary != theirs.vocabulary:
        raise ConfigError(
            f"the model's vocabulary of {vocabulary} differs from the {theirs.vocabulary} of the autoencoder "
            f"{found.run_dir}: use the corpus it was trained on, or train an autoencoder on this one"
        )
    config = replace(config, autoencoder=found.config.autoencoder)
    return config, found


def build_stage(config: RunConfig, found: FinishedAutoencoder | None) -> Stage:
    """Return the stage with freshly initialised weights, a function of config and seed."""
    model, vocabulary = config.model, config.model.vocabulary
    assert vocabulary is not None
    torch.manual_seed(config.seed)
    if config.stage == "autoencoder":
        network = ChunkAutoencoder(config.autoencoder, model.K, model.latent_width(), vocabulary)
        return AutoencoderStage(network, config.optim, config.evaluation)
    if config.stage == "baseline":
        return BaselineStage(TokenLM(model, vocabulary), config.optim, config.evaluation)
    assert found is not None
    language_model = ContinuousLM(model, vocabulary)
    return CalmStage(language_model, load_autoencoder(found), config.optim, config.evaluation)


def load_autoencoder(found: FinishedAutoencoder) -> ChunkAutoencoder:
    """Return a finished run's autoencoder.

    Raises:
        CheckpointError: Its weights are missing, damaged, or of another shape.
    """
    model = found.config.model
    assert model.vocabulary is not None
    network = ChunkAutoencoder(found.config.autoencoder, model.K, model.latent_width(), model.vocabulary)
    path = found.run_dir / WEIGHTS
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be used: {str(error).splitlines()[0]}") from error
    return network


def execute(
    config: RunConfig,
    *,
    parent_run_id: str | None = None,
    tags: dict[str, str] | None = None,
    progress: bool = True,
) -> RunResult:
    """Train and score one run, continue it, or return its result if it has finished.

    Args:
        config: The configuration; `resolve` fills in what corpus, hardware and autoencoder decide.
        parent_run_id: MLflow run that this one is a child of.
        tags: Further MLflow tags.
        progress: Whether to show a progress bar.

    Raises:
        CalmError: Whatever the user can mend, in one sentence.
        KeyboardInterrupt: The user stopped it; executing it again continues.
    """
    validate(config)
    keep_freed_memory()
    data = PileDataModule(config.data, config.seed)
    config, found = resolve(config, data)
    lineage = {"corpus": data.manifest.corpus_hash} | ({"autoencoder": found.identity} if found else {})
    run_identity = identity(config, **lineage)
    name = config.name or default_name(config)
    run_dir = Path(config.work_dir) / config.stage / f"{name}-{run_identity[:10]}"
    run_dir.mkdir(parents=True, exist_ok=True)
    with _only_process(run_dir):
        _write(run_dir / CONFIG, to_yaml(config))
        tracker = _track(config, run_dir, run_identity, name, parent_run_id, tags or {}, lineage, found)
        reused = (run_dir / RESULT).is_file()
        try:
            if not reused:
                stage = _train(config, data, found, run_dir, progress)
                _finish(config, data, stage, run_dir, run_identity, name)
        except BaseException as error:
            if tracker:
                tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        if tracker:
            run_id = tracker.finish("FINISHED", [run_dir / part for part in (CONFIG, RESULT, SAMPLE)])
            result = json.loads((run_dir / RESULT).read_text())
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
    result = json.loads((run_dir / RESULT).read_text())
    steps = by_step(read_journal(run_dir))
    points = [ScorePoint.from_metrics(step, dict(values)) for step, values in sorted(steps.items())]
    sample = run_dir / SAMPLE
    return RunResult(
        run_dir=run_dir,
        identity=result["identity"],
        name=result["name"],
        stage=result["stage"],
        points=tuple(point for point in points if point is not None),
        metrics=result["metrics"],
        train_flops=result["train_flops"],
        text=sample.read_text() if sample.is_file() else "",
        mlflow_run_id=result["mlflow_run_id"],
        reused=reused,
    )


def _train(
    config: RunConfig, data: PileDataModule, found: FinishedAutoencoder | None, run_dir: Path, progress: bool
) -> Stage:
    """Train to the last step, from a checkpoint if there is one, with an evaluation before the first and after the last."""
    stage = build_stage(config, found)
    ledger = CostLedger(
        for_stage(config.stage, config.model, config.autoencoder, config.model.vocabulary or 0, config.data.block_tokens),
        found.train_flops if found else 0.0,
    )
    journal = MetricsJournal(run_dir)
    checkpoint = run_dir / CHECKPOINT
    trainer = _trainer(config, ledger, journal, checkpoint, progress)
    resume = checkpoint.is_file()
    with _lightning_interrupts(trainer):
        journal.rewind(trainer.strategy.checkpoint_io.load_checkpoint(checkpoint)["global_step"] if resume else -1)
        if not resume:
            trainer.validate(stage, datamodule=data, verbose=False)
        trainer.fit(stage, datamodule=data, ckpt_path=checkpoint if resume else None, weights_only=True)
        every = config.evaluation.every_steps
        if not every or config.trainer["max_steps"] % every:
            trainer.validate(stage, datamodule=data, verbose=False)
    return stage


def _trainer(
    config: RunConfig, ledger: CostLedger, journal: MetricsJournal, checkpoint: Path, progress: bool
) -> pl.Trainer:
    """Return a Lightning trainer; `trainer.*` of the configuration wins over everything set here."""
    every = config.evaluation.every_steps
    max_steps = config.trainer["max_steps"]
    accumulate = config.trainer.get("accumulate_grad_batches", 1)
    callbacks: list[pl.Callback] = []
    if config.optim.ema_decay > 0:
        from lightning.pytorch.callbacks import EMAWeightAveraging

        callbacks.append(EMAWeightAveraging(decay=config.optim.ema_decay))
    callbacks += [StreamPlace(config.seed), ledger, ResumeCheckpoint(checkpoint, config.checkpoint_steps, every)]
    if progress:
        from lightning.pytorch.callbacks import RichProgressBar

        callbacks.append(RichProgressBar())
    settings: dict[str, Any] = {
        "accelerator": "auto",
        "devices": 1,
        "logger": journal,
        "callbacks": callbacks,
        "plugins": [AtomicCheckpointIO()],
        "max_epochs": -1,
        "val_check_interval": every * accumulate if every and every <= max_steps else max_steps * accumulate + 1,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": progress,
        "log_every_n_steps": max(1, min(50, max_steps // 20)),
        "use_distributed_sampler": False,
        **config.trainer,
    }
    _quiet_lightning()
    try:
        return pl.Trainer(**settings)
    except TypeError as error:
        raise ConfigError(f"trainer: lightning.Trainer does not take this: {error}") from None
    except (ValueError, RuntimeError, pl.utilities.exceptions.MisconfigurationException) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from None


def _finish(
    config: RunConfig, data: PileDataModule, stage: Stage, run_dir: Path, run_identity: str, name: str
) -> None:
    """Write the trained weights, the text sample, and last of all the result that marks the run as finished."""
    weights = {key: tensor.contiguous() for key, tensor in stage.model.state_dict().items()}  # type: ignore[union-attr, operator]
    scratch = run_dir / (WEIGHTS + ".tmp")
    save_file(weights, scratch)
    os.replace(scratch, run_dir / WEIGHTS)
    if isinstance(stage, ScoredStage) and config.evaluation.text_tokens:
        _write(run_dir / SAMPLE, _sample_text(config, data, stage))
    steps = by_step(read_journal(run_dir))
    last = max(step for step, values in steps.items() if any(key.startswith("cost/") for key in values))
    metrics = {key: value for key, value in steps[last].items() if not key.startswith("train/")}
    result = {
        "identity": run_identity,
        "name": name,
        "stage": config.stage,
        "metrics": metrics,
        "train_flops": metrics["cost/train_flops_with_autoencoder"],
        "mlflow_run_id": None,
    }
    _write(run_dir / RESULT, json.dumps(result, indent=2))


def _sample_text(config: RunConfig, data: PileDataModule, stage: ScoredStage) -> str:
    """Return a prompt from the evaluation split and its continuation, as text."""
    batch = next(iter(data.val_dataloader()))
    prompt_T = batch.tokens[0, : config.data.block_tokens // 4 // config.model.K * config.model.K]
    torch.manual_seed(config.seed)
    stage.eval()
    length = min(config.evaluation.text_tokens, config.data.block_tokens)
    generated_T = stage.generate(prompt_T.to(stage.device), length, config.evaluation.text_temperature)
    return (
        f"temperature {config.evaluation.text_temperature}\n--- prompt\n{data.tokenizer.decode(prompt_T[-48:].tolist())}\n"
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
    import fcntl

    with (run_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CalmError(f"another process is training {run_dir}: wait for it to finish, or stop it") from None
        yield


@contextmanager
def _lightning_interrupts(trainer: pl.Trainer) -> Iterator[None]:
    """Turn Lightning's exit on Ctrl-C back into the KeyboardInterrupt that it was."""
    try:
        yield
    except SystemExit:
        if trainer.state.status == "interrupted":
            raise KeyboardInterrupt from None
        raise


def _quiet_lightning() -> None:
    """Silence Lightning's advice that does not apply here."""
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")


def _write(path: Path, text: str) -> None:
    """Write a text file atomically."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(text)
    os.replace(scratch, path)

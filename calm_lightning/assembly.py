"""The parts of a run, made from its configuration: the autoencoder it stands on, its stage, its trainer."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging, RichProgressBar
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.config import RunConfig, load_config
from calm_lightning.data.datamodule import PileDataModule
from calm_lightning.errors import CheckpointError, ConfigError
from calm_lightning.flops.count import for_stage
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.stages.autoencoder import AutoencoderStage
from calm_lightning.stages.base import Stage
from calm_lightning.stages.baseline import BaselineStage
from calm_lightning.stages.batch_record import BatchRecord
from calm_lightning.stages.callbacks import AtomicCheckpointIO, CostLedger, ResumeCheckpoint, StreamPlace, Watched
from calm_lightning.stages.calm import CalmStage
from calm_lightning.stages.watch import Watch
from calm_lightning.tracking.journal import MetricsJournal

RESULT, CONFIG, WEIGHTS = "result.json", "config.yaml", "model.safetensors"
SAMPLE, CHECKPOINT, TOKENIZER = "sample.txt", "checkpoints/last.ckpt", "tokenizer"
"""Files of a run directory."""
RESULT_KEYS = frozenset({"identity", "name", "stage", "metrics", "protocol", "train_flops", "mlflow_run_id"})


@dataclass(frozen=True)
class FinishedAutoencoder:
    """A trained autoencoder found in a run directory.

    Attributes:
        run_dir: The run directory.
        config: Its resolved configuration.
        identity: Its identity.
        tokenizer: Fingerprint of the tokenizer whose ids it encodes.
        train_flops: Its training FLOPs.
        mlflow_run_id: Where MLflow has it, if it does.
    """

    run_dir: Path
    config: RunConfig
    identity: str
    tokenizer: str
    train_flops: float
    mlflow_run_id: str | None


def resolve_precision(precision: object, accelerator: object = "auto") -> object:
    """Return a Lightning precision; "auto" becomes bf16-mixed where the hardware multiplies bf16, else 32-true."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available() and accelerator != "cpu":
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    return "bf16-mixed" if torch.backends.cpu.get_cpu_capability() == "AVX512" and _has_bf16() else "32-true"


def _has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def default_name(config: RunConfig) -> str:
    """Return a name a person can read, for example calm-K4-l128-N8-d256-s0."""
    model = config.model
    apart = "" if model.cross_document_attention else "-documents"
    parts = {
        "autoencoder": f"autoencoder-K{model.K}-l{model.latent_width()}-d{config.autoencoder.d}",
        "calm": f"calm{_variant(config)}{apart}-K{model.K}-l{model.latent_width()}-N{model.N}-d{model.d}",
        "baseline": f"baseline{apart}-d{model.d}",
    }
    return f"{parts[config.stage]}-s{config.seed}"


def _variant(config: RunConfig) -> str:
    """Return what a name says of a model that is not the usual one: its head, what it reads."""
    model = config.model
    head = "" if model.head == "energy" else f"-{model.head}"
    return head + ("" if model.input == "discrete" else f"-reads-{model.input}")


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
    result = load_result(folder)
    if result["stage"] != "autoencoder":
        raise CheckpointError(f"autoencoder_run={run_dir} is a run of stage {result['stage']}, not of an autoencoder")
    return FinishedAutoencoder(
        folder,
        load_config([str(folder / CONFIG)]),
        result["identity"],
        result["protocol"]["tokenizer"],
        result["train_flops"],
        result["mlflow_run_id"],
    )


def own_autoencoder(run_dir: Path, config: RunConfig) -> Path:
    """Return the directory of the autoencoder that a finished language model was trained with.

    It is looked for where it was, then where it is if both were moved together: inside the run, or in the usual layout
    of run directories. A directory that holds another autoencoder than the recorded one is passed over.

    Raises:
        CheckpointError: It is in none of these places.
    """
    recorded = load_result(run_dir)["protocol"].get("model")
    wanted = recorded.get("autoencoder") if isinstance(recorded, dict) else None
    stored = Path(config.autoencoder_run)
    places = [run_dir / "autoencoder", run_dir.resolve().parents[1] / "autoencoder" / stored.name]
    for place in [stored, *places] if config.autoencoder_run else places:
        if (place / RESULT).is_file() and wanted in (None, load_result(place)["identity"]):
            return place
    raise CheckpointError(
        f"the autoencoder of {run_dir} was not found at {config.autoencoder_run or places[0]}: if it has been moved, "
        f"give its directory (--autoencoder DIR)"
    )


def load_result(run_dir: Path) -> dict[str, Any]:
    """Read what a finished run says of itself.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    path = run_dir / RESULT
    try:
        result = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): delete it and run the run's command again") from None
    missing = RESULT_KEYS - result.keys() if isinstance(result, dict) else RESULT_KEYS
    if not missing and not isinstance(result["protocol"].get("tokenizer"), str):
        missing = frozenset({"protocol.tokenizer"})
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(sorted(missing))}: delete it and run the run's command again")
    return dict(result)


def resolve(config: RunConfig, data: PileDataModule) -> tuple[RunConfig, FinishedAutoencoder | None]:
    """Fill in what the corpus, the hardware and the autoencoder decide, and check that they fit.

    Raises:
        ConfigError: The autoencoder or the vocabulary does not fit the model.
        CheckpointError: The autoencoder cannot be found.
    """
    vocabulary = config.model.vocabulary or data.vocabulary
    if vocabulary < data.vocabulary:
        raise ConfigError(
            f"model.vocabulary={vocabulary} is smaller than the {data.vocabulary} tokens of the corpus "
            f"{config.data.corpus}: leave it unset"
        )
    model = replace(config.model, vocabulary=vocabulary, l=config.model.latent_width())
    precision = resolve_precision(config.trainer.get("precision", "auto"), config.trainer.get("accelerator", "auto"))
    trainer = {**config.trainer, "precision": precision}
    config = replace(config, model=model, trainer=trainer)
    if config.stage == "autoencoder" and config.autoencoder.mask_id >= vocabulary:
        raise ConfigError(
            f"autoencoder.mask_id={config.autoencoder.mask_id} is no token id: the vocabulary has {vocabulary}"
        )
    if config.stage != "calm":
        return config, None
    if not config.autoencoder_run:
        raise ConfigError(
            "autoencoder_run is empty: train one with `calm train autoencoder ...` "
            "and pass autoencoder_run=RUN_DIRECTORY"
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
    if found.tokenizer != data.corpus.fingerprint:
        raise ConfigError(
            f"the autoencoder {found.run_dir} was trained with another tokenizer than that of {config.data.corpus}: "
            f"its ids mean other text; use its corpus {found.config.data.corpus}, or train an autoencoder on this one"
        )
    return replace(config, autoencoder=found.config.autoencoder), found


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
    load_weights(network, found.run_dir)
    return network


def load_weights(network: nn.Module, run_dir: Path) -> None:
    """Fill a network with the trained weights of a run directory.

    Raises:
        CheckpointError: They are missing, damaged, or of another shape.
    """
    path = run_dir / WEIGHTS
    try:
        network.load_state_dict(load_file(path))
    except RuntimeError as error:  # names or shapes: torch lists them one a line, below a headline
        problems = [line.strip() for line in str(error).splitlines()[1:]]
        raise CheckpointError(f"{path} does not fit {CONFIG} beside it: {' '.join(problems)[:500]}") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is missing or damaged ({error}): put the original file back") from None


def build_ledger(config: RunConfig, found: FinishedAutoencoder | None) -> CostLedger:
    """Return the ledger of costs of a run whose configuration is resolved."""
    assert config.model.vocabulary is not None
    report = for_stage(
        config.stage, config.model, config.autoencoder, config.model.vocabulary, config.data.block_tokens
    )
    return CostLedger(report, found.train_flops if found else 0.0)


class _FinalAverage(EMAWeightAveraging):
    """Lightning's moving average, in place at the end also of a run that resumes from its last step."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the average into the model: Lightning does so only if this process trained a step."""
        self.on_train_end(trainer, pl_module)


class _TrainingBar(RichProgressBar):
    """Lightning's progress bar, for a stream that has no epochs."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training  "


def build_trainer(
    config: RunConfig,
    ledger: CostLedger,
    journal: MetricsJournal,
    checkpoint: Path,
    progress: bool,
    watch: Watch | None = None,
) -> pl.Trainer:
    """Return a Lightning trainer.

    Args:
        config: The resolved configuration.
        ledger: Counts what the run spends.
        journal: Takes what is logged.
        checkpoint: The file that a killed run continues from.
        progress: Whether to show a progress bar.
        watch: May stop the run between steps.

    Raises:
        ConfigError: Lightning refuses a value of `trainer.*`, for example an accelerator that is not there.
    """
    every = config.evaluation.every_steps
    max_steps = config.trainer["max_steps"]
    accumulate = config.trainer.get("accumulate_grad_batches", 1)
    callbacks: list[pl.Callback] = []
    if config.optim.ema_decay > 0:
        callbacks.append(_FinalAverage(decay=config.optim.ema_decay))
    resume = ResumeCheckpoint(checkpoint, config.checkpoint_steps, every)
    callbacks += [StreamPlace(config.seed), ledger, resume]
    if watch is not None:
        callbacks.append(Watched(watch, resume))
    if config.data.record_batches:
        callbacks.append(BatchRecord(journal.path.parent))
    progress = progress and config.trainer.get("enable_progress_bar") is not False
    if progress:
        callbacks.append(_TrainingBar())
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
        "log_every_n_steps": max(1, min(50, max_steps // 20)),
        "use_distributed_sampler": False,
        **config.trainer,
        "enable_progress_bar": progress,
    }
    _quiet_lightning()
    try:
        return pl.Trainer(**settings)
    except TypeError as error:
        raise ConfigError(f"trainer: lightning.Trainer does not take this: {error}") from None
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from None


@contextmanager
def lightning_interrupts(trainer: pl.Trainer) -> Iterator[None]:
    """Turn Lightning's exit on Ctrl-C back into the KeyboardInterrupt that it was."""
    try:
        yield
    except SystemExit:
        if trainer.state.status == "interrupted":
            raise KeyboardInterrupt from None
        raise


def _quiet_lightning() -> None:
    """Silence Lightning's advice that does not apply here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")

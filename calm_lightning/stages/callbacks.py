"""Callbacks that own cadence: the place in the stream, the ledger of costs, the checkpoint a run resumes from.

None of them reads a tensor's value, so none makes the host wait for the device.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from calm_lightning.data.batch import TokenBatch
from calm_lightning.errors import CheckpointError
from calm_lightning.flops.report import FlopsReport
from calm_lightning.metrics import names
from calm_lightning.stages.watch import RunStopped, Watch


def _has_stepped(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Return whether this micro-batch was the last of an optimiser step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class StreamPlace(pl.Callback):
    """Makes every step's randomness a function of (seed, place in the stream).

    Dropout, head noise and posterior draws of micro-batch t are the same whether the run was interrupted before t or
    not, and whether an evaluation came in between or not.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def _reseed(self, trainer: pl.Trainer, purpose: int, index: int) -> None:
        # Odd multipliers spread neighbouring (seed, index, rank) over the generator's 64-bit seed space.
        mixed = self.seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + trainer.global_rank * 0x94D049BB133111EB
        torch.manual_seed((mixed * 2 + purpose) % 2**63)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: TokenBatch, batch_idx: int
    ) -> None:
        """Seed micro-batch `batch.index`."""
        self._reseed(trainer, 0, batch.index)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: TokenBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Seed evaluation batch `batch.index`: every evaluation of a run draws the same noise."""
        self._reseed(trainer, 1, batch.index)


class CostLedger(pl.Callback):
    """Counts what a run has spent and logs it at the step of every evaluation.

    Args:
        report: FLOPs of one block of this stage.
        autoencoder_train_flops: Training FLOPs of the autoencoder that the stage uses; 0 for other stages.
    """

    def __init__(self, report: FlopsReport, autoencoder_train_flops: float = 0.0) -> None:
        self.report = report
        self.autoencoder_train_flops = autoencoder_train_flops
        self.blocks = 0
        self.text_tokens = 0
        self.seconds = 0.0
        self._mark = 0.0
        self._speed_mark = (0, 0.0)

    @property
    def train_flops(self) -> float:
        """Training FLOPs of this stage so far."""
        return self.blocks * self.report.training_per_block_total

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, which continue when the run does."""
        return {"blocks": self.blocks, "text_tokens": self.text_tokens, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from saved counts."""
        self.blocks = int(state_dict["blocks"])
        self.text_tokens = int(state_dict["text_tokens"])
        self.seconds = float(state_dict["seconds"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._mark = time.perf_counter()
        self._speed_mark = (self.text_tokens, self.seconds)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: TokenBatch, batch_idx: int
    ) -> None:
        """Count one micro-batch of all ranks."""
        now = time.perf_counter()
        self.seconds += now - self._mark
        self._mark = now
        self.blocks += batch.tokens.shape[0] * trainer.world_size
        self.text_tokens += batch.tokens.numel() * trainer.world_size
        due = _has_stepped(trainer, batch_idx) and trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if due and self.seconds > self._speed_mark[1]:
            tokens, seconds = self._speed_mark
            pl_module.log(names.TRAIN_TOKENS_PER_SECOND, (self.text_tokens - tokens) / (self.seconds - seconds))
            pl_module.log(names.TRAIN_LR, trainer.optimizers[0].param_groups[0]["lr"])
            self._speed_mark = (self.text_tokens, self.seconds)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the time that evaluation took out of the clock."""
        self._mark = time.perf_counter()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the costs at the step of the evaluation."""
        total = self.train_flops + self.autoencoder_train_flops
        decades = {names.LOG_TRAIN_FLOPS_TOTAL: math.log10(total)} if total > 0 else {}
        pl_module.log_dict(
            {
                # Lightning's own count of steps lags by one during an evaluation; "step" overrules it.
                "step": float(trainer.global_step),
                names.TRAIN_FLOPS: self.train_flops,
                names.TRAIN_FLOPS_TOTAL: total,
                **decades,
                names.TEXT_TOKENS: float(self.text_tokens),
                names.SECONDS: self.seconds,
                names.INFERENCE_FLOPS_PER_TOKEN: self.report.inference_per_token_total,
            }
        )


class ResumeCheckpoint(pl.Callback):
    """Keeps the one checkpoint a killed run continues from.

    At a step that is evaluated it is written after the evaluation, so that a resumed run never has to guess whether
    the evaluation was logged.

    Args:
        path: The checkpoint file.
        every_steps: Optimiser steps between checkpoints.
        evaluate_every_steps: Optimiser steps between evaluations; 0 for none during training.
    """

    def __init__(self, path: Path, every_steps: int, evaluate_every_steps: int) -> None:
        self.path = path
        self.every_steps = every_steps
        self.evaluate_every_steps = evaluate_every_steps
        self._saved_at = -1

    def may_save(self, trainer: pl.Trainer, batch_idx: int) -> bool:
        """Return whether this micro-batch ended an optimiser step that is not evaluated."""
        evaluated = self.evaluate_every_steps and trainer.global_step % self.evaluate_every_steps == 0
        return _has_stepped(trainer, batch_idx) and not evaluated

    def save(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint, unless this step's is there."""
        if trainer.global_step != self._saved_at:
            trainer.save_checkpoint(self.path)
            self._saved_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: TokenBatch, batch_idx: int
    ) -> None:
        """Save every `every_steps` optimiser steps that are not evaluated."""
        if self.may_save(trainer, batch_idx) and trainer.global_step % self.every_steps == 0:
            self.save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after an evaluation during training."""
        if trainer.state.fn == "fit":
            self.save(trainer)


class Watched(pl.Callback):
    """Asks the watcher between steps. Comes after the checkpoint's callback, so that a stop loses nothing.

    Args:
        watch: The watcher.
        checkpoint: The run's checkpoint, written once more when the run is interrupted.
    """

    def __init__(self, watch: Watch, checkpoint: ResumeCheckpoint) -> None:
        self._watch, self._checkpoint = watch, checkpoint
        self._leaves = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: TokenBatch, batch_idx: int
    ) -> None:
        """Save the place after a step that is not evaluated: one that is must be evaluated before it is saved."""
        if self._checkpoint.may_save(trainer, batch_idx) and self._watch.interrupted():
            self._checkpoint.save(trainer)
            self._leaves = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: TokenBatch, batch_idx: int
    ) -> None:
        """Stop before the next step: only now is everything of the last one logged.

        Raises:
            RunStopped: The watcher asked for it.
        """
        if self._leaves:
            raise RunStopped("interrupted")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the watcher of an evaluation during training.

        Raises:
            RunStopped: The watcher asks for it.
        """
        if trainer.state.fn == "fit":
            self._watch.evaluated(trainer.global_step)
            if self._watch.interrupted():
                raise RunStopped("interrupted")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place and renames them; reads tensors and plain values only, never pickles."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save atomically.

        Raises:
            CheckpointError: The file cannot be written, for example because the disk is full.
        """
        target = Path(path)
        scratch = target.with_name(target.name + ".tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # By path: torch then writes natively, and no Ctrl-C can strike inside its C++ code.
            torch.save(checkpoint, scratch)
            with scratch.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(scratch, target)
        except BaseException as error:
            scratch.unlink(missing_ok=True)
            if not isinstance(error, (OSError, RuntimeError)):
                raise
            reason = getattr(error, "strerror", None) or "the disk is full or refused the write"
            raise CheckpointError(
                f"{target} cannot be written: {reason}; make room and run the same command again to continue"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Load on the CPU without unpickling code.

        Raises:
            CheckpointError: The file is missing or damaged.
        """
        try:
            loaded: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"{path} cannot be read ({type(error).__name__}): delete it to start the run again"
            ) from error
        return dict(loaded)

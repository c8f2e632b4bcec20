"""The record of what a run was trained on: one line per micro-batch, so that two runs' data can be compared."""

from __future__ import annotations

import hashlib
import os
from io import TextIOWrapper
from pathlib import Path

import lightning.pytorch as pl

from calm_lightning.data.batch import TokenBatch

BATCHES = "batches.csv"
_HEADER = "batch,sha256\n"


class BatchRecord(pl.Callback):
    """Writes the number and SHA-256 of every micro-batch's tokens, as int64 in row order, to a CSV file.

    A run that is resumed first drops the lines behind its checkpoint, so the file reads as if nothing had happened.
    Each rank writes a file of its own, since each sees its own part. Costs a copy to the host per micro-batch.

    Args:
        directory: Where the file goes.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: TextIOWrapper | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the file at the place where training continues."""
        path = self._directory / (BATCHES if trainer.global_rank == 0 else f"batches-{trainer.global_rank}.csv")
        position = trainer.datamodule.position  # type: ignore[attr-defined]
        lines = path.read_text().splitlines(keepends=True)[1:] if path.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and int(line.split(",")[0]) < position]
        scratch = path.with_name(f".{path.name}.partial")
        scratch.write_text(_HEADER + "".join(kept))
        os.replace(scratch, path)
        self._file = path.open("a", buffering=1)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: TokenBatch, batch_idx: int
    ) -> None:
        """Record a micro-batch before it is trained on."""
        assert self._file is not None
        digest = hashlib.sha256(batch.tokens.cpu().numpy().tobytes()).hexdigest()
        self._file.write(f"{batch.index},{digest}\n")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

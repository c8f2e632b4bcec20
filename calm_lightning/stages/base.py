"""What the three stages share: optimiser, clipping, and the loss line of the log."""

from __future__ import annotations

from abc import ABC, abstractmethod

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from calm_lightning.data.batch import TokenBatch
from calm_lightning.errors import DivergenceError
from calm_lightning.metrics import names
from calm_lightning.stages.config import EvaluationConfig, OptimConfig
from calm_lightning.stages.optim import make_optimizer, schedule


class Stage(pl.LightningModule, ABC):
    """Base of the stages: a subclass says what its loss is and how it is evaluated.

    Args:
        optim: Optimiser and schedule.
        evaluation: How finely to score.
    """

    model: nn.Module

    def __init__(self, optim: OptimConfig, evaluation: EvaluationConfig) -> None:
        super().__init__()
        self.optim = optim
        self.evaluation = evaluation

    @abstractmethod
    def loss(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Return the training loss, a scalar.

        Args:
            tokens_BT: Token blocks, (B, T).
            documents_BT: Document of every token, (B, T); needed where the model keeps to documents.

        Raises:
            DataError: The model keeps to documents, and they are not given.
        """

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Return the loss of one micro-batch of blocks (B, T)."""
        loss = self.loss(batch.tokens, batch.documents)
        self.log(names.TRAIN_LOSS, loss.detach(), prog_bar=True)
        # Named after the step it makes: a run resumed at step s then logs s + 1 next, and nothing twice.
        self.log("step", float(self.trainer.global_step + 1))
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with its schedule, stepped once per optimiser step."""
        optimizer = make_optimizer(self, self.optim)
        scheduler = LambdaLR(optimizer, schedule(self.optim, self.trainer.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as `trainer.gradient_clip_*` says and log the global norm before clipping.

        Lightning refuses to clip for fused optimisers because of gradient scaling, which bf16 does not use.
        """
        by_value = gradient_clip_algorithm == "value"
        limit = float(gradient_clip_val) if gradient_clip_val and not by_value else float("inf")
        self.log(names.TRAIN_GRAD_NORM, torch.nn.utils.clip_grad_norm_(self.parameters(), limit))
        if by_value and gradient_clip_val:
            torch.nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)

    def validation_loss(self, name: str, loss: Tensor, batch: TokenBatch) -> None:
        """Log the validation loss of a batch.

        Raises:
            DivergenceError: It is not finite: nothing that follows would mean anything.
        """
        if not torch.isfinite(loss):
            raise DivergenceError(
                f"training diverged: {name} is {loss.item()} after {self.trainer.global_step} steps; "
                f"lower optim.lr={self.optim.lr} or trainer.gradient_clip_val"
            )
        self.log_mean(name, loss, batch)

    def log_mean(self, name: str, value: Tensor, batch: TokenBatch) -> None:
        """Log a validation value that is averaged over all blocks of the evaluation."""
        self.log(name, value, on_step=False, on_epoch=True, batch_size=len(batch.tokens), sync_dist=True)

"""Scoring of language-model stages with BrierLM, whatever way they are sampled."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from calm_lightning.data.batch import TokenBatch
from calm_lightning.metrics import names
from calm_lightning.metrics.brier_lm import BrierScores
from calm_lightning.sampling.continuations import start_positions
from calm_lightning.stages.base import Stage
from calm_lightning.stages.config import EvaluationConfig, OptimConfig


class ScoredStage(Stage):
    """A stage that is scored with BrierLM at fixed start positions; blocks are the groups of its error."""

    def __init__(self, optim: OptimConfig, evaluation: EvaluationConfig) -> None:
        super().__init__(optim, evaluation)
        self.brier_lm = BrierScores()

    loss_name = names.VAL_LOSS
    """Name the validation loss is logged under: what it measures differs between stages."""

    @abstractmethod
    def scores(self, tokens_BT: Tensor, starts_G: Tensor) -> Tensor:
        """Return Brier-1..4 at every start position of token blocks (B, T): (B, G, 4), fractions."""

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Log the loss and score every start position of the blocks (B, T)."""
        self.validation_loss(self.loss_name, self.loss(batch.tokens), batch)
        starts_G = start_positions(batch.tokens.shape[1], self.evaluation.start_stride)
        brier_BG4 = self.scores(batch.tokens, starts_G)
        self.brier_lm.update(brier_BG4.flatten(0, 1), batch.blocks.repeat_interleave(len(starts_G)))

    def on_validation_epoch_end(self) -> None:
        """Log BrierLM with its error, interval and parts."""
        score = self.brier_lm.compute()
        self.brier_lm.reset()
        values: dict[str, float] = {
            names.BRIER_LM_SE: score.standard_error,
            names.BRIER_LM_LOW: score.low,
            names.BRIER_LM_HIGH: score.high,
            names.BRIER_LM_ZEROED: float(score.zeroed),
            names.SCORED_POSITIONS: float(score.positions),
            **dict(zip(names.BRIER_N, score.brier, strict=True)),
            **dict(zip(names.BRIER_N_SE, score.brier_standard_error, strict=True)),
        }
        self.log(names.BRIER_LM, score.value, prog_bar=True)
        self.log_dict(values)

    @abstractmethod
    def generate(self, prompt_T: Tensor, num_tokens: int, temperature: float) -> Tensor:
        """Return `num_tokens` generated token ids that continue a prompt (T,)."""

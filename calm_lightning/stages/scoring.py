"""Scoring of language models with BrierLM, whatever way they are sampled: in training and in `calm eval` alike.

Shape suffixes: B blocks, T tokens, G start positions per block, H tokens after a start, P = B * G.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from torch import Tensor

from calm_lightning.data.batch import TokenBatch
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.metrics import names
from calm_lightning.metrics.brier import brier_from_probabilities, brier_from_samples, marginal_brier_from_samples
from calm_lightning.metrics.brier_lm import BrierScores
from calm_lightning.sampling.codec import Codec
from calm_lightning.sampling.continuations import (
    baseline_probabilities,
    continue_chunks,
    scored_tokens,
    start_positions,
    targets_at,
)
from calm_lightning.stages.base import Stage
from calm_lightning.stages.config import EvaluationConfig, OptimConfig


class StartScores(NamedTuple):
    """Unbiased scores at the start positions of blocks, block after block, fractions.

    Attributes:
        brier: Brier-1..4, (P, 4).
        offsets: Marginal Brier-1 of each token after a start, (P, H).
    """

    brier: Tensor
    offsets: Tensor


def chunk_scores(
    model: ContinuousLM,
    codec: Codec,
    tokens_BT: Tensor,
    starts_G: Tensor,
    samples: int,
    documents_BT: Tensor | None = None,
) -> StartScores:
    """Score sampled continuations of a continuous language model; all K tokens of a chunk where K > 4.

    Args:
        model: The continuous language model.
        codec: Its autoencoder.
        tokens_BT: Blocks of true tokens, (B, T).
        starts_G: Start positions, (G,), multiples of K, at least K.
        samples: Samples S per position, at least 2.
        documents_BT: Document of every token, (B, T); needed where the model keeps to documents.

    Raises:
        DataError: The model keeps to documents, and they are not given.
    """
    horizon = scored_tokens(model)
    drawn_BGSH = continue_chunks(model, codec, tokens_BT, starts_G, samples, horizon, documents_BT=documents_BT)
    drawn_PSH = drawn_BGSH.flatten(0, 1)
    target_PH = targets_at(tokens_BT, starts_G, horizon).flatten(0, 1)
    return StartScores(brier_from_samples(drawn_PSH, target_PH), marginal_brier_from_samples(drawn_PSH, target_PH))


def token_scores(
    model: TokenLM, tokens_BT: Tensor, starts_G: Tensor, samples: int, documents_BT: Tensor | None = None
) -> StartScores:
    """Score a softmax model from exact P(y) and S sampled prefixes per start position; arguments as `chunk_scores`."""
    found = baseline_probabilities(model, tokens_BT, starts_G, samples, documents_BT=documents_BT)
    brier_BG4 = brier_from_probabilities(found.gold, found.collision)
    offsets_BG4 = brier_from_probabilities(found.marginal_gold, found.marginal_collision)
    return StartScores(brier_BG4.flatten(0, 1), offsets_BG4.flatten(0, 1))


def add_scores(metric: BrierScores, batch: TokenBatch, starts_G: Tensor, scores: StartScores) -> None:
    """Add the scores of a batch to a metric, with the document, block and domain of every start position.

    A start position belongs to the document of its first scored token. Without documents, blocks stand for them.
    """
    piece_P = batch.blocks.repeat_interleave(len(starts_G))
    if batch.documents is None or batch.domains is None:
        metric.update(scores.brier, scores.offsets, group=piece_P)
        return
    starts_G = starts_G.to(batch.documents.device)
    group_P, domain_P = batch.documents[:, starts_G].flatten(), batch.domains[:, starts_G].flatten()
    metric.update(scores.brier, scores.offsets, group=group_P, piece=piece_P, domain=domain_P)


class ScoredStage(Stage):
    """A stage that is scored with BrierLM at fixed start positions; documents are the groups of its error."""

    def __init__(self, optim: OptimConfig, evaluation: EvaluationConfig) -> None:
        super().__init__(optim, evaluation)
        self.brier_lm = BrierScores()

    loss_name = names.VAL_LOSS
    """Name the validation loss is logged under: what it measures differs between stages."""

    @abstractmethod
    def scores(self, tokens_BT: Tensor, starts_G: Tensor, documents_BT: Tensor | None = None) -> StartScores:
        """Return the scores at every start position of token blocks.

        Args:
            tokens_BT: Token blocks, (B, T).
            starts_G: Start positions, (G,).
            documents_BT: Document of every token, (B, T); needed where the model keeps to documents.

        Raises:
            DataError: The model keeps to documents, and they are not given.
        """

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Log the loss and score every start position of the blocks (B, T)."""
        self.validation_loss(self.loss_name, self.loss(batch.tokens, batch.documents), batch)
        starts_G = start_positions(batch.tokens.shape[1], self.evaluation.start_stride)
        add_scores(self.brier_lm, batch, starts_G, self.scores(batch.tokens, starts_G, batch.documents))

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
            names.SCORED_DOCUMENTS: float(score.documents),
            names.RESAMPLED_UNITS: float(score.units),
            **dict(zip(names.BRIER_N, score.brier, strict=True)),
            **dict(zip(names.BRIER_N_SE, score.brier_standard_error, strict=True)),
        }
        self.log(names.BRIER_LM, score.value, prog_bar=True)
        self.log_dict(values)

    @abstractmethod
    def generate(
        self, prompt_T: Tensor, num_tokens: int, temperature: float, documents_T: Tensor | None = None
    ) -> Tensor:
        """Continue a prompt.

        Args:
            prompt_T: Token ids, (T,).
            num_tokens: Tokens to generate.
            temperature: The temperature.
            documents_T: Document of every token of the prompt, (T,), of which a model that keeps to documents reads
                the last one; None means that there is one.

        Returns:
            Generated token ids, (num_tokens,).
        """

"""The token baseline as a stage, scored at the same start positions as CALM.

Shape suffixes: B blocks, T tokens, V vocabulary, G start positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.documents import last_document
from calm_lightning.metrics import names
from calm_lightning.sampling.generate import generate_tokens
from calm_lightning.stages.config import EvaluationConfig, OptimConfig
from calm_lightning.stages.scoring import ScoredStage, StartScores, token_scores


class BaselineStage(ScoredStage):
    """Trains next-token prediction. `train/loss` is nats per token."""

    loss_name = names.VAL_CROSS_ENTROPY

    model: TokenLM

    def __init__(self, model: TokenLM, optim: OptimConfig, evaluation: EvaluationConfig) -> None:
        super().__init__(optim, evaluation)
        self.model = model

    def loss(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Return the mean cross-entropy of the next token over token blocks (B, T), nats.

        Where the model keeps to documents, all tokens count still: the first of a document (its separator) is predicted
        from the document before it.
        """
        first_BT = self.model.first_seen(documents_BT)
        logits_BTV = self.model(tokens_BT[:, :-1], None if first_BT is None else first_BT[:, :-1])
        return functional.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT[:, 1:].flatten())

    def scores(self, tokens_BT: Tensor, starts_G: Tensor, documents_BT: Tensor | None = None) -> StartScores:
        """Score exact P(y) and S sampled prefixes per start position."""
        return token_scores(self.model, tokens_BT, starts_G, self.evaluation.samples, documents_BT)

    @torch.no_grad()
    def generate(
        self, prompt_T: Tensor, num_tokens: int, temperature: float, documents_T: Tensor | None = None
    ) -> Tensor:
        """Return `num_tokens` generated token ids that continue the prompt (T,)."""
        seen_T = last_document(self.model.config, prompt_T, documents_T)
        return generate_tokens(self.model, seen_T, num_tokens, temperature)

"""Stage 2: training the continuous language model against a frozen autoencoder.

Shape suffixes: B blocks, T tokens, L chunks, K tokens per chunk, P = B * (L - 1) positions, D width,
Z latent dimension, M posterior targets, G start positions, S samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from calm_lightning.autoencoder.model import ChunkAutoencoder, draw_posterior
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.documents import last_document
from calm_lightning.metrics import names
from calm_lightning.sampling.generate import generate_chunks
from calm_lightning.stages.config import EvaluationConfig, OptimConfig
from calm_lightning.stages.scoring import ScoredStage, StartScores, chunk_scores


class CalmStage(ScoredStage):
    """Trains next-latent prediction. `train/loss` is the head's loss per position."""

    model: ContinuousLM

    def __init__(
        self, model: ContinuousLM, autoencoder: ChunkAutoencoder, optim: OptimConfig, evaluation: EvaluationConfig
    ) -> None:
        super().__init__(optim, evaluation)
        self.model = model
        self.loss_name = names.VAL_HEAD_LOSS[model.config.head]
        self.autoencoder = autoencoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> CalmStage:
        """Switch modes; the autoencoder stays in eval mode."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    def loss(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Return the mean loss of the head over the positions of token blocks (B, T), a scalar.

        Where the model keeps to documents, all chunks count still: the first of a document is predicted from the
        document before it.
        """
        first_BL = self.model.first_seen(documents_BT)
        chunks_BLK = tokens_BT.unflatten(1, (-1, self.model.K))
        first = 0 if self.model.reads_latents else 1  # the first chunk is read but never predicted
        with torch.no_grad():
            encoded = self.autoencoder.encode(chunks_BLK[:, first:].flatten(0, 1))
            mean_BLZ, log_std_BLZ = (part.unflatten(0, (len(tokens_BT), -1)) for part in encoded)
            mean_PZ, log_std_PZ = (part[:, 1 - first :].flatten(0, 1) for part in (mean_BLZ, log_std_BLZ))
            targets_MPZ = draw_posterior(mean_PZ, log_std_PZ, self.model.head.targets)
            read_BLZ = draw_posterior(mean_BLZ[:, :-1], log_std_BLZ[:, :-1], 1)[0] if first == 0 else None
        hidden_BLD = self.model(chunks_BLK[:, :-1], read_BLZ, None if first_BL is None else first_BL[:, :-1])
        hidden_PD = hidden_BLD.flatten(0, 1)
        return self.model.head.loss(hidden_PD, targets_MPZ).mean()

    def scores(self, tokens_BT: Tensor, starts_G: Tensor, documents_BT: Tensor | None = None) -> StartScores:
        """Score S sampled continuations per start position."""
        return chunk_scores(self.model, self.autoencoder, tokens_BT, starts_G, self.evaluation.samples, documents_BT)

    @torch.no_grad()
    def generate(
        self, prompt_T: Tensor, num_tokens: int, temperature: float, documents_T: Tensor | None = None
    ) -> Tensor:
        """Return `num_tokens` generated token ids that continue the prompt (T,), at temperature 1/n."""
        seen_T = last_document(self.model.config, prompt_T, documents_T, self.model.K)
        return generate_chunks(self.model, self.autoencoder, seen_T, num_tokens, round(1 / temperature))

"""Whether a model's numbers are numbers, before anything is said about it.

The largest logit and the equality of samples exist for logits that are not numbers, too: without a look, a damaged
model would get a score. The look costs one pass over the weights and one over the beginning of a block; what goes wrong
in later blocks alone it does not see.

Shape suffixes: T tokens, L chunks, K tokens per chunk, D width, Z latent dimension.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.data.batch import TokenBatch
from calm_lightning.errors import CheckpointError
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.models import OpenModel
from calm_lightning.sampling.codec import true_latents

PROBED_CHUNKS = 16
"""Chunks (tokens of a baseline) whose outputs are looked at: few, so that their logits are small at any vocabulary."""


def look_first(
    batches: Iterator[TokenBatch], opened: OpenModel, precision: str, device: torch.device
) -> Iterator[TokenBatch]:
    """Yield the batches after a look at the weights and at the outputs for the beginning of the first block.

    Draws from torch's generators, and puts their state back.

    Args:
        batches: Batches of the text.
        opened: The model, on the device.
        precision: The precision it runs in, for the message.
        device: Where it runs.

    Raises:
        CheckpointError: They are not finite.
    """
    for number, batch in enumerate(batches):
        if number == 0:
            with torch.random.fork_rng():
                finite = [values.isfinite().all() for values in _values(opened, batch.tokens[0].to(device))]
            if not torch.stack(finite).all():
                raise CheckpointError(
                    f"the outputs of the model {opened.path} are not finite in {precision}: its weights are damaged, "
                    f"or the precision is too small (--precision 32-true)"
                )
        yield batch


def _values(opened: OpenModel, tokens_T: Tensor) -> Iterator[Tensor]:
    """Yield all weights, and what comes of the first tokens: hidden states or posteriors, latents, logits."""
    model, codec = opened.model, opened.autoencoder
    yield from model.parameters()
    if codec is not None:
        yield from codec.parameters()
    if isinstance(model, TokenLM):
        yield model(tokens_T[:PROBED_CHUNKS].unsqueeze(0))
        return
    assert isinstance(model, ChunkAutoencoder | ContinuousLM)
    chunks_LK = tokens_T[: PROBED_CHUNKS * model.K].view(-1, model.K)
    if isinstance(model, ChunkAutoencoder):
        mean_LZ, log_std_LZ = model.encode(chunks_LK)
        yield from (mean_LZ, log_std_LZ, model.decode(mean_LZ))
        return
    assert codec is not None
    latents_LZ = true_latents(model, codec, chunks_LK)
    hidden_LD = model(chunks_LK.unsqueeze(0), None if latents_LZ is None else latents_LZ.unsqueeze(0))[0]
    drawn_LZ = model.head.sample(hidden_LD, 1)[0]
    yield from (hidden_LD, drawn_LZ, codec.decode(drawn_LZ))

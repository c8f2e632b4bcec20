"""Text through an autoencoder and back: what its latents keep.

Shape suffixes: C chunks, K tokens per chunk, Z latent dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from calm_lightning.autoencoder.model import ChunkAutoencoder, draw_posterior
from calm_lightning.data.tokenizers import Tokenizer
from calm_lightning.errors import SamplingError
from calm_lightning.models import OpenModel
from calm_lightning.programs.arithmetic import best_device
from calm_lightning.sampling.continuations import largest_tensor


@torch.no_grad()
def restore_texts(opened: OpenModel, texts: Sequence[str], sampled: bool = False, seed: int = 0) -> list[str]:
    """Take texts through an autoencoder: chunks to latents and back. Torch's random state is afterwards as it was.

    A last chunk that a text does not fill is filled with the separator, which is cut off again.

    Args:
        opened: An autoencoder.
        texts: The texts.
        sampled: Draw each latent from its posterior instead of taking the mean.
        seed: Seed of these draws.

    Returns:
        What is restored, as many tokens as each text has. Cost: one encoder and one decoder pass per chunk.

    Raises:
        SamplingError: The model is no autoencoder, or a text is empty.
    """
    model, tokenizer = opened.model, opened.tokenizer
    if not isinstance(model, ChunkAutoencoder) or tokenizer is None:
        raise SamplingError(f"{opened.path} is no autoencoder with a tokenizer: it restores no text")
    if not all(texts):
        raise SamplingError("a text is empty: give at least one character to restore")
    device = best_device()
    model.to(device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [_restored(model, tokenizer, ids, sampled, device) for ids in tokenizer.encode_batch(list(texts))]


def _restored(
    model: ChunkAutoencoder, tokenizer: Tokenizer, ids: Sequence[int], sampled: bool, device: torch.device
) -> str:
    filled = [*ids, *[tokenizer.separator_id] * (-len(ids) % model.K)]
    chunks_CK = torch.tensor(filled, device=device).view(-1, model.K)
    restored: list[int] = []
    for part_CK in chunks_CK.split(max(1, largest_tensor(device) // (model.K * model.vocabulary))):
        mean_CZ, log_std_CZ = model.encode(part_CK)
        latent_CZ = draw_posterior(mean_CZ, log_std_CZ, 1)[0] if sampled else mean_CZ
        restored += model.decode_tokens(latent_CZ).flatten().tolist()
    return tokenizer.decode(restored[: len(ids)])

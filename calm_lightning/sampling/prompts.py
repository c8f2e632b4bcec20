"""Prompts on the chunk grid: what is done with the tokens that do not fill a chunk.

A continuous model reads whole chunks. A prompt of T tokens leaves r = T mod K over, and padding would be read as text.
Two ways out, neither of which feeds the model anything but the prompt:

- match: the grid starts with the prompt, and the chunk that the r last tokens begin is drawn until it begins with them.
  That is the model's distribution given the whole prompt; it costs draws where the model finds these tokens unlikely.
- cut: the grid ends with the prompt, and the r oldest tokens are left out. Documents begin anywhere in the chunks a
  model is trained on, so it has seen text on every grid.

Shape suffixes: B prompts, L chunks, K tokens per chunk, Z latent dimension, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from calm_lightning.errors import SamplingError
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.sampling.chunks import ChunkSampling, chunk_beginning_with
from calm_lightning.sampling.codec import Codec, true_latents

Align = Literal["auto", "match", "cut"]


@dataclass(frozen=True)
class AlignedPrompt:
    """A prompt as whole chunks.

    Attributes:
        chunks: The chunks, (L, K), L at least 1.
        latents: What the model reads beside them, (L, Z); None where it reads tokens alone.
        generated: How many tokens at the end were drawn to fill the last chunk, after the prompt's own.
        left_out: How many of the oldest tokens are left out.
    """

    chunks: Tensor
    latents: Tensor | None
    generated: int = 0
    left_out: int = 0


@torch.no_grad()
def align_prompt(
    model: ContinuousLM, codec: Codec, prompt_T: Tensor, sampling: ChunkSampling, align: Align = "auto"
) -> AlignedPrompt:
    """Put a prompt on the chunk grid.

    Args:
        model: The continuous language model.
        codec: Its autoencoder.
        prompt_T: Token ids, (T,), at least K.
        sampling: How the last chunk is drawn if it is drawn; its budget bounds the search.
        align: "match", "cut", or "auto": match within the budget, otherwise cut.

    Returns:
        The prompt as chunks.

    Raises:
        SamplingError: The prompt is shorter than a chunk, or cannot be matched within the budget.
    """
    K, remainder = model.K, len(prompt_T) % model.K
    if align not in ("auto", "match", "cut"):
        raise SamplingError(f"alignment {align!r} is unknown: it is auto, match or cut")
    if len(prompt_T) < K:
        raise SamplingError(
            f"a prompt of {len(prompt_T)} tokens, document separator included, is shorter than one chunk of K = {K}: "
            f"give a longer prompt"
        )
    if align != "cut" and remainder:
        try:
            return _match(model, codec, prompt_T, remainder, sampling)
        except SamplingError:
            if align == "match":
                raise
    chunks_LK = prompt_T[remainder:].view(-1, K)
    return AlignedPrompt(chunks_LK, true_latents(model, codec, chunks_LK), left_out=remainder)


def _match(
    model: ContinuousLM, codec: Codec, prompt_T: Tensor, remainder: int, sampling: ChunkSampling
) -> AlignedPrompt:
    true_LK = prompt_T[:-remainder].view(-1, model.K)
    latents_LZ = true_latents(model, codec, true_LK)
    read_1LZ = None if latents_LZ is None else latents_LZ.unsqueeze(0)
    hidden_1D = model(true_LK.unsqueeze(0), read_1LZ)[:, -1]
    drawn = chunk_beginning_with(model, codec, hidden_1D, prompt_T[-remainder:], sampling)
    if latents_LZ is not None:
        latents_LZ = torch.cat((latents_LZ, drawn.latents.to(latents_LZ.dtype)))
    return AlignedPrompt(torch.cat((true_LK, drawn.tokens)), latents_LZ, generated=model.K - remainder)


def pad_prompts(prompts: Sequence[AlignedPrompt]) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return prompts as one batch, filled up with zeros behind their ends, where nothing looks.

    Returns:
        Chunks (B, L, K), latents (B, L, Z) or None, and lengths in chunks (B,).
    """
    chunks_BLK = torch.nn.utils.rnn.pad_sequence([prompt.chunks for prompt in prompts], batch_first=True)
    latents = [prompt.latents for prompt in prompts if prompt.latents is not None]
    latents_BLZ = torch.nn.utils.rnn.pad_sequence(latents, batch_first=True) if latents else None
    lengths_B = torch.tensor([len(prompt.chunks) for prompt in prompts], device=chunks_BLK.device)
    return chunks_BLK, latents_BLZ, lengths_B

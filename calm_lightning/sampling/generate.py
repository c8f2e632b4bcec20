"""Text from a trained model, a step at a time: chunk by chunk, or token by token for the baseline.

Every prompt of a batch is one long branch that grows from its own end (`Transformer.branch_step`): keys and values of
the prompt and of what was generated are kept, so a step costs one position. Rows that have ended cost no draws.
Random numbers come from torch's global generators: after `torch.manual_seed`, the same call gives the same text.

Shape suffixes: B prompts, R rows that go on, L chunks or tokens of a prompt, K tokens per chunk, D width, V vocabulary,
T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from calm_lightning.backbone.transformer import BranchCache
from calm_lightning.errors import SamplingError
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.sampling.chunks import ChunkSampling, next_chunks
from calm_lightning.sampling.codec import Codec
from calm_lightning.sampling.prompts import AlignedPrompt, align_prompt, pad_prompts

LEAST_TEMPERATURE = torch.finfo(torch.float32).tiny
"""A softmax cannot be divided by less, and has long become the largest logit."""
POOL = 200
"""Samples from which the batch temperature algorithm chooses each chunk (the paper's default)."""


class _Growth:
    """How far each row has come, and what it may still say."""

    def __init__(self, rows: int, max_tokens: int, stop_ids: Collection[int]) -> None:
        self.left = [max_tokens] * rows
        self.stop_ids = frozenset(stop_ids)

    @property
    def open(self) -> list[int]:
        """Rows that go on."""
        return [row for row, left in enumerate(self.left) if left > 0]

    def accept(self, row: int, tokens: list[int]) -> list[int]:
        """Return the tokens that belong to a row's text: up to a stop id, if there is one, and to the limit."""
        end = next((place for place, token in enumerate(tokens) if token in self.stop_ids), None)
        kept = tokens[: self.left[row]] if end is None else tokens[: min(end, self.left[row])]
        self.left[row] = 0 if end is not None else self.left[row] - len(kept)
        return kept


@torch.no_grad()
def stream_chunks(
    model: ContinuousLM,
    codec: Codec,
    prompts: Sequence[AlignedPrompt],
    max_tokens: int,
    sampling: ChunkSampling,
    stop_ids: Collection[int] = (),
) -> Iterator[list[list[int]]]:
    """Continue prompts of any lengths in one batch, chunk by chunk.

    Args:
        model: The continuous language model.
        codec: Its autoencoder.
        prompts: Prompts on the chunk grid (`align_prompt`), B of them.
        max_tokens: Most tokens per prompt.
        sampling: Temperature and method.
        stop_ids: Tokens that end a row's text, wherever in a chunk they stand; they are not part of it.

    Yields:
        The new token ids of every prompt, B lists of up to K; empty once a prompt's text has ended.

    Raises:
        SamplingError: The exact method has spent its budget.
    """
    chunks_BLK, latents_BLZ, lengths_B = pad_prompts(prompts)
    hidden_BLD, prefix = model.backbone.prefill(model.input(chunks_BLK, latents_BLZ))
    rows_B = torch.arange(len(prompts), device=chunks_BLK.device)
    hidden_BD = hidden_BLD[rows_B, lengths_B - 1]
    chunk_BK = chunks_BLK[rows_B, lengths_B - 1]
    latent_BZ = None if latents_BLZ is None else latents_BLZ[rows_B, lengths_B - 1]
    growth, own = _Growth(len(prompts), max_tokens, stop_ids), BranchCache()
    begun = [prompt.chunks[-1, model.K - prompt.generated :].tolist() for prompt in prompts]
    if any(begun):
        yield [growth.accept(row, tokens) for row, tokens in enumerate(begun)]
    while growth.open:
        open_R = torch.tensor(growth.open, device=chunks_BLK.device)
        drawn = next_chunks(model, codec, hidden_BD[open_R], sampling)
        new = dict(zip(growth.open, drawn.tokens.tolist(), strict=True))
        yield [growth.accept(row, new.get(row, [])) for row in range(len(prompts))]
        if growth.open:
            chunk_BK[open_R] = drawn.tokens
            if latent_BZ is not None:
                latent_BZ[open_R] = drawn.latents.to(latent_BZ.dtype)
            read_B1Z = None if latent_BZ is None else latent_BZ.unsqueeze(1)
            input_B1D = model.input(chunk_BK.unsqueeze(1), read_B1Z)
            hidden_BD = model.backbone.branch_step(input_B1D, prefix, own, lengths_B.unsqueeze(1))[:, 0]


@torch.no_grad()
def stream_tokens(
    model: TokenLM, prompts: Sequence[Tensor], max_tokens: int, temperature: float, stop_ids: Collection[int] = ()
) -> Iterator[list[list[int]]]:
    """Continue prompts of any lengths in one batch, token by token, at a softmax temperature.

    Args:
        model: The token language model.
        prompts: Token ids, (T,) each, at least one token; B of them.
        max_tokens: Most tokens per prompt.
        temperature: T above 0 and finite; unlike a continuous model's it may exceed 1.
        stop_ids: Tokens that end a row's text; they are not part of it.

    Yields:
        The new token id of every prompt, B lists of one; empty once a prompt's text has ended.

    Raises:
        SamplingError: T is not positive and finite, or a prompt is empty.
    """
    if not 0 < temperature < math.inf:
        raise SamplingError(f"temperature {temperature:g} is not above 0 and finite")
    if not all(len(prompt) for prompt in prompts):
        raise SamplingError("a prompt is empty: there is nothing to continue")
    tokens_BL = torch.nn.utils.rnn.pad_sequence(list(prompts), batch_first=True)
    lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=tokens_BL.device)
    hidden_BLD, prefix = model.backbone.prefill(model.embedding(tokens_BL))
    hidden_BD = hidden_BLD[torch.arange(len(prompts), device=tokens_BL.device), lengths_B - 1]
    growth, own = _Growth(len(prompts), max_tokens, stop_ids), BranchCache()
    while growth.open:
        logits_BV = model.lm_head(hidden_BD).float()
        # Less the largest one, so that no T, however small, makes it infinite.
        p_BV = ((logits_BV - logits_BV.amax(-1, keepdim=True)) / max(temperature, LEAST_TEMPERATURE)).softmax(-1)
        token_B1 = torch.multinomial(p_BV, 1)
        open_rows = set(growth.open)
        drawn = token_B1.tolist()
        yield [growth.accept(row, drawn[row] if row in open_rows else []) for row in range(len(prompts))]
        if growth.open:
            input_B1D = model.embedding(token_B1)
            hidden_BD = model.backbone.branch_step(input_B1D, prefix, own, lengths_B.unsqueeze(1))[:, 0]


def generate_chunks(
    model: ContinuousLM, codec: Codec, prompt_T: Tensor, num_tokens: int, inverse_temperature: int
) -> Tensor:
    """Continue one prompt by exactly `num_tokens` tokens, through document borders.

    Args:
        model: The continuous language model.
        codec: Its autoencoder.
        prompt_T: Prompt, (T,), T at least K; a remainder of T / K tokens is cut off its front.
        num_tokens: Tokens to generate.
        inverse_temperature: n = 1/T; 1 draws from the model as it is, more uses the batch algorithm.

    Returns:
        Generated token ids, (num_tokens,).

    Raises:
        SamplingError: The prompt is shorter than a chunk.
    """
    sampling = ChunkSampling(1 / inverse_temperature, POOL)
    prompt = align_prompt(model, codec, prompt_T, sampling, "cut")
    steps = stream_chunks(model, codec, [prompt], num_tokens, sampling)
    return torch.tensor([token for (new,) in steps for token in new], device=prompt_T.device)


def generate_tokens(model: TokenLM, prompt_T: Tensor, num_tokens: int, temperature: float) -> Tensor:
    """Continue one prompt (T,) by exactly `num_tokens` tokens at a softmax temperature: (num_tokens,)."""
    steps = stream_tokens(model, [prompt_T], num_tokens, temperature)
    return torch.tensor([token for (new,) in steps for token in new], device=prompt_T.device)

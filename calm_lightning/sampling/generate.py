"""Text from a trained model: one long branch that grows from the end of a prompt.

Keys and values of the prompt and of what was generated are kept, so each step costs one position.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from calm_lightning.backbone.transformer import BranchCache
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.sampling.temperature import batch_temperature

POOL = 200
"""Samples from which the batch temperature algorithm chooses each chunk (the paper's default)."""


def generate_chunks(
    model: ContinuousLM,
    decode: Callable[[Tensor], Tensor],
    prompt_T: Tensor,
    num_tokens: int,
    inverse_temperature: int,
) -> Tensor:
    """Continue a prompt chunk by chunk.

    Args:
        model: The continuous language model.
        decode: Maps latents (..., Z) to tokens (..., K).
        prompt_T: Prompt, (T,), T at least K; a remainder of T / K tokens is cut off its front.
        num_tokens: Tokens to generate.
        inverse_temperature: n = 1/T; 1 draws from the model as it is, more uses the batch algorithm.

    Returns:
        Generated token ids, (num_tokens,).
    """
    K = model.K
    prompt_1LK = prompt_T[len(prompt_T) % K :].view(1, -1, K)
    hidden_1LD, prefix = model.backbone.prefill(model.input(prompt_1LK))
    hidden_1D = hidden_1LD[:, -1]
    own, length_R = BranchCache(), torch.tensor([prompt_1LK.shape[1]], device=prompt_T.device)
    chunks: list[Tensor] = []
    while len(chunks) * K < num_tokens:
        if inverse_temperature == 1:
            chunk_1K = decode(model.head.sample(hidden_1D, 1))[0]
        else:
            chunk_1K = batch_temperature(
                decode(model.head.sample(hidden_1D, POOL)).transpose(0, 1), inverse_temperature
            )
        chunks.append(chunk_1K)
        hidden_1D = model.backbone.branch_step(model.input(chunk_1K).unsqueeze(1), prefix, own, length_R)[:, 0]
    return torch.cat(chunks, dim=1)[0, :num_tokens]


def generate_tokens(model: TokenLM, prompt_T: Tensor, num_tokens: int, temperature: float) -> Tensor:
    """Continue a prompt (T,) token by token at a softmax temperature: (num_tokens,)."""
    hidden_1LD, prefix = model.backbone.prefill(model.embedding(prompt_T.unsqueeze(0)))
    hidden_1D = hidden_1LD[:, -1]
    own, length_R = BranchCache(), torch.tensor([len(prompt_T)], device=prompt_T.device)
    tokens: list[Tensor] = []
    while len(tokens) < num_tokens:
        p_1V = (model.lm_head(hidden_1D).float() / temperature).softmax(-1)
        tokens.append(torch.multinomial(p_1V, 1))
        hidden_1D = model.backbone.branch_step(model.embedding(tokens[-1]), prefix, own, length_R)[:, 0]
    return torch.cat(tokens, dim=1)[0]

"""What each model would say next, at many start positions of a block, all in one batch.

BrierLM scores the 4 tokens after a start position. One latent gives K tokens, so for K < 4 every sample is
continued along its own tokens; for the baseline, along its own sampled tokens. All branches of all positions
advance together (`Transformer.branch_step`); the only loop is over the at most 4 tokens of a branch.

Shape suffixes: B blocks, T tokens, L chunks, K tokens per chunk, G start positions per block, S samples,
R = G * S branches, D width, V vocabulary, Z latent dimension. Memory: B * R * V logits for the baseline.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from calm_lightning.backbone.transformer import BranchCache
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM

HORIZON = 4
"""Tokens scored after each start position (BrierLM: n = 1..4)."""


def start_positions(block_tokens: int, stride: int) -> Tensor:
    """Return the scored start positions of a block, (G,): multiples of `stride`, 4 tokens short of its end at most.

    The first `stride` tokens are context only, so that every model has seen something.
    """
    return torch.arange(stride, block_tokens - HORIZON + 1, stride)


def targets_at(tokens_BT: Tensor, starts_G: Tensor) -> Tensor:
    """Return the 4 true tokens at each start position, (B, G, 4)."""
    window_G4 = starts_G.unsqueeze(1) + torch.arange(HORIZON, device=starts_G.device)
    return tokens_BT[:, window_G4]


def continue_chunks(
    model: ContinuousLM,
    decode: Callable[[Tensor], Tensor],
    tokens_BT: Tensor,
    starts_G: Tensor,
    samples: int,
) -> Tensor:
    """Draw continuations of at least 4 tokens at every start position, then keep 4.

    Args:
        model: The continuous language model.
        decode: Maps latents (..., Z) to tokens (..., K).
        tokens_BT: True tokens, (B, T), T a multiple of K.
        starts_G: Start positions, (G,), multiples of K, at least K.
        samples: Samples S per position.

    Returns:
        Sampled tokens, (B, G, S, 4).
    """
    K, B, G = model.K, tokens_BT.shape[0], len(starts_G)
    seen = int(starts_G.max())
    starts_G = starts_G.to(tokens_BT.device)
    prefix_chunks_G = starts_G // K
    hidden_BLD, prefix = model.backbone.prefill(model.input(tokens_BT[:, :seen].unflatten(1, (-1, K))))
    hidden_BGD = hidden_BLD[:, prefix_chunks_G - 1]
    latents_SPZ = model.head.sample(hidden_BGD.flatten(0, 1), samples)
    chunks_BRK = _branches(decode(latents_SPZ), B, G)
    produced = [chunks_BRK]
    own = BranchCache()
    prefix_chunks_R = prefix_chunks_G.repeat_interleave(samples)
    while len(produced) * K < HORIZON:
        hidden_BRD = model.backbone.branch_step(model.input(produced[-1]), prefix, own, prefix_chunks_R)
        latents_PZ = model.head.sample(hidden_BRD.flatten(0, 1), 1)[0]
        produced.append(decode(latents_PZ).unflatten(0, (B, -1)))
    return torch.cat(produced, dim=-1)[..., :HORIZON].unflatten(1, (G, samples))


def _branches(chunks_SPK: Tensor, B: int, G: int) -> Tensor:
    """Reorder draws (S, B * G, K) into branches (B, G * S, K)."""
    return chunks_SPK.unflatten(1, (B, G)).permute(1, 2, 0, 3).flatten(1, 2)


def baseline_probabilities(
    model: TokenLM, tokens_BT: Tensor, starts_G: Tensor, samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what BrierLM needs of a softmax model: exact gold probabilities and collision probabilities.

    P(y) of the next n tokens is the product of n exact factors. The collision sum_x P(x)^2 equals
    E[P(prefix) * sum_v p(v | prefix)^2] over prefixes of n - 1 tokens drawn from the model: exact for n = 1, and
    averaged over S draws for n > 1, with the last factor and the prefix' own probability exact. Unbiased for any S.

    Args:
        model: The token language model.
        tokens_BT: True tokens, (B, T).
        starts_G: Start positions, (G,), at least 1.
        samples: Samples S of each prefix.

    Returns:
        gold_BG4: P of the true next n tokens, n = 1..4, (B, G, 4).
        collision_BG4: Estimate of sum_x P(x)^2 over n-token outcomes, (B, G, 4).
        drawn_BGS3: The sampled prefixes, (B, G, S, 3).

    Source: BrierLM as in arXiv 2510.27688; the identity is E_{x ~ P}[P(x)] = sum_x P(x)^2.
    """
    B, G = tokens_BT.shape[0], len(starts_G)
    starts_G = starts_G.to(tokens_BT.device)
    hidden_BTD, prefix = model.backbone.prefill(model.embedding(tokens_BT))
    window_G4 = starts_G.unsqueeze(1) - 1 + torch.arange(HORIZON, device=starts_G.device)
    log_p_BG4V = model.lm_head(hidden_BTD[:, window_G4]).float().log_softmax(-1)
    gold_BG4 = log_p_BG4V.gather(-1, targets_at(tokens_BT, starts_G).unsqueeze(-1)).squeeze(-1).cumsum(-1).exp()
    p_BGV = log_p_BG4V[:, :, 0].exp()
    collisions = [p_BGV.square().sum(-1)]
    drawn_BR = torch.multinomial(p_BGV.flatten(0, 1), samples, replacement=True).view(B, G * samples)
    prefix_p_BR = p_BGV.repeat_interleave(samples, dim=1).gather(-1, drawn_BR.unsqueeze(-1)).squeeze(-1)
    own = BranchCache()
    prefix_length_R = starts_G.repeat_interleave(samples)
    drawn = [drawn_BR]
    for n in range(2, HORIZON + 1):
        hidden_BRD = model.backbone.branch_step(model.embedding(drawn[-1]), prefix, own, prefix_length_R)
        p_BRV = model.lm_head(hidden_BRD).float().softmax(-1)
        collisions.append((prefix_p_BR * p_BRV.square().sum(-1)).view(B, G, samples).mean(-1))
        if n < HORIZON:
            drawn.append(torch.multinomial(p_BRV.flatten(0, 1), 1).view(B, G * samples))
            prefix_p_BR = prefix_p_BR * p_BRV.gather(-1, drawn[-1].unsqueeze(-1)).squeeze(-1)
    return gold_BG4, torch.stack(collisions, dim=-1), torch.stack(drawn, dim=-1).unflatten(1, (G, samples))

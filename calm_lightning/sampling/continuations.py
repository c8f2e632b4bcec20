"""What each model would say next, at many start positions of a block at once.

BrierLM scores the 4 tokens after a start position. One latent gives K tokens, so for K < 4 every sample is
continued along its own tokens; for the baseline, along its own sampled tokens. The true text is read once; then all
branches of as many positions as the memory allows advance together (`Transformer.branch_step`). Where a model keeps to
documents, a branch sees that of the last position it continues from, also when its own text begins another one.

Memory: attention weights (B, heads, R, L) and logits (R, V) of a slice of positions stay below `largest_tensor`, down
to one position of every block at a time. Smaller slices are also faster on CPUs, up to a point: they fit the caches,
and a slice looks at no more of the prefix than its last position may see.

Shape suffixes: B blocks, T tokens, L chunks, K tokens per chunk, G start positions per block, S samples, H tokens
after a start, R = G * S branches, D width, V vocabulary, Z latent dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from calm_lightning.backbone.transformer import BranchCache, PrefixCache
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.sampling.codec import Codec, true_latents

HORIZON = 4
"""Tokens that BrierLM scores after each start position (n = 1..4)."""
ATTENTION_COPIES = 4
"""Tensors of the size of the attention weights that live at once: logits, masked, softmax, cast."""


class TokenScores(NamedTuple):
    """What Brier scores need of a softmax model, each (B, G, 4).

    Attributes:
        gold: P of the true next n tokens, n = 1..4.
        collision: Estimate of sum_x P(x)^2 over outcomes of n tokens.
        marginal_gold: P of the true token at offset n alone, whatever comes before it.
        marginal_collision: Estimate of sum_v P(v)^2 over the token at offset n alone.
    """

    gold: Tensor
    collision: Tensor
    marginal_gold: Tensor
    marginal_collision: Tensor


def start_positions(block_tokens: int, stride: int) -> Tensor:
    """Return the scored start positions of a block, (G,): multiples of `stride`, 4 tokens short of its end at most.

    The first `stride` tokens are context only, so that every model has seen something.
    """
    return torch.arange(stride, block_tokens - HORIZON + 1, stride)


def targets_at(tokens_BT: Tensor, starts_G: Tensor, horizon: int = HORIZON) -> Tensor:
    """Return the true tokens at each start position and after it, (B, G, H)."""
    starts_G = starts_G.to(tokens_BT.device)
    return tokens_BT[:, starts_G.unsqueeze(1) + torch.arange(horizon, device=starts_G.device)]


def largest_tensor(device: torch.device) -> int:
    """Return how many elements of logits are held at once, and of all copies of attention weights together.

    In float32 32 MiB on CPUs (at V = 4,096 and blocks of 1,024 the fastest of 2^18 to 2^24), 256 MiB on GPUs.
    """
    return 2**23 if device.type == "cpu" else 2**26


def scored_tokens(model: ContinuousLM) -> int:
    """Return how many tokens after a start position are worth scoring: all that BrierLM or one latent covers."""
    return max(HORIZON, model.K)


def continue_chunks(
    model: ContinuousLM,
    codec: Codec,
    tokens_BT: Tensor,
    starts_G: Tensor,
    samples: int,
    horizon: int = HORIZON,
    max_elements: int | None = None,
    documents_BT: Tensor | None = None,
) -> Tensor:
    """Draw continuations at every start position.

    Args:
        model: The continuous language model.
        codec: Its autoencoder.
        tokens_BT: True tokens, (B, T), T a multiple of K.
        starts_G: Start positions, (G,), multiples of K, at least K; on the CPU they cost no wait for the device.
        samples: Samples S per position.
        horizon: Tokens H of each continuation.
        max_elements: Bound on the size of tensors instead of `largest_tensor`.
        documents_BT: Document of every token, (B, T); needed where the model keeps to documents.

    Returns:
        Sampled tokens, (B, G, S, H).

    Raises:
        DataError: The model keeps to documents, and they are not given.
    """
    K, B, steps = model.K, len(tokens_BT), -(-horizon // model.K)
    prefix_chunks = [start // K for start in starts_G.tolist()]
    chunks_BLK = tokens_BT[:, : max(prefix_chunks) * K].unflatten(1, (-1, K))
    input_BLD = model.input(chunks_BLK, true_latents(model, codec, chunks_BLK))
    first_BL = _part(model.first_seen(documents_BT), slice(max(prefix_chunks)))
    prefix: PrefixCache | None = None
    per_branch = K * model.vocabulary
    if steps == 1:
        hidden_BLD = model.backbone(input_BLD, first_BL)
    else:
        hidden_BLD, prefix = model.backbone.prefill(input_BLD, first_BL)
        per_branch = max(per_branch, ATTENTION_COPIES * model.config.heads * chunks_BLK.shape[1])
    limit = max_elements or largest_tensor(tokens_BT.device)
    drawn = [
        _grow(model, codec, hidden_BLD, prefix, first_BL, lengths, samples, steps)
        for lengths in _slices(prefix_chunks, B * samples * per_branch, limit)
    ]
    return torch.cat(drawn, dim=1)[..., :horizon]


def _slices(lengths: list[int], elements_each: int, max_elements: int) -> Iterator[list[int]]:
    """Yield the positions in slices of at most `max_elements`, at least one position each."""
    size = max(1, max_elements // elements_each)
    yield from (lengths[begin : begin + size] for begin in range(0, len(lengths), size))


def _part(first_BL: Tensor | None, positions: slice | Tensor) -> Tensor | None:
    """Return `first_BL` of some positions, or None where attention has no beginning."""
    return None if first_BL is None else first_BL[:, positions]


def _seen(prefix: PrefixCache, lengths: list[int]) -> PrefixCache:
    """Return the part of a cache that positions with these prefix lengths may look at."""
    longest = max(lengths)
    return PrefixCache([key[:, :, :longest] for key in prefix.keys], [value[:, :, :longest] for value in prefix.values])


def _grow(
    model: ContinuousLM,
    codec: Codec,
    hidden_BLD: Tensor,
    prefix: PrefixCache | None,
    first_BL: Tensor | None,
    lengths: list[int],
    samples: int,
    steps: int,
) -> Tensor:
    """Draw `steps` chunks after the first `lengths` chunks, (B, G, S, steps * K)."""
    B, G = len(hidden_BLD), len(lengths)
    length_G = torch.tensor(lengths, device=hidden_BLD.device)
    latents_SPZ = model.head.sample(hidden_BLD[:, length_G - 1].flatten(0, 1), samples)
    latents_BRZ = latents_SPZ.unflatten(1, (B, G)).permute(1, 2, 0, 3).flatten(1, 2)
    chunks = [codec.decode_tokens(latents_BRZ)]
    if prefix is not None:
        own, seen, length_R = BranchCache(), _seen(prefix, lengths), length_G.repeat_interleave(samples)
        first_BR = _part(first_BL, length_R - 1)
        while len(chunks) < steps:
            input_BRD = model.input(chunks[-1], latents_BRZ if model.reads_latents else None)
            hidden_BRD = model.backbone.branch_step(input_BRD, seen, own, length_R, first_BR)
            latents_BRZ = model.head.sample(hidden_BRD.flatten(0, 1), 1)[0].unflatten(0, (B, -1))
            chunks.append(codec.decode_tokens(latents_BRZ))
    return torch.cat(chunks, dim=-1).unflatten(1, (G, samples))


def baseline_probabilities(
    model: TokenLM,
    tokens_BT: Tensor,
    starts_G: Tensor,
    samples: int,
    max_elements: int | None = None,
    documents_BT: Tensor | None = None,
) -> TokenScores:
    """Return what Brier scores need of a softmax model: gold and collision probabilities, exact where they can be.

    P(y) of the next n tokens is the product of n exact factors. The collision sum_x P(x)^2 equals
    E[P(prefix) * sum_v p(v | prefix)^2] over prefixes of n - 1 tokens drawn from the model: exact for n = 1, and
    averaged over S draws for n > 1, with the last factor and the prefix' own probability exact. The marginals of one
    token are averages of p(v | prefix) over the same prefixes, and their collisions over pairs of different prefixes.
    All are unbiased for any S of at least 2.

    Args:
        model: The token language model.
        tokens_BT: True tokens, (B, T).
        starts_G: Start positions, (G,), at least 1; on the CPU they cost no wait for the device.
        samples: Samples S of each prefix, at least 2.
        max_elements: Bound on the size of tensors instead of `largest_tensor`.
        documents_BT: Document of every token, (B, T); needed where the model keeps to documents. The true next tokens
            are a branch like the sampled ones: all of them are given the document of the last token before them.

    Raises:
        ValueError: Fewer than two samples.
        DataError: The model keeps to documents, and they are not given.

    Source: BrierLM as in arXiv 2510.27688; the identity is E_{x ~ P}[P(x)] = sum_x P(x)^2.
    """
    if samples < 2:
        raise ValueError(f"BrierLM needs at least 2 samples per position, got {samples}")
    B, V, starts = len(tokens_BT), model.vocabulary, starts_G.tolist()
    read_BT = tokens_BT[:, : max(starts) + HORIZON - 1]
    first_BT = _part(model.first_seen(documents_BT), slice(read_BT.shape[1]))
    hidden_BTD, prefix = model.backbone.prefill(model.embedding(read_BT), first_BT)
    limit = max_elements or largest_tensor(tokens_BT.device)
    golds = [_gold_probabilities(model, hidden_BTD, tokens_BT, starts, limit)] if first_BT is None else []
    per_branch = max(V, ATTENTION_COPIES * model.config.heads * max(starts))
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for lengths in _slices(starts, B * samples * per_branch, limit):
        target_BG4, seen = targets_at(tokens_BT, torch.tensor(lengths)), _seen(prefix, lengths)
        parts.append(_branch_probabilities(model, hidden_BTD, seen, first_BT, lengths, target_BG4, samples))
        if first_BT is not None:
            golds.append(_gold_of_branches(model, hidden_BTD, seen, first_BT, lengths, target_BG4))
    return TokenScores(torch.cat(golds, dim=1), *(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))


def _gold_probabilities(
    model: TokenLM, hidden_BTD: Tensor, tokens_BT: Tensor, starts: list[int], max_elements: int
) -> Tensor:
    """Return P of the true next n tokens, n = 1..4, (B, G, 4); a position that several starts need is read once."""
    B, device = len(tokens_BT), tokens_BT.device
    windows = [[start - 1 + n for n in range(HORIZON)] for start in starts]
    needed = sorted({position for window in windows for position in window})
    log_p = []
    for positions in _slices(needed, B * model.vocabulary, max_elements):
        position_Q = torch.tensor(positions, device=device)
        logits_BQV = model.lm_head(hidden_BTD[:, position_Q]).float()
        target_BQ = tokens_BT[:, position_Q + 1]
        loss_BQ = functional.cross_entropy(logits_BQV.flatten(0, 1), target_BQ.flatten(), reduction="none")
        log_p.append(-loss_BQ.view(target_BQ.shape))
    place = {position: index for index, position in enumerate(needed)}
    index_G4 = torch.tensor([[place[position] for position in window] for window in windows], device=device)
    return torch.cat(log_p, dim=1)[:, index_G4].cumsum(-1).exp()


def _gold_of_branches(
    model: TokenLM, hidden_BTD: Tensor, prefix: PrefixCache, first_BT: Tensor, lengths: list[int], target_BG4: Tensor
) -> Tensor:
    """Return `_gold_probabilities` of a model that keeps to documents.

    Where a true document ends within the next n tokens, the pass over the true text gives their rest another context
    than sampled branches have. P(y) and the collision must be of one distribution, or their score would not be proper.
    """
    length_G = torch.tensor(lengths, device=hidden_BTD.device)
    hidden_BGD, own, log_p = hidden_BTD[:, length_G - 1], BranchCache(), list[Tensor]()
    for n in range(HORIZON):
        if n:
            input_BGD = model.embedding(target_BG4[..., n - 1])
            hidden_BGD = model.backbone.branch_step(input_BGD, prefix, own, length_G, first_BT[:, length_G - 1])
        logits_PV, target_BG = model.lm_head(hidden_BGD).float().flatten(0, 1), target_BG4[..., n]
        loss_P = functional.cross_entropy(logits_PV, target_BG.flatten(), reduction="none")
        log_p.append(-loss_P.view(target_BG.shape))
    return torch.stack(log_p, dim=-1).cumsum(-1).exp()


def _branch_probabilities(
    model: TokenLM,
    hidden_BTD: Tensor,
    prefix: PrefixCache,
    first_BT: Tensor | None,
    lengths: list[int],
    target_BG4: Tensor,
    samples: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `TokenScores` without gold for some start positions, from S prefixes drawn for each."""
    B, G = target_BG4.shape[:2]
    length_G = torch.tensor(lengths, device=hidden_BTD.device)
    p_BGV = model.lm_head(hidden_BTD[:, length_G - 1]).float().softmax(-1)
    collisions = [p_BGV.square().sum(-1)]
    marginal_golds = [p_BGV.gather(-1, target_BG4[..., :1]).squeeze(-1)]
    marginal_collisions = [collisions[0]]
    drawn_BR = torch.multinomial(p_BGV.flatten(0, 1), samples, replacement=True).view(B, G * samples)
    prefix_p_BR = p_BGV.gather(-1, drawn_BR.view(B, G, samples)).flatten(1)
    own, length_R = BranchCache(), length_G.repeat_interleave(samples)
    first_BR = _part(first_BT, length_R - 1)
    for n in range(1, HORIZON):
        hidden_BRD = model.backbone.branch_step(model.embedding(drawn_BR), prefix, own, length_R, first_BR)
        p_BRV = model.lm_head(hidden_BRD).float().softmax(-1)
        square_BR = p_BRV.square().sum(-1)
        collisions.append((prefix_p_BR * square_BR).view(B, G, samples).mean(-1))
        target_BR = target_BG4[..., n].repeat_interleave(samples, dim=1)
        marginal_golds.append(p_BRV.gather(-1, target_BR.unsqueeze(-1)).view(B, G, samples).mean(-1))
        # sum over pairs s != t of p_s . p_t = |sum_s p_s|^2 - sum_s |p_s|^2
        total_BG = p_BRV.view(B, G, samples, -1).sum(2).square().sum(-1)
        pairs_BG = total_BG - square_BR.view(B, G, samples).sum(-1)
        marginal_collisions.append(pairs_BG / (samples * (samples - 1)))
        if n < HORIZON - 1:
            drawn_BR = torch.multinomial(p_BRV.flatten(0, 1), 1).view(B, G * samples)
            prefix_p_BR = prefix_p_BR * p_BRV.gather(-1, drawn_BR.unsqueeze(-1)).squeeze(-1)
    return (
        torch.stack(collisions, dim=-1),
        torch.stack(marginal_golds, dim=-1),
        torch.stack(marginal_collisions, dim=-1),
    )

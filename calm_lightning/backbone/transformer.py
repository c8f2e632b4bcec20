"""The Llama-style decoder both language models stand on, and its branched continuation.

Training runs `forward` over whole sequences. Evaluation continues every start position with many
sampled branches at once: `prefill` keeps the keys and values of the true sequence, and `branch_step`
lets each branch attend to its own prefix of that sequence and to its own tokens, so nothing is
recomputed and no Python loop runs over positions. Generation is the case of one long branch.

Where a block holds several documents, attention may end at their borders: `first_BL` names the first position that each
position may see. The masked products are computed all the same, and B x L x L additive weights are kept for backward.

Shape suffixes: B batch, L positions, D width, H heads, A head width, R branches, J steps of a branch.
Cost of one branch step: R queries against L keys, as much as a forward pass over R positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from calm_lightning.backbone.config import BackboneConfig
from calm_lightning.backbone.layers import RMSNorm, SwiGLU, rotary_table, rotate

PLAIN_ATTENTION_LENGTH = 1024
"""Longest sequence for which `causal_attention` may hold all L x L weights."""


@dataclass(frozen=True)
class PrefixCache:
    """Keys and values of a sequence, per layer: each (B, H, L, A)."""

    keys: list[Tensor]
    values: list[Tensor]


@dataclass
class BranchCache:
    """Keys and values of what the branches have seen so far, per layer: each (B, H, R, J, A).

    The buffers double when they are full: a long generation copies each position a constant number of times.
    """

    _keys: list[Tensor] = field(default_factory=list)
    _values: list[Tensor] = field(default_factory=list)
    _filled: list[int] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Number of positions each branch has taken, J."""
        return self._filled[-1] if self._filled else 0

    def extend(self, layer: int, key_BHRA: Tensor, value_BHRA: Tensor) -> tuple[Tensor, Tensor]:
        """Append one position to a layer and return all of its keys and values, (B, H, R, J, A)."""
        if layer == len(self._keys):
            self._keys.append(key_BHRA.unsqueeze(3).contiguous())
            self._values.append(value_BHRA.unsqueeze(3).contiguous())
            self._filled.append(1)
            return self._keys[layer], self._values[layer]
        filled = self._filled[layer]
        for buffers, new in ((self._keys, key_BHRA), (self._values, value_BHRA)):
            if filled == buffers[layer].shape[3]:
                buffers[layer] = torch.cat((buffers[layer], torch.empty_like(buffers[layer])), dim=3)
            buffers[layer][:, :, :, filled] = new
        self._filled[layer] = filled + 1
        return self._keys[layer][:, :, :, : filled + 1], self._values[layer][:, :, :, : filled + 1]


class Attention(nn.Module):
    """Multi-head causal attention with rotary positions and no biases."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.d, 3 * config.d, bias=False)
        self.out = nn.Linear(config.d, config.d, bias=False)

    def project(self, hidden_BLD: Tensor, cos_LA: Tensor, sin_LA: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries, rotated keys and values, each (B, H, L, A)."""
        B, L, D = hidden_BLD.shape
        qkv_3BHLA = self.qkv(hidden_BLD).view(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        query, key = rotate(qkv_3BHLA[:2], cos_LA, sin_LA)
        return query, key, qkv_3BHLA[2]

    def merge(self, mixed_BHLA: Tensor) -> Tensor:
        """Join the heads and project, (B, H, L, A) to (B, L, D)."""
        return self.out(mixed_BHLA.transpose(1, 2).flatten(2))


def visibility(first_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what `causal_attention` adds to its logits where attention has a beginning: 0 or -inf, (B, 1, L, L).

    Args:
        first_BL: First position that each position may see, itself at the latest, (B, L).
        dtype: That of the queries.
    """
    position_L = torch.arange(first_BL.shape[1], device=first_BL.device)
    seen_BLL = (position_L >= first_BL.unsqueeze(-1)) & (position_L <= position_L.unsqueeze(-1))
    hidden_B1LL = seen_BLL.logical_not_().unsqueeze(1)
    return torch.zeros(hidden_B1LL.shape, dtype=dtype, device=first_BL.device).masked_fill_(hidden_B1LL, -torch.inf)


def causal_attention(
    query_BHLA: Tensor, key_BHLA: Tensor, value_BHLA: Tensor, visible_B1LL: Tensor | None = None
) -> Tensor:
    """Let position i attend to positions up to i, or to those that `visibility` leaves of them: (B, H, L, A).

    PyTorch's fused kernel, but for short bf16 sequences on CPUs, where two plain matmuls around a softmax take half
    its time (8 blocks x 3 heads: 2.7 ms against 9.9 ms at L = 191, 31 ms against 56 ms at 767, forward and backward).
    """
    H, L, A = query_BHLA.shape[1:]
    if query_BHLA.device.type != "cpu" or query_BHLA.dtype != torch.bfloat16 or L > PLAIN_ATTENTION_LENGTH:
        return functional.scaled_dot_product_attention(
            query_BHLA, key_BHLA, value_BHLA, attn_mask=visible_B1LL, is_causal=visible_B1LL is None
        )
    if visible_B1LL is None:
        mask = torch.full((L, L), -torch.inf, dtype=query_BHLA.dtype).triu(1)
    else:
        mask = visible_B1LL.expand(-1, H, -1, -1).flatten(0, 1)
    query, key = (query_BHLA * A**-0.5).flatten(0, 1), key_BHLA.flatten(0, 1)
    weights = torch.baddbmm(mask, query, key.transpose(-1, -2)).softmax(-1)
    return (weights @ value_BHLA.flatten(0, 1)).view(query_BHLA.shape)


def branch_attention(
    query_BHRA: Tensor, prefix: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], hidden_from_xRL: Tensor
) -> Tensor:
    """Attend to a shared prefix and to each branch's own positions, under one softmax.

    Args:
        query_BHRA: One query per branch, (B, H, R, A).
        prefix: Keys and values of the true sequence, each (B, H, L, A).
        own: Keys and values of each branch, each (B, H, R, J, A).
        hidden_from_xRL: True where branch r must not see prefix position l, (R, L) or (B, 1, R, L).

    Returns:
        Mixed values, (B, H, R, A).
    """
    scale = query_BHRA.shape[-1] ** -0.5
    prefix_logits = (query_BHRA @ prefix[0].transpose(-1, -2)).float().masked_fill(hidden_from_xRL, -torch.inf)
    own_logits = torch.einsum("bhra,bhrja->bhrj", query_BHRA, own[0]).float()
    weights = torch.softmax(torch.cat((prefix_logits, own_logits), dim=-1) * scale, dim=-1).to(own[1].dtype)
    prefix_weights, own_weights = weights.split((prefix_logits.shape[-1], own_logits.shape[-1]), dim=-1)
    return prefix_weights @ prefix[1] + torch.einsum("bhrj,bhrja->bhra", own_weights, own[1])


class Block(nn.Module):
    """Pre-norm attention and SwiGLU, each added to the residual stream."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.d, config.norm_eps)
        self.mlp = SwiGLU(config.d, config.intermediate)

    def forward(
        self, hidden_BLD: Tensor, cos_LA: Tensor, sin_LA: Tensor, visible_B1LL: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the block's output (B, L, D) and its keys and values (B, H, L, A)."""
        query, key, value = self.attention.project(self.attention_norm(hidden_BLD), cos_LA, sin_LA)
        mixed = causal_attention(query, key, value, visible_B1LL)
        return self.finish(hidden_BLD, mixed), key, value

    def finish(self, hidden_BLD: Tensor, mixed_BHLA: Tensor) -> Tensor:
        """Add the attended values and the feed-forward to the residual stream, (B, L, D)."""
        hidden_BLD = hidden_BLD + self.attention.merge(mixed_BHLA)
        return hidden_BLD + self.mlp(self.mlp_norm(hidden_BLD))


class Transformer(nn.Module):
    """RMSNorm, rotary positions, SwiGLU, causal attention: vectors in, vectors out, no vocabulary."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.d, config.norm_eps)

    def _angles(self, positions_L: Tensor) -> tuple[Tensor, Tensor]:
        return rotary_table(positions_L, self.config.d // self.config.heads, self.config.rope_theta)

    def _visible(self, first_BL: Tensor | None) -> Tensor | None:
        """Return `visibility` in the dtype that the queries will have, made once for all layers."""
        if first_BL is None:
            return None
        block, device = self.blocks[0], first_BL.device.type
        assert isinstance(block, Block)
        weight = block.attention.qkv.weight
        autocast = torch.is_autocast_enabled(device) and weight.dtype != torch.float64  # which autocast leaves alone
        return visibility(first_BL, torch.get_autocast_dtype(device) if autocast else weight.dtype)

    def forward(self, input_BLD: Tensor, first_BL: Tensor | None = None) -> Tensor:
        """Map input vectors to hidden states.

        Args:
            input_BLD: Input vectors, (B, L, D).
            first_BL: First position that each position sees, int64, (B, L), itself at the latest; None means the
                first of all. It never falls along a row. Rotary positions are relative, so they are not counted anew.

        Returns:
            Hidden states, (B, L, D); position i sees positions `first_BL[:, i]` to i.
        """
        cos, sin = self._angles(torch.arange(input_BLD.shape[1], device=input_BLD.device))
        visible = self._visible(first_BL)
        for block in self.blocks:
            input_BLD, _, _ = block(input_BLD, cos, sin, visible)
        return self.norm(input_BLD)

    def prefill(self, input_BLD: Tensor, first_BL: Tensor | None = None) -> tuple[Tensor, PrefixCache]:
        """Run `forward` and also return the keys and values that `branch_step` continues from."""
        cos, sin = self._angles(torch.arange(input_BLD.shape[1], device=input_BLD.device))
        visible, cache = self._visible(first_BL), PrefixCache([], [])
        for block in self.blocks:
            input_BLD, key, value = block(input_BLD, cos, sin, visible)
            cache.keys.append(key)
            cache.values.append(value.contiguous())  # a view of q, k and v would be copied in every branch step
        return self.norm(input_BLD), cache

    def branch_step(
        self,
        input_BRD: Tensor,
        prefix: PrefixCache,
        own: BranchCache,
        prefix_length: Tensor,
        prefix_first: Tensor | None = None,
    ) -> Tensor:
        """Advance every branch by one position.

        Args:
            input_BRD: The next input of each branch, (B, R, D).
            prefix: Cache of the true sequences; shorter ones are padded at their end.
            own: Cache of the branches; one position is appended to it.
            prefix_length: How many prefix positions each branch continues from, at least 1: (R,), the same in every
                row, or (B, R). No branch sees what lies behind them, be it the true continuation or padding.
            prefix_first: First prefix position that each branch sees, (R,) or (B, R): that of the position it continues
                from, so that a branch stays in the document it began in. None means the first of all.

        Returns:
            Hidden states, (B, R, D), equal to running `forward` on each branch's whole sequence.
        """
        cos, sin = self._angles(prefix_length + own.steps)
        prefix_positions_L = torch.arange(prefix.keys[0].shape[2], device=input_BRD.device)
        hidden_from = prefix_positions_L >= prefix_length.unsqueeze(-1)
        if prefix_first is not None:
            hidden_from = hidden_from | (prefix_positions_L < prefix_first.unsqueeze(-1))
        if prefix_length.ndim == 2:
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        if hidden_from.ndim == 3:
            hidden_from = hidden_from.unsqueeze(1)
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            query, key, value = block.attention.project(block.attention_norm(input_BRD), cos, sin)
            branch = own.extend(layer, key, value)
            mixed = branch_attention(query, (prefix.keys[layer], prefix.values[layer]), branch, hidden_from)
            input_BRD = block.finish(input_BRD, mixed)
        return self.norm(input_BRD)


def init_weights(module: nn.Module, std: float = 0.02) -> None:
    """Draw every matrix and embedding below `module` from N(0, std^2) and zero every bias (the released recipe)."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


def init_xavier(module: nn.Module) -> None:
    """Draw every matrix below `module` so that signals keep their size through it, and zero every bias.

    A stack of narrow linear layers at std 0.02 passes next to nothing on: with d = 192 the head's three layers shrink
    their input a hundredfold, and it learns to ignore the hidden state. At d = 1024 and beyond the two rules agree.
    Source: Glorot & Bengio 2010, equation 16.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)

"""What a data loader yields."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TokenBatch(NamedTuple):
    """One micro-batch of token blocks, as one rank sees it.

    Attributes:
        tokens: Token ids, int64, shape (B, T).
        index: Number of the global micro-batch, a plain int: the stream may be resumed at `index + 1`.
        blocks: Number of every block in its split, int64, shape (B,).
    """

    tokens: Tensor
    index: int  # type: ignore[assignment]  # hides tuple.index, which no batch needs
    blocks: Tensor

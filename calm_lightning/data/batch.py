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
        documents: Number in its split of the document that each token is of, int64, shape (B, T); a separator belongs
            to the document it precedes. Evaluation only: None in training.
        domains: Number of that document's domain, among the names the loader gives, int64, shape (B, T); likewise.
    """

    tokens: Tensor
    index: int  # type: ignore[assignment]  # hides tuple.index, which no batch needs
    blocks: Tensor
    documents: Tensor | None = None
    domains: Tensor | None = None

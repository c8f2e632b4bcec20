"""What a data loader yields."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TokenBatch(NamedTuple):
    """One micro-batch of token blocks, as one rank sees it.

    Attributes:
        tokens: Token ids, int64, shape (B, T).
        index: Number of the global micro-batch, a plain int: the stream may be resumed at `index + 1`.
        blocks: A number for every block, int64, shape (B,), the same wherever the block comes up: its place in the
            split for evaluation, `shard * 2^32 + place in the shard` in training (domains with streams of their own
            are numbered one behind another).
        documents: Number in its split of the document that each token is of, int64, shape (B, T); a separator belongs
            to the document it precedes. None in training, unless the model keeps documents apart.
        domains: Number of that document's domain, among the names the loader gives, int64, shape (B, T); likewise.
        replaced: Blocks of this micro-batch that stand for ones of a shard that was skipped, a plain int.
    """

    tokens: Tensor
    index: int  # type: ignore[assignment]  # hides tuple.index, which no batch needs
    blocks: Tensor
    documents: Tensor | None = None
    domains: Tensor | None = None
    replaced: int = 0

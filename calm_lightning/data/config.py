"""Configuration of the token stream."""

from dataclasses import dataclass


@dataclass
class DataConfig:
    """Where the shards are and how they become batches.

    Attributes:
        corpus: Directory made by `calm data prepare` (it holds manifest.json).
        train_split: Split that training streams.
        eval_split: Split that every evaluation reads, always the same blocks in the same order.
        block_tokens: Tokens per block T, a multiple of K; 768 serves K = 1, 2, 3, 4, 6, 8 and 12.
        batch_tokens: Tokens per global micro-batch, a multiple of block_tokens.
        eval_batch_tokens: Tokens per evaluation batch, a multiple of block_tokens.
        eval_max_blocks: Evaluate on this many evenly spaced blocks; null means all of the split.
        shuffle_shards: Shards whose blocks are shuffled together (bounds memory).
        workers: DataLoader worker processes; never changes what is streamed.
    """

    corpus: str = ""
    train_split: str = "train"
    eval_split: str = "val"
    block_tokens: int = 768
    batch_tokens: int = 6144
    eval_batch_tokens: int = 6144
    eval_max_blocks: int | None = None
    shuffle_shards: int = 8
    workers: int = 0

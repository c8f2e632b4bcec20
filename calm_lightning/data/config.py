"""Configuration of the token stream."""

from dataclasses import dataclass, field

ERROR, SKIP = "error", "skip"


@dataclass
class DataConfig:
    """Where the shards are and how they become batches.

    Attributes:
        corpus: Directory or address of a corpus (it holds manifest.json).
        shards_at: Where shards are read from if not beside the manifest: a directory, an address, or `pipe:COMMAND`,
            whose output is the shard; `{}` in it stands for the shard's file name.
        tokenizer: Tokenizer of a corpus of text: bpe:SIZE, bytes, llama3, llama3:PATH or file:PATH. A corpus of tokens
            has its own.
        train_split: Split that training streams.
        eval_split: Split that every evaluation reads, always the same blocks in the same order.
        block_tokens: Tokens per block T, a multiple of K; 768 serves K = 1, 2, 3, 4, 6, 8 and 12.
        batch_tokens: Tokens per global micro-batch, a multiple of block_tokens.
        eval_batch_tokens: Tokens per evaluation batch, a multiple of block_tokens.
        eval_max_blocks: Evaluate on this many evenly spaced blocks; null means all of the split.
        shuffle_shards: Shards whose blocks are shuffled together.
        weights: Share of training tokens by domain, in any unit; domains left out are not trained on.
        epochs: Passes over a domain for every pass over the others (1): 2 doubles its share, 0 leaves it out.
        held_out: Domains that are not trained on.
        on_bad_shard: What training does when a shard cannot be had or is damaged: "error" stops; "skip" takes blocks
            of the next shards instead, counted and logged. Evaluation always stops.
        workers: DataLoader worker processes; never changes what is streamed.
        record_batches: Write the SHA-256 of every training batch to batches.csv in the run's directory.
        cache_dir: Where remote shards and the tokens of text shards are kept; empty means
            $XDG_CACHE_HOME/calm-lightning (~/.cache/calm-lightning).
        cache_gb: Size at which the cache drops what was used longest ago, 10^9 bytes.
        retries: Further attempts at a remote shard, with growing pauses.
        timeout: Seconds without a byte after which an attempt has failed.
    """

    corpus: str = ""
    shards_at: str = ""
    tokenizer: str = ""
    train_split: str = "train"
    eval_split: str = "val"
    block_tokens: int = 768
    batch_tokens: int = 6144
    eval_batch_tokens: int = 6144
    eval_max_blocks: int | None = None
    shuffle_shards: int = 8
    weights: dict[str, float] = field(default_factory=dict)
    epochs: dict[str, float] = field(default_factory=dict)
    held_out: list[str] = field(default_factory=list)
    on_bad_shard: str = ERROR
    workers: int = 0
    record_batches: bool = False
    cache_dir: str = ""
    cache_gb: float = 20.0
    retries: int = 5
    timeout: float = 60.0

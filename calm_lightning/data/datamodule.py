"""PileDataModule: the token stream of every stage, as Lightning expects it.

Its whole training state is one integer, `position`: the next global micro-batch. Whoever consumes batches
sets it (`position = batch.index + 1`), since prefetching workers run ahead of what was trained on.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import lightning

from calm_lightning.data.config import DataConfig
from calm_lightning.data.shards import Manifest
from calm_lightning.data.stream import BlockStream, EvaluationBlocks, ShardReader, TokenLoader
from calm_lightning.data.tokenizers import Tokenizer, check_fingerprint, load_tokenizer
from calm_lightning.errors import DataError

STATE_VERSION = 1
TEST_SPLIT = "test"


class PileDataModule(lightning.LightningDataModule):
    """Token blocks of a prepared corpus.

    Attributes:
        config: The data configuration.
        seed: Seed of the order of training blocks.
        position: Next global micro-batch that training should consume.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        """Open a corpus.

        Args:
            config: The data configuration; `config.corpus` must be a prepared corpus.
            seed: Seed of the order of training blocks.

        Raises:
            DataError: There is no such corpus, or its tokenizer is not the one its shards were made with.
        """
        super().__init__()
        if not config.corpus:
            raise DataError(
                "data.corpus is empty: make a corpus with `calm data prepare sample --out corpora/sample-bytes "
                "--tokenizer bytes` and set data.corpus=corpora/sample-bytes"
            )
        self.config = config
        self.seed = seed
        self.position = 0
        self._corpus = Path(config.corpus)
        self._manifest = Manifest.load(self._corpus)
        check_fingerprint(self._corpus, self._manifest.tokenizer)

    @property
    def manifest(self) -> Manifest:
        """The corpus' manifest."""
        return self._manifest

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The corpus' tokenizer."""
        return load_tokenizer(self._corpus, self._manifest.tokenizer)

    @property
    def vocabulary(self) -> int:
        """Vocabulary size V of the corpus' tokenizer."""
        return self._manifest.tokenizer.vocabulary

    def train_dataloader(self) -> TokenLoader:
        """Return the endless stream of training micro-batches from `position` on."""
        rank, world = self._place()
        stream = BlockStream(
            self._reader(self.config.train_split, self.config.shuffle_shards),
            seed=self.seed,
            shuffle_shards=self.config.shuffle_shards,
            batch_blocks=self.config.batch_tokens // self.config.block_tokens,
            start=self.position,
            rank=rank,
            world=world,
        )
        return TokenLoader(stream, self.config.workers)

    def val_dataloader(self) -> TokenLoader:
        """Return the evaluation blocks of `config.eval_split`, the same in the same order every time."""
        return self._evaluation_loader(self.config.eval_split)

    def test_dataloader(self) -> TokenLoader:
        """Return the evaluation blocks of the split "test"."""
        return self._evaluation_loader(TEST_SPLIT)

    def state_dict(self) -> dict[str, Any]:
        """Return the training state: the position, and the corpus it is a position in."""
        return {"version": STATE_VERSION, "position": self.position, "corpus": self._manifest.corpus_hash}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the position of a saved state.

        Raises:
            DataError: The state has another version or belongs to another corpus.
        """
        if state_dict.get("version") != STATE_VERSION:
            raise DataError(
                f"the saved data position has version {state_dict.get('version')}, this program reads {STATE_VERSION}"
            )
        corpus = str(state_dict["corpus"])
        if corpus != self._manifest.corpus_hash:
            raise DataError(
                f"the checkpoint was trained on corpus {corpus[:12]}, data.corpus={self.config.corpus} is "
                f"{self._manifest.corpus_hash[:12]}: use the original corpus, or start a new run"
            )
        self.position = int(state_dict["position"])

    def _reader(self, split: str, keep: int, documents: bool = False) -> ShardReader:
        return ShardReader(self._corpus, self._manifest, split, self.config.block_tokens, keep, documents)

    def _place(self) -> tuple[int, int]:
        """Return this process' rank and the number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _evaluation_loader(self, split: str) -> TokenLoader:
        rank, world = self._place()
        blocks = EvaluationBlocks(
            self._reader(split, keep=1, documents=True),
            batch_blocks=self.config.eval_batch_tokens // self.config.block_tokens,
            max_blocks=self.config.eval_max_blocks,
            rank=rank,
            world=world,
        )
        # no workers: cutting a slice is cheaper than starting a process for every evaluation
        return TokenLoader(blocks)

"""PileDataModule: the token stream of every stage, as Lightning expects it.

Its training state is one integer, `position`: the next global micro-batch (and how many blocks stood in for others, for
the record). It moves when a step begins, since prefetching workers run ahead of the training.
"""

from __future__ import annotations

from typing import Any

import lightning

from calm_lightning.data.batch import TokenBatch
from calm_lightning.data.blocks import BlockReader
from calm_lightning.data.config import SKIP, DataConfig
from calm_lightning.data.corpus import Corpus
from calm_lightning.data.mixture import Portion, domain_shares
from calm_lightning.data.shards.manifest import TOKENS, Manifest
from calm_lightning.data.stream import BlockStream, EvaluationBlocks, TokenLoader
from calm_lightning.data.tokenizers import Tokenizer
from calm_lightning.errors import DataError

STATE_VERSION = 2
TEST_SPLIT = "test"


class PileDataModule(lightning.LightningDataModule):
    """Token blocks of a corpus, of either kind.

    Attributes:
        config: The data configuration.
        seed: Seed of the order of training blocks.
        position: Next global micro-batch that training should consume.
        replaced: Blocks trained on so far that stood for ones of a skipped shard.
        corpus: The corpus.
    """

    def __init__(self, config: DataConfig, seed: int, documents: bool = False) -> None:
        """Open a corpus.

        Args:
            config: The data configuration; `config.corpus` must be a prepared corpus.
            seed: Seed of the order of training blocks.
            documents: Whether training batches tell the document of every token, as evaluation batches always do.

        Raises:
            DataError: There is no such corpus, its tokenizer is not the one its shards were made with, or the
                configured mixture of domains is impossible.
        """
        super().__init__()
        self.config = config
        self.seed = seed
        self.position = 0
        self.replaced = 0
        self.corpus = Corpus(config, commands=True)
        self._training_documents = documents

    @property
    def manifest(self) -> Manifest:
        """The corpus' manifest."""
        return self.corpus.manifest

    @property
    def tokenizer(self) -> Tokenizer:
        """The corpus' tokenizer, or the configured one of a corpus of text."""
        return self.corpus.tokenizer

    @property
    def vocabulary(self) -> int:
        """Vocabulary size V of the tokenizer."""
        return self.corpus.vocabulary

    def shares(self) -> dict[str, float] | None:
        """Return the share of training blocks of every domain, or None where the corpus is read as it is.

        Raises:
            DataError: The configured mixture is impossible.
        """
        domains = self.manifest.split(self.config.train_split).domains
        return domain_shares(
            self.config, {name: counts.tokens or counts.text_bytes for name, counts in domains.items()}
        )

    def portions(self, run_tokens: int) -> dict[str, Portion]:
        """Return what a run of so many training tokens reads of every domain of the training split.

        Raises:
            DataError: The configured mixture is impossible.
            ShardError: A shard of text had to be tokenised to be counted, and cannot be had.
        """
        shares, reader = self.shares(), self._reader(self.config.train_split, documents=False)
        split, T = self.config.train_split, self.config.block_tokens
        counts = [self.corpus.store.tokens(split, shard) for shard in range(reader.shards)]
        sizes = {name: sum(count.get(name, 0) for count in counts) for name in reader.domains}
        total = sum(sizes.values())
        portions = {}
        for name, tokens in sizes.items():
            cut = tokens  # without a mixture, what is left over is not of any one domain
            if shares is not None:
                cut = sum(reader.blocks_of(shard, name) * T for shard in range(reader.shards))
            share = tokens / total if shares is None else shares.get(name, 0.0)
            read = share * run_tokens
            portions[name] = Portion(tokens, share, read, read / cut if cut else 0.0, tokens - cut)
        return portions

    def train_dataloader(self) -> TokenLoader:
        """Return the endless stream of training micro-batches from `position` on."""
        rank, world = self._place()
        reader = self._reader(self.config.train_split, self._training_documents, self.config.on_bad_shard == SKIP)
        stream = BlockStream(
            reader,
            seed=self.seed,
            shuffle_shards=self.config.shuffle_shards,
            batch_blocks=self.config.batch_tokens // self.config.block_tokens,
            start=self.position,
            rank=rank,
            world=world,
            shares=self.shares(),
            counted=self.manifest.kind == TOKENS,
        )
        return TokenLoader(stream, self.config.workers, position=lambda: self.position)

    def on_after_batch_transfer(self, batch: TokenBatch, dataloader_idx: int) -> TokenBatch:
        """Note a training batch as its step begins: what is saved after the step continues behind it."""
        if self.trainer is not None and self.trainer.training:
            self.consumed(batch)
        return batch

    def consumed(self, batch: TokenBatch) -> None:
        """Note that a training batch is trained on: the stream continues behind it. Lightning's trainer does so."""
        self.position = batch.index + 1
        self.replaced += batch.replaced

    def val_dataloader(self) -> TokenLoader:
        """Return the evaluation blocks of `config.eval_split`, the same in the same order every time."""
        return self._evaluation_loader(self.config.eval_split)

    def test_dataloader(self) -> TokenLoader:
        """Return the evaluation blocks of the split "test"."""
        return self._evaluation_loader(TEST_SPLIT)

    def state_dict(self) -> dict[str, Any]:
        """Return the training state: the position, and the corpus it is a position in."""
        place = {"position": self.position, "replaced": self.replaced}
        return {"version": STATE_VERSION, "corpus": self.corpus.hash} | place

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
        if corpus != self.corpus.hash:
            raise DataError(
                f"the checkpoint was trained on corpus {corpus[:12]}, data.corpus={self.config.corpus} is "
                f"{self.corpus.hash[:12]}: use the original corpus, or start a new run"
            )
        self.position, self.replaced = int(state_dict["position"]), int(state_dict["replaced"])

    def _reader(self, split: str, documents: bool, skip: bool = False) -> BlockReader:
        return BlockReader(
            self.corpus.store, self.manifest, split, self.config.block_tokens, documents=documents, skip=skip
        )

    def _place(self) -> tuple[int, int]:
        """Return this process' rank and the number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _evaluation_loader(self, split: str) -> TokenLoader:
        rank, world = self._place()
        reader = self._reader(split, documents=True)
        blocks = EvaluationBlocks(
            reader,
            batch_blocks=self.config.eval_batch_tokens // self.config.block_tokens,
            max_blocks=self.config.eval_max_blocks,
            rank=rank,
            world=world,
        )
        if not blocks.total:
            raise DataError(f"no shard of {self.corpus.place} holds {reader.described()}: use shorter blocks")
        # no workers: cutting a slice is cheaper than starting a process for every evaluation
        return TokenLoader(blocks)

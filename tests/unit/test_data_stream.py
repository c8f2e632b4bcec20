"""The stream as a function, on real shards: ranks, workers, resumption, damage."""

from __future__ import annotations

import json
import shutil
from itertools import islice
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.apply_func import move_data_to_device

from calm_lightning.data.batch import TokenBatch
from calm_lightning.data.config import DataConfig
from calm_lightning.data.datamodule import PileDataModule
from calm_lightning.data.shards import Manifest, file_sha256
from calm_lightning.data.stream import BlockStream, EvaluationBlocks, ShardReader
from calm_lightning.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.verify import read_shard

T = 16


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("corpora") / "small"
    for split, number in (("train", 60), ("val", 9)):
        rows = [{"text": f"{split} document {i} " + "abcdefghij"[: i % 11] * 7} for i in range(number)]
        (raw / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare([raw], out, "bytes", shard_tokens=500)
    return out


@pytest.fixture
def own_corpus(corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus, tmp_path / "own"))


def reader(corpus: Path, split: str = "train", block_tokens: int = T, keep: int = 2) -> ShardReader:
    return ShardReader(corpus, Manifest.load(corpus), split, block_tokens, keep)


def stream(corpus: Path, *, start: int = 0, rank: int = 0, world: int = 1, batch_blocks: int = 6) -> BlockStream:
    return BlockStream(
        reader(corpus), seed=3, shuffle_shards=2, batch_blocks=batch_blocks, start=start, rank=rank, world=world
    )


def rows_of(batches: list[TokenBatch]) -> list[list[int]]:
    return [row for batch in batches for row in batch.tokens.tolist()]


def expected_blocks(corpus: Path, split: str) -> list[list[int]]:
    """Cut the split's shards into blocks from the documents that another reader finds in them."""
    manifest, blocks = Manifest.load(corpus), []
    for shard in manifest.splits[split].shards:
        tokens = np.concatenate([d.tokens for d in read_shard(corpus / shard.file, manifest.dtype)]).tolist()
        blocks += [tokens[i : i + T] for i in range(0, len(tokens) - T + 1, T)]
    return blocks


def test_an_epoch_holds_every_block_of_the_documents_once(corpus: Path) -> None:
    expected = expected_blocks(corpus, "train")
    batches = list(islice(stream(corpus, batch_blocks=1), len(expected)))
    assert sorted(rows_of(batches)) == sorted(expected)
    assert len(Manifest.load(corpus).splits["train"].shards) > 3  # so that groups and the cache matter
    for batch in batches:
        assert batch.tokens[0].tolist() == expected[int(batch.blocks[0])]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 60), st.sampled_from([1, 2, 3, 6]))
def test_ranks_together_hold_the_global_batch_at_every_start(corpus: Path, start: int, world: int) -> None:
    whole = next(iter(stream(corpus, start=start)))
    parts = [next(iter(stream(corpus, start=start, rank=rank, world=world))) for rank in range(world)]
    assert {part.index for part in parts} == {whole.index} == {start}
    assert sorted(int(n) for part in parts for n in part.blocks) == sorted(whole.blocks.tolist())
    assert {part.tokens.shape for part in parts} == {(6 // world, T)}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 40), st.integers(1, 20))
def test_a_resumed_stream_is_the_tail_of_the_uninterrupted_one(corpus: Path, start: int, length: int) -> None:
    whole = list(islice(stream(corpus), start + length))
    resumed = list(islice(stream(corpus, start=start), length))
    assert [batch.index for batch in resumed] == list(range(start, start + length))
    assert rows_of(resumed) == rows_of(whole[start:])


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(corpus: Path, workers: int) -> None:
    def batches(number: int) -> list[TokenBatch]:
        config = DataConfig(str(corpus), block_tokens=T, batch_tokens=4 * T, shuffle_shards=2, workers=number)
        module = PileDataModule(config, seed=5)
        module.position = 7
        return list(islice(module.train_dataloader(), 10))

    alone, shared = batches(0), batches(workers)
    assert [batch.index for batch in shared] == list(range(7, 17))
    assert rows_of(shared) == rows_of(alone)


def test_a_split_smaller_than_a_batch_runs_on_into_the_next_epoch(corpus: Path) -> None:
    total = len(expected_blocks(corpus, "train"))
    batch = next(iter(stream(corpus, batch_blocks=2 * total)))
    assert sorted(batch.blocks.tolist()) == sorted([*range(total), *range(total)])


def test_a_batch_that_processes_cannot_share_is_refused(corpus: Path) -> None:
    with pytest.raises(DataError, match="multiple of 4"):
        stream(corpus, world=4)


def test_evaluation_is_the_same_blocks_in_order_every_time(corpus: Path) -> None:
    expected = expected_blocks(corpus, "val")
    blocks = EvaluationBlocks(reader(corpus, "val"), batch_blocks=4, max_blocks=None)
    first, second = list(blocks), list(blocks)
    assert rows_of(first) == rows_of(second) == expected
    assert [batch.index for batch in first] == list(range(len(blocks)))
    some = EvaluationBlocks(reader(corpus, "val"), batch_blocks=4, max_blocks=5)
    assert rows_of(list(some)) == [expected[i * len(expected) // 5] for i in range(5)]
    parts = [EvaluationBlocks(reader(corpus, "val"), batch_blocks=4, max_blocks=None, rank=r, world=2) for r in (0, 1)]
    assert sorted(n for part in parts for n in part.block_numbers) == list(range(len(expected)))


def test_the_index_stays_a_plain_int_on_its_way_to_a_device(corpus: Path) -> None:
    batch = next(iter(stream(corpus, start=9)))
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, TokenBatch) and type(moved.index) is int and moved.index == 9
    assert moved.tokens.device.type == "meta" and batch.tokens.dtype == torch.int64


def test_blocks_longer_than_every_shard_are_refused(corpus: Path) -> None:
    with pytest.raises(DataError, match=r"block_tokens=5000 is longer than any shard.*--shard-tokens"):
        reader(corpus, block_tokens=5000)


def read_all(corpus: Path) -> None:
    list(EvaluationBlocks(reader(corpus), batch_blocks=1, max_blocks=None))


def test_a_missing_shard_is_named(own_corpus: Path) -> None:
    (own_corpus / "train-000001.tar").unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar cannot be read"):
        read_all(own_corpus)


def test_a_truncated_shard_is_named_with_its_size(own_corpus: Path) -> None:
    path = own_corpus / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"train-000001\.tar is damaged.*700 bytes"):
        read_all(own_corpus)


def rewrite_record(corpus: Path, vocabulary: int = 257, **changes: object) -> None:
    """Make the manifest agree with train-000000.tar's bytes again, but for `changes`."""
    manifest = Manifest.load(corpus)
    value = json.loads(manifest.to_json())
    shard = value["splits"]["train"]["shards"][0]
    path = corpus / shard["file"]
    domain = value["splits"]["train"]["domains"]["unlabelled"]
    for key in set(changes) & set(domain):
        domain[key] += int(str(changes[key])) - shard[key]
        value["splits"]["train"]["totals"][key] = domain[key]
    shard.update(sha256=file_sha256(path), bytes=path.stat().st_size, **changes)
    value["tokenizer"]["vocabulary"] = vocabulary
    (corpus / "manifest.json").write_text(json.dumps(value))


def test_a_shard_cut_in_the_tar_is_refused_though_its_checksum_fits(own_corpus: Path) -> None:
    path = own_corpus / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:700])
    rewrite_record(own_corpus)
    with pytest.raises(DataError, match=r"train-000000\.tar is not a readable token shard"):
        read_all(own_corpus)


def test_a_shard_with_another_token_count_than_the_manifest_is_refused(own_corpus: Path) -> None:
    rewrite_record(own_corpus, tokens=499)
    with pytest.raises(DataError, match=r"its manifest says 499"):
        read_all(own_corpus)


def test_ids_beyond_the_vocabulary_are_refused(own_corpus: Path) -> None:
    rewrite_record(own_corpus, vocabulary=200)
    with pytest.raises(DataError, match=r"holds token id 256, the tokenizer has 200"):
        read_all(own_corpus)


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_reaches_the_user_as_one_sentence(own_corpus: Path, workers: int) -> None:
    for shard in Manifest.load(own_corpus).splits["train"].shards:
        (own_corpus / shard.file).write_bytes(b"")
    config = DataConfig(str(own_corpus), block_tokens=T, batch_tokens=T, workers=workers)
    with pytest.raises(DataError, match=r"^shard [^\n]*prepare the corpus again$"):
        next(iter(PileDataModule(config, seed=0).train_dataloader()))


def test_shards_are_read_once_while_they_fit_in_memory(own_corpus: Path) -> None:
    shards = Manifest.load(own_corpus).splits["train"].shards
    blocks = reader(own_corpus, keep=len(shards))
    list(EvaluationBlocks(blocks, batch_blocks=1, max_blocks=None))
    for shard in shards:
        (own_corpus / shard.file).unlink()
    list(EvaluationBlocks(blocks, batch_blocks=1, max_blocks=None))


class TestPileDataModule:
    def module(self, corpus: Path, **changes: object) -> PileDataModule:
        return PileDataModule(DataConfig(str(corpus), block_tokens=T, batch_tokens=2 * T, **changes), seed=0)  # type: ignore[arg-type]

    def test_it_knows_its_corpus(self, corpus: Path) -> None:
        module = self.module(corpus)
        assert (module.vocabulary, module.tokenizer.kind) == (257, "bytes")
        assert module.manifest == Manifest.load(corpus)

    def test_a_saved_position_continues_the_stream(self, corpus: Path) -> None:
        module = self.module(corpus)
        whole = list(islice(module.train_dataloader(), 8))
        module.position = whole[4].index + 1
        restored = self.module(corpus)
        restored.load_state_dict(module.state_dict())
        assert rows_of(list(islice(restored.train_dataloader(), 3))) == rows_of(whole[5:])

    def test_a_position_in_another_corpus_is_refused(self, corpus: Path) -> None:
        module = self.module(corpus)
        with pytest.raises(DataError, match="was trained on corpus 0000"):
            module.load_state_dict({**module.state_dict(), "corpus": "0" * 64})
        with pytest.raises(DataError, match="version 9"):
            module.load_state_dict({**module.state_dict(), "version": 9})

    def test_no_corpus_says_how_to_make_one(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"data\.corpus is empty.*calm data prepare"):
            PileDataModule(DataConfig(), seed=0)
        with pytest.raises(DataError, match="calm data prepare"):
            PileDataModule(DataConfig(str(tmp_path)), seed=0)

    def test_a_split_that_is_not_there_is_refused(self, corpus: Path) -> None:
        with pytest.raises(DataError, match="no split 'test'; it has train, val"):
            self.module(corpus).test_dataloader()

    def test_lightning_trains_and_evaluates_on_it(self, corpus: Path, tmp_path: Path) -> None:
        seen: list[int] = []

        class Counter(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.zeros(()))

            def training_step(self, batch: TokenBatch, batch_idx: int) -> torch.Tensor:
                seen.append(batch.index)
                return self.weight * batch.tokens.float().mean()

            def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
                assert batch.tokens.shape[1] == T

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        trainer = lightning.Trainer(
            max_steps=5, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, val_check_interval=5,
        )  # fmt: skip
        module = self.module(corpus)
        module.position = 3
        trainer.fit(Counter(), datamodule=module)
        assert seen == [3, 4, 5, 6, 7]

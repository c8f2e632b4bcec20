"""The stream as a function, on real shards: ranks, workers, resumption, mixtures, damage."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.apply_func import move_data_to_device

from calm_lightning.data.batch import TokenBatch
from calm_lightning.data.blocks import BlockReader, Blocks
from calm_lightning.data.config import DataConfig
from calm_lightning.data.corpus import Corpus
from calm_lightning.data.datamodule import PileDataModule
from calm_lightning.data.files.fetch import Access, CorpusFiles
from calm_lightning.data.shards.manifest import Manifest, SplitRecord
from calm_lightning.data.shards.tokens import file_sha256, open_token_shard
from calm_lightning.data.stores import store
from calm_lightning.data.stream import BlockStream, EvaluationBlocks
from calm_lightning.data.texts import CorpusSplit
from calm_lightning.errors import DataError, ShardError

T = 16
SHARE = {"Books": 0.25, "Web": 0.75}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, make_corpus: Any) -> Path:
    out = tmp_path_factory.mktemp("corpora") / "small"
    domains = ("Books", "Web", "Web", "Règles")
    rows = {
        split: [(f"{split} document {i} " + "abcdefghij"[: i % 11] * 7, domains[i % 4]) for i in range(number)]
        for split, number in (("train", 80), ("val", 9))
    }
    make_corpus(out, rows, 10)
    return out


@pytest.fixture
def own_corpus(corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus, tmp_path / "own"))


def reader(corpus: Path, split: str = "train", block_tokens: int = T, **options: bool) -> BlockReader:
    opened = Corpus(DataConfig(str(corpus)))
    return BlockReader(opened.store, opened.manifest, split, block_tokens, **options)


def stream(
    corpus: Path,
    *,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    batch_blocks: int = 12,
    shares: dict[str, float] | None = None,
    **options: bool,
) -> BlockStream:
    return BlockStream(
        reader(corpus, **options),
        seed=3,
        shuffle_shards=2,
        batch_blocks=batch_blocks,
        start=start,
        rank=rank,
        world=world,
        shares=shares,
    )


def rows_of(batches: list[TokenBatch]) -> list[list[int]]:
    return [row for batch in batches for row in batch.tokens.tolist()]


def expected_blocks(corpus: Path, split: str, domain: str | None = None) -> dict[int, list[int]]:
    """Cut the split's shards into blocks by hand, each under the number that names it in training."""
    manifest, blocks = Manifest.load(corpus), {}
    names = list(manifest.splits[split].domains)
    for number, record in enumerate(manifest.splits[split].shards):
        shard = open_token_shard(corpus / record.file, manifest.dtype)
        begins = [0, *shard.ends.tolist()[:-1]]
        documents = [shard.tokens[begin:end].tolist() for begin, end in zip(begins, shard.ends, strict=True)]
        labels = [shard.names[label] for label in shard.domains]
        first = 0
        for name in [None] if domain is None else names[: names.index(domain) + 1]:
            chosen = [d for d, label in zip(documents, labels, strict=True) if name in (None, label)]
            tokens = [token for document in chosen for token in document]
            cut = [tokens[i : i + T] for i in range(0, len(tokens) - T + 1, T)]
            if name == domain:
                blocks |= {number << 32 | (first + place): block for place, block in enumerate(cut)}
            first += len(cut)
    return blocks


def test_an_epoch_holds_every_block_of_the_documents_once(corpus: Path) -> None:
    expected = expected_blocks(corpus, "train")
    batches = list(islice(stream(corpus, batch_blocks=1), len(expected)))
    assert {int(batch.blocks[0]): batch.tokens[0].tolist() for batch in batches} == expected
    assert len(Manifest.load(corpus).splits["train"].shards) > 3  # so that windows matter


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 60), st.sampled_from([1, 2, 3, 4, 12]), st.sampled_from([None, SHARE]))
def test_ranks_together_hold_the_global_batch_at_every_start(
    corpus: Path, start: int, world: int, shares: dict[str, float] | None
) -> None:
    whole = next(iter(stream(corpus, start=start, shares=shares)))
    parts = [next(iter(stream(corpus, start=start, rank=rank, world=world, shares=shares))) for rank in range(world)]
    assert {part.index for part in parts} == {whole.index} == {start}
    found = sorted((int(n), row) for part in parts for n, row in zip(part.blocks, part.tokens.tolist(), strict=True))
    assert found == sorted(zip(whole.blocks.tolist(), whole.tokens.tolist(), strict=True))
    assert {part.tokens.shape for part in parts} == {(12 // world, T)}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 40), st.integers(1, 20), st.sampled_from([None, SHARE]))
def test_a_resumed_stream_is_the_tail_of_the_uninterrupted_one(
    corpus: Path, start: int, length: int, shares: dict[str, float] | None
) -> None:
    whole = list(islice(stream(corpus, shares=shares), start + length))
    resumed = list(islice(stream(corpus, start=start, shares=shares), length))
    assert [batch.index for batch in resumed] == list(range(start, start + length))
    assert rows_of(resumed) == rows_of(whole[start:])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("weights", [{}, SHARE])
def test_worker_processes_change_nothing(corpus: Path, workers: int, weights: dict[str, float]) -> None:
    def batches(number: int) -> list[TokenBatch]:
        config = DataConfig(
            str(corpus), block_tokens=T, batch_tokens=4 * T, shuffle_shards=2, workers=number, weights=weights
        )
        module = PileDataModule(config, seed=5)
        module.position = 7
        return list(islice(module.train_dataloader(), 10))

    alone, shared = batches(0), batches(workers)
    assert [batch.index for batch in shared] == list(range(7, 17))
    assert rows_of(shared) == rows_of(alone)


def test_a_split_smaller_than_a_batch_runs_on_into_the_next_epoch(corpus: Path) -> None:
    expected = expected_blocks(corpus, "train")
    batch = next(iter(stream(corpus, batch_blocks=2 * len(expected))))
    assert sorted(batch.blocks.tolist()) == sorted([*expected, *expected])


def test_a_batch_that_processes_cannot_share_is_refused(corpus: Path) -> None:
    with pytest.raises(DataError, match="multiple of 5"):
        stream(corpus, world=5)


def test_continuing_far_into_an_epoch_reads_no_skipped_shard(own_corpus: Path) -> None:
    whole = list(islice(stream(own_corpus, batch_blocks=1), len(expected_blocks(own_corpus, "train"))))
    last_window = {int(n) >> 32 for batch in whole[-5:] for n in batch.blocks}
    for number, shard in enumerate(Manifest.load(own_corpus).splits["train"].shards):
        if number not in last_window:
            (own_corpus / shard.file).unlink()
    resumed = stream(own_corpus, batch_blocks=1, start=len(whole) - 5)
    assert rows_of(list(islice(resumed, 5))) == rows_of(whole[-5:])


class TestMixture:
    def test_blocks_of_a_domain_are_cut_from_its_documents_alone(self, corpus: Path) -> None:
        expected = expected_blocks(corpus, "train", "Web")
        batches = list(islice(stream(corpus, batch_blocks=1, shares={"Web": 1.0}), len(expected)))
        assert {int(batch.blocks[0]): batch.tokens[0].tolist() for batch in batches} == expected

    def test_shares_are_kept_and_held_out_domains_stay_away(self, corpus: Path) -> None:
        mixed = stream(corpus, shares=SHARE, documents=True)
        counts = torch.zeros(3)
        for batch in islice(mixed, 400):
            assert batch.domains is not None
            assert (batch.domains == batch.domains[:, :1]).all()  # a block is of one domain
            counts += batch.domains[:, 0].bincount(minlength=3)
        books, held_out, web = counts / counts.sum()
        assert held_out == 0 and abs(books - 0.25) < 0.02 and abs(web - 0.75) < 0.02

    def test_documents_are_told_in_training_where_asked(self, corpus: Path) -> None:
        expected = expected_blocks(corpus, "train")
        manifest = Manifest.load(corpus)
        for shares in (None, SHARE):
            batch = next(iter(stream(corpus, shares=shares, documents=True)))
            assert batch.documents is not None
            for row, documents in zip(batch.tokens, batch.documents, strict=True):
                borders = (row == 256).nonzero().flatten().tolist()
                changes = (documents.diff() != 0).nonzero().flatten() + 1
                assert set(changes.tolist()) == {place for place in borders if place > 0}
                assert documents.max() < manifest.splits["train"].totals.documents
        assert len(expected) > 12

    def test_a_domain_without_a_whole_block_is_named(self, corpus: Path) -> None:
        with pytest.raises(DataError, match=r"block_tokens=300 tokens of domain 'Books'.*shorter blocks"):
            BlockStream(
                reader(corpus, block_tokens=300), seed=0, shuffle_shards=2, batch_blocks=1, shares={"Books": 1.0}
            )

    def test_the_module_takes_it_from_the_configuration(self, corpus: Path) -> None:
        config = DataConfig(str(corpus), block_tokens=T, batch_tokens=4 * T, epochs={"Books": 2}, held_out=["Règles"])
        module = PileDataModule(config, seed=0)
        sizes = {name: counts.tokens for name, counts in module.manifest.split("train").domains.items()}
        total = 2 * sizes["Books"] + sizes["Web"]
        assert module.shares() == {"Books": 2 * sizes["Books"] / total, "Web": sizes["Web"] / total}

    def test_portions_say_what_a_run_reads(self, corpus: Path) -> None:
        config = DataConfig(str(corpus), block_tokens=T, batch_tokens=T, epochs={"Books": 2}, held_out=["Règles"])
        module = PileDataModule(config, seed=0)
        portions, blocks = module.portions(10_000), expected_blocks(corpus, "train", "Books")
        assert portions["Règles"].read == portions["Règles"].epochs == 0
        assert sum(portion.share for portion in portions.values()) == pytest.approx(1)
        assert portions["Books"].read / portions["Books"].epochs == pytest.approx(len(blocks) * T)
        assert portions["Books"].left_over == portions["Books"].tokens - len(blocks) * T
        plain = PileDataModule(DataConfig(str(corpus), block_tokens=T, batch_tokens=T), seed=0).portions(10_000)
        assert plain["Web"].share == plain["Web"].tokens / sum(portion.tokens for portion in plain.values())


def test_evaluation_is_the_same_blocks_in_order_every_time(corpus: Path) -> None:
    expected = list(expected_blocks(corpus, "val").values())
    blocks = EvaluationBlocks(reader(corpus, "val"), batch_blocks=4, max_blocks=None)
    first, second = list(blocks), list(blocks)
    assert rows_of(first) == rows_of(second) == expected
    assert [n for batch in first for n in batch.blocks.tolist()] == list(range(len(expected)))
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
    module = PileDataModule(DataConfig(str(corpus), block_tokens=5000, batch_tokens=5000, eval_batch_tokens=5000), 0)
    for loader in (module.train_dataloader, module.val_dataloader):
        with pytest.raises(DataError, match=r"block of data\.block_tokens=5000 tokens"):
            loader()


def read_all(corpus: Path) -> None:
    list(EvaluationBlocks(reader(corpus, "train"), batch_blocks=1, max_blocks=None))


def test_a_missing_shard_is_named(own_corpus: Path) -> None:
    (own_corpus / "train-000001.tar").unlink()
    with pytest.raises(ShardError, match=r"train-000001\.tar"):
        read_all(own_corpus)


def rewrite_record(corpus: Path, **changes: Any) -> None:
    """Make the manifest agree with train-000000.tar's bytes again, but for `changes` of its counts."""
    manifest = Manifest.load(corpus)
    shards = list(manifest.splits["train"].shards)
    path = corpus / shards[0].file
    domains = {name: replace(counts, **changes) for name, counts in shards[0].domains.items()}
    shards[0] = replace(shards[0], sha256=file_sha256(path), bytes=path.stat().st_size, domains=domains)
    replace(manifest, splits={**manifest.splits, "train": SplitRecord(tuple(shards))}).save(corpus)


def test_a_shard_cut_in_the_tar_is_refused_though_its_checksum_fits(own_corpus: Path) -> None:
    path = own_corpus / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:2500])
    rewrite_record(own_corpus)
    with pytest.raises(ShardError, match=r"train-000000\.tar is not a readable token shard"):
        read_all(own_corpus)


def test_a_shard_with_another_token_count_than_the_manifest_is_refused(own_corpus: Path) -> None:
    rewrite_record(own_corpus, tokens=499)
    with pytest.raises(ShardError, match=r"train-000000\.tar holds .*its manifest says .*499"):
        read_all(own_corpus)


def test_ids_beyond_the_vocabulary_are_refused(own_corpus: Path) -> None:
    manifest = Manifest.load(own_corpus)
    assert manifest.tokenizer is not None
    replace(manifest, tokenizer=replace(manifest.tokenizer, vocabulary=200)).save(own_corpus)
    with pytest.raises(ShardError, match=r"holds token id 256, the tokenizer has 200"):
        read_all(own_corpus)


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_reaches_the_user_as_one_sentence(own_corpus: Path, workers: int) -> None:
    for shard in Manifest.load(own_corpus).splits["train"].shards:
        (own_corpus / shard.file).write_bytes(b"")
    config = DataConfig(str(own_corpus), block_tokens=T, batch_tokens=T, workers=workers)
    with pytest.raises(ShardError, match=r"^shard [^\n]*$"):
        next(iter(PileDataModule(config, seed=0).train_dataloader()))


class TestSkippedShards:
    def test_blocks_of_the_next_shards_stand_in_counted_and_logged(
        self, own_corpus: Path, corpus: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        bad = own_corpus / "train-000003.tar"
        bad.write_bytes(bad.read_bytes()[:-1] + b"x")
        expected = expected_blocks(corpus, "train")
        intact = list(islice(stream(corpus), 10))
        with caplog.at_level(logging.WARNING):
            skipping = list(islice(stream(own_corpus, skip=True), 10))
        lost = {number for number in expected if number >> 32 == 3}
        standing_in = sum(number in lost for batch in intact for number in batch.blocks.tolist())
        assert sum(batch.replaced for batch in skipping) == standing_in > 0
        for ours, whole in zip(skipping, intact, strict=True):
            assert ours.blocks.tolist() == whole.blocks.tolist()
            rows = zip(ours.blocks.tolist(), ours.tokens.tolist(), whole.tokens.tolist(), strict=True)
            for number, row, there in rows:
                next_shard = 4 << 32 | (number & 0xFFFFFFFF) % sum(n >> 32 == 4 for n in expected)
                assert row == (expected[next_shard] if number in lost else there)
        assert [record.message for record in caplog.records if "train-000003.tar" in record.message]

    def test_by_default_the_run_stops(self, own_corpus: Path) -> None:
        (own_corpus / "train-000003.tar").unlink()
        with pytest.raises(ShardError, match="train-000003"):
            list(islice(stream(own_corpus), 10))

    def test_evaluation_never_skips(self, own_corpus: Path) -> None:
        (own_corpus / "val-000000.tar").unlink()
        config = DataConfig(str(own_corpus), block_tokens=T, batch_tokens=T, on_bad_shard="skip")
        with pytest.raises(ShardError, match="val-000000"):
            list(PileDataModule(config, 0).val_dataloader())

    def test_a_split_of_bad_shards_is_an_error(self, own_corpus: Path) -> None:
        for path in own_corpus.glob("train-*.tar"):
            path.write_bytes(b"")
        with pytest.raises(DataError, match="no shard of split 'train'"):
            next(iter(stream(own_corpus, skip=True)))

    def test_the_module_counts_what_was_replaced(self, own_corpus: Path) -> None:
        (own_corpus / "train-000003.tar").unlink()
        config = DataConfig(str(own_corpus), block_tokens=T, batch_tokens=4 * T, on_bad_shard="skip")
        module = PileDataModule(config, seed=0)
        for batch in islice(module.train_dataloader(), 60):
            module.consumed(batch)
        assert module.replaced > 0
        again = PileDataModule(config, seed=0)
        again.load_state_dict(module.state_dict())
        assert (again.replaced, again.position) == (module.replaced, 60)


def test_a_shard_replaced_under_a_running_job_stops_it(own_corpus: Path) -> None:
    running = iter(stream(own_corpus, batch_blocks=1))
    first = int(next(running).blocks[0]) >> 32
    path = own_corpus / f"train-{first:06d}.tar"
    other = path.read_bytes().replace(b"d\0o\0c\0", b"D\0O\0C\0")
    path.with_suffix(".new").write_bytes(other)
    path.with_suffix(".new").rename(path)
    with pytest.raises(ShardError, match=path.name):
        list(islice(running, 200))


def test_a_shard_overwritten_between_its_prefetch_and_its_use_is_noticed(own_corpus: Path) -> None:
    opened = Corpus(DataConfig(str(own_corpus)))
    opened.store.prefetch("train", [2])
    opened.store.open("train", 2)  # waits for it; what follows is as if it had only been prefetched
    path = own_corpus / "train-000002.tar"
    path.write_bytes(path.read_bytes().replace(b"d\0o\0c\0", b"D\0O\0C\0"))
    blocks = BlockReader(opened.store, opened.manifest, "train", T)
    rows = np.arange(1)
    with pytest.raises(ShardError, match="train-000002"):
        blocks.batch([Blocks(rows, np.array([2]), np.array([0]), rows, None)], 0)


def test_shards_that_were_prefetched_in_vain_do_not_stop_the_prefetching(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "KEPT", 3)
    opened = store.TokenStore(CorpusFiles(str(corpus), Access()), Manifest.load(corpus))
    for shard in range(8):
        opened.prefetch("train", [shard])
    assert len(opened._coming) <= 3 and ("train", 7) in opened._coming
    assert len(opened.open("train", 7).tokens) == sum(opened.tokens("train", 7).values())


def test_commands_found_in_a_runs_configuration_are_not_executed(corpus: Path, tmp_path: Path) -> None:
    config = DataConfig(str(corpus), shards_at=f"pipe:touch {tmp_path}/executed; cat {corpus}/{{}}")
    config.block_tokens = config.eval_batch_tokens = config.batch_tokens = T
    config.cache_dir = str(tmp_path / "cache")
    with pytest.raises(DataError, match=r"with a command \(pipe:touch \.\.\.\)"):
        CorpusSplit(config, "val")
    assert not (tmp_path / "executed").exists()
    assert list(islice(PileDataModule(config, 0).val_dataloader(), 1)) and (tmp_path / "executed").exists()


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
        module.consumed(whole[4])
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
        assert seen == [3, 4, 5, 6, 7] and module.position == 8

    def test_epochs_of_a_plain_trainer_go_on_where_the_last_one_ended(self, corpus: Path, tmp_path: Path) -> None:
        seen: list[int] = []

        class Counter(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.zeros(()))

            def training_step(self, batch: TokenBatch, batch_idx: int) -> torch.Tensor:
                seen.append(batch.index)
                return self.weight * batch.tokens.float().mean()

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        trainer = lightning.Trainer(
            max_epochs=3, limit_train_batches=4, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(Counter(), datamodule=self.module(corpus))
        assert seen == list(range(12))

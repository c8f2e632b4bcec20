"""Corpora of text as a user makes and reads them: `calm data index`, and training's own data module on top."""

from __future__ import annotations

import io
import json
import tarfile
from itertools import islice
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from calm_lightning.cli.data import app
from calm_lightning.data.config import DataConfig
from calm_lightning.data.datamodule import PileDataModule
from calm_lightning.data.shards.manifest import Manifest
from calm_lightning.errors import DataError
from data_pipelines.prepare import prepare


def calm_data(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def write_tar(path: Path, texts: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, text in texts.items():
            members = {".txt": text.encode(), ".json": json.dumps({"domain": path.parent.name}).encode(), ".cls": b"1"}
            for suffix, content in members.items():
                info = tarfile.TarInfo(key + suffix)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def write_tars(directory: Path, number: int = 4) -> None:
    for shard in range(number):
        texts = {f"{n:03d}": f"shard {shard}, text {n}: " + "all the sea and all the land " * 5 for n in range(20)}
        write_tar(directory / f"pile-{shard}.tar", texts)


def blocks(config: DataConfig, batches: int = 6) -> list[torch.Tensor]:
    module = PileDataModule(config, seed=3)
    return [batch.tokens for batch in islice(module.train_dataloader(), batches)]


def test_tars_are_indexed_where_they_are_and_trained_on(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars")
    out = tmp_path / "corpus"
    output = calm_data(
        "index", str(tmp_path / "tars" / "*.tar"), "--out", out, "--val-shards", 1, "--test-shards", 1
    ).output
    assert "80 cls" in output and "written" in output
    assert f"data.corpus={out} data.shards_at={tmp_path / 'tars'} data.tokenizer=bpe:1024" in output
    manifest = Manifest.load(out)
    assert {name: split.totals.documents for name, split in manifest.splits.items()} == {
        "train": 40,
        "val": 20,
        "test": 20,
    }
    assert [shard.file for shard in manifest.split("train").shards] == ["pile-0.tar", "pile-1.tar"]
    assert str(tmp_path) not in (out / "manifest.json").read_text()

    config = DataConfig(
        corpus=str(out),
        shards_at=str(tmp_path / "tars"),
        tokenizer="bpe:270",
        cache_dir=str(tmp_path / "cache"),
        block_tokens=24,
        batch_tokens=96,
    )
    first = blocks(config)
    assert first[0].shape == (4, 24) and int(torch.stack(first).max()) < 270
    assert torch.equal(torch.stack(first), torch.stack(blocks(config)))
    with pytest.raises(DataError, match=r"name its tokenizer with data\.tokenizer"):
        blocks(DataConfig(corpus=str(out), shards_at=str(tmp_path / "tars"), cache_dir=str(tmp_path / "cache")))


def test_the_same_command_again_reads_nothing_and_changes_nothing(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars")
    calm_data("index", tmp_path / "tars", "--out", tmp_path / "tars")
    before = (tmp_path / "tars" / "manifest.json").stat().st_mtime_ns
    output = calm_data("index", tmp_path / "tars", "--out", tmp_path / "tars").output
    assert "was up to date" in output and "shards_at" not in output
    assert (tmp_path / "tars" / "manifest.json").stat().st_mtime_ns == before
    write_tars(tmp_path / "tars", 5)
    with pytest.raises(DataError, match=r"manifest of other tars: .* add --force"):
        calm_data("index", tmp_path / "tars", "--out", tmp_path / "tars")
    assert "written" in calm_data("index", tmp_path / "tars", "--out", tmp_path / "tars", "--force").output
    assert len(Manifest.load(tmp_path / "tars").split("train").shards) == 4


def test_folders_of_splits_are_linked_into_one_place(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write_tar(tmp_path / "tars" / split / "000.tar", {"0": f"a text for {split}"})
    out = tmp_path / "corpus"
    output = calm_data("index", tmp_path / "tars", "--out", out).output
    assert "shards_at" not in output
    manifest = Manifest.load(out)
    assert {name: split.shards[0].file for name, split in manifest.splits.items()} == {
        "train": "train-000.tar",
        "val": "val-000.tar",
        "test": "test-000.tar",
    }
    assert list(manifest.split("val").domains) == ["validation"]
    assert (out / "val-000.tar").read_bytes() == (tmp_path / "tars" / "validation" / "000.tar").read_bytes()
    assert "was up to date" in calm_data("index", tmp_path / "tars", "--out", out).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.tar",), "nowhere.tar does not exist"),
        (("{a,b.tar",), "braces that do not close"),
        (("pipe:cat {}",), "is a command"),
        (("https://host/a.zip",), r"a\.zip is not one of"),
        (("https://a/0.tar", "https://b/1.tar"), "reads its shards from one place"),
        (("TARS", "--val-shards", "4"), "must leave one to train on"),
    ],
)
def test_what_cannot_be_indexed_is_one_sentence(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    write_tars(tmp_path / "tars")
    named = [str(tmp_path / "tars") if argument == "TARS" else argument for argument in arguments]
    with pytest.raises(DataError, match=message):
        calm_data("index", *named, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_prepared_corpus_is_not_overwritten(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars")
    prepare(["sample"], tmp_path / "corpus", "bytes", max_documents=2)
    before = (tmp_path / "corpus" / "manifest.json").read_bytes()
    with pytest.raises(DataError, match="made by `calm data prepare`"):
        calm_data("index", tmp_path / "tars", "--out", tmp_path / "corpus", "--force")
    assert (tmp_path / "corpus" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("spec", ["bytes", "bpe:512"])
def test_text_gives_the_very_blocks_of_prepared_tokens(tmp_path: Path, spec: str) -> None:
    prepare(["sample"], tmp_path / "tokens", spec, max_documents=12, shard_tokens=1 << 30)
    prepare(["sample"], tmp_path / "text", max_documents=12, shards="text", shard_mb=1000)

    def first_blocks(corpus: Path, tokenizer: str) -> torch.Tensor:
        cache = str(tmp_path / "cache")
        config = DataConfig(str(corpus), tokenizer=tokenizer, cache_dir=cache, block_tokens=64, batch_tokens=512)
        return torch.stack(blocks(config, 20))

    assert torch.equal(first_blocks(tmp_path / "tokens", ""), first_blocks(tmp_path / "text", spec))

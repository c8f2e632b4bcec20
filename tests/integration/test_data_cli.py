"""`calm data` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from calm_lightning.cli.data import app
from calm_lightning.data.tokenizers import train_bpe
from calm_lightning.errors import DataError


def calm_data(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpora") / "sample"
    result = calm_data("prepare", "sample", "--out", out, "--tokenizer", "bpe:512", "--max-documents", 8)
    assert "24 documents" in result.output and "tokens/s" in result.output
    return out


def test_the_same_command_again_has_nothing_to_do(corpus: Path) -> None:
    result = calm_data("prepare", "sample", "--out", corpus, "--tokenizer", "bpe:512", "--max-documents", 8)
    assert "finished already" in result.output


def test_inspect_shows_splits_domains_tokenizer_and_text(corpus: Path) -> None:
    output = calm_data("inspect", corpus, "--split", "val", "--samples", 1).output
    for expected in ("bpe, V = 512", "train", "blocks of", "Jane Austen Novels", "Edmund had great things to hear"):
        assert expected in output


def test_inspect_as_json_adds_up(corpus: Path) -> None:
    value = json.loads(calm_data("inspect", corpus, "--json", "--block-tokens", 64, "--samples", 2).output)
    train = value["splits"]["train"]
    assert train["documents"] == 8
    assert train["tokens"] == train["blocks"] * 64 + train["dropped_tokens"]
    assert train["tokens"] == sum(domain["tokens"] for domain in train["domains"].values())
    assert len(value["samples"]) == 2 and value["samples"][0]["text"].startswith("ACT IV.")


def test_verify_finds_a_good_corpus_good(corpus: Path) -> None:
    assert "3 shards agree" in calm_data("verify", corpus).output


def test_verify_lists_what_is_damaged(tmp_path: Path) -> None:
    calm_data("prepare", "sample", "--out", tmp_path / "c", "--tokenizer", "bytes", "--max-documents", 2)
    shards = sorted((tmp_path / "c").glob("*.tar"))
    for shard in shards:
        shard.write_bytes(shard.read_bytes()[:1000])
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "c")])
    assert all(shard.name in result.output for shard in shards)
    assert isinstance(result.exception, DataError) and "3 problem(s)" in str(result.exception)


def test_inspect_refuses_a_replaced_tokenizer(tmp_path: Path) -> None:
    calm_data("prepare", "sample", "--out", tmp_path / "c", "--tokenizer", "bpe:300", "--max-documents", 2)
    train_bpe(["some other text"], 260).save(tmp_path / "c")
    with pytest.raises(DataError, match="does not match its shards"):
        calm_data("inspect", tmp_path / "c")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "none.jsonl.zst", "--out", "c"], r"none\.jsonl\.zst does not exist"),
        (["prepare", "sample", "--out", "c", "--tokenizer", "words"], "unknown tokenizer 'words'"),
        (["prepare", "sample", "--out", "c", "--val-fraction", "1.5"], "below 1"),
        (["inspect", "nowhere"], "nowhere is not a prepared corpus"),
        (["verify", "nowhere"], "nowhere is not a prepared corpus"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        calm_data(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_inspect_names_the_splits_there_are(corpus: Path) -> None:
    with pytest.raises(DataError, match="no split 'dev'; it has train, val, test"):
        calm_data("inspect", corpus, "--split", "dev")

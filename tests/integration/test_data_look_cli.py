"""`calm data inspect`, `verify` and `stats` as a user calls them."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from calm_lightning.cli.main import app
from calm_lightning.data.shards.manifest import (
    TEXT,
    Counts,
    Manifest,
    Provenance,
    ShardRecord,
    SourceRecord,
    SplitRecord,
)
from calm_lightning.data.shards.tokens import add_member, file_sha256
from calm_lightning.data.tokenizers import BytesTokenizer, record_of, train_bpe
from data_pipelines.inspecting.stats_report import can_draw

ROWS = {
    "train": [(f"train {i}: " + "words and more " * i, ("Books", "Web")[i % 2]) for i in range(9)],
    "val": [("held out", "Web"), ("\x1b[31mred\x07 [bold]not markup[/bold]", "Terminals"), ("last " * 200, "Web")],
}


def calm(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(app, ["data", *(str(argument) for argument in arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, make_corpus: Any) -> Path:
    out = tmp_path_factory.mktemp("corpora") / "tokens"
    manifest = make_corpus(out, ROWS, 4)
    origin = Provenance(
        (SourceRecord("pile/00.jsonl.zst", "train", 2_000_000, "a" * 64),),
        {"tokenizer": "bytes", "shard_tokens": 64},
        {"exact duplicate": 7},
        {"calm-lightning": "0.1.0"},
    )
    replace(manifest, provenance=origin).save(out)
    return out


@pytest.fixture(scope="module")
def text_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpora") / "text"
    out.mkdir()
    path, domains = out / "train-000000.tar", dict[str, Counts]()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, (text, domain) in enumerate(ROWS["train"]):
            add_member(archive, f"{number}.json", json.dumps({"text": text, "domain": domain}).encode())
            domains[domain] = domains.get(domain, Counts()) + Counts(1, 0, len(text.encode()))
    shard = ShardRecord(path.name, path.stat().st_size, file_sha256(path), domains)
    Manifest(TEXT, None, "", {"train": SplitRecord((shard,))}, Provenance()).save(out)
    return out


def test_inspect_shows_splits_domains_origin_and_text(corpus: Path) -> None:
    output = calm("inspect", corpus, "--split", "val", "--samples", 1, "--block-tokens", 64).output
    for expected in ("bytes, V = 257", "train", "blocks of 64", "Terminals", "held out", "val-000000.tar document 1"):
        assert expected in output
    assert "sources: 1 of 2.0 MB: pile/00.jsonl.zst" in output
    assert "shard_tokens 64" in output and "dropped: exact duplicate 7" in output


def test_inspect_as_json_adds_up(corpus: Path) -> None:
    value = json.loads(calm("inspect", corpus, "--json", "--block-tokens", 64, "--samples", 2).output)
    train = value["splits"]["train"]
    assert train["documents"] == 9
    assert train["tokens"] == train["blocks"] * 64 + train["dropped_tokens"]
    assert train["tokens"] == sum(domain["tokens"] for domain in train["domains"].values())
    assert [one["text"] for one in value["samples"]] == [ROWS["train"][0][0], ROWS["train"][2][0]]
    assert value["provenance"]["dropped"] == {"exact duplicate": 7}


def test_inspect_finds_a_document_by_its_number(corpus: Path, text_corpus: Path) -> None:
    for place, arguments in ((corpus, ["--shard", "train-000001.tar", "--document", 4]), (text_corpus, [])):
        arguments = arguments or ["--document", 8]
        (one,) = json.loads(calm("inspect", place, "--json", *arguments).output)["samples"]
        assert (one["text"], one["domain"]) == ROWS["train"][7]
        assert calm("inspect", place, *arguments).output.strip().endswith(ROWS["train"][7][0].strip())
    (one,) = json.loads(calm("inspect", corpus, "--json", "--document", 8, "--sample-characters", 5).output)["samples"]
    assert (one["text"], one["shard"], one["number"]) == ("train", "train-000001.tar", 4)


def test_inspect_of_one_shard_counts_that_shard(corpus: Path) -> None:
    output = calm("inspect", corpus, "--shard", "train-000002.tar").output
    assert "domains of train-000002.tar" in output and "train 8:" in output and "train 0:" not in output
    value = json.loads(calm("inspect", corpus, "--shard", "train-000002.tar", "--json").output)
    assert value["shard"]["domains"] == {"Books": {"documents": 1, "tokens": 130, "text_bytes": 129}}


def test_no_terminal_obeys_a_document(corpus: Path) -> None:
    output = calm("inspect", corpus, "--split", "val", "--document", 2).output
    assert "\x1b" not in output and "\x07" not in output and "␛[31mred␇ [bold]not markup[/bold]" in output


def test_inspect_and_verify_of_text(text_corpus: Path) -> None:
    output = calm("inspect", text_corpus, "--samples", 1).output
    assert "tokenised when it is read" in output and "text MB" in output and "tokens/" not in output
    assert "1 shards with 9 documents agree" in calm("verify", text_corpus).output


def test_verify_finds_a_good_corpus_good(corpus: Path) -> None:
    assert "4 shards with 12 documents agree" in calm("verify", corpus, "--deep").output


def test_verify_lists_what_is_damaged(corpus: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(corpus, tmp_path / "c"))
    shards = sorted(broken.glob("*.tar"))
    for shard in shards:
        shard.write_bytes(shard.read_bytes()[:1000])
    (broken / "notes.txt").touch()
    result = calm("verify", broken, status=2)
    assert [shard.name in line for shard, line in zip(shards, result.stdout.splitlines(), strict=True)] == [True] * 4
    assert "notes.txt is no part of the corpus" in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"error: {broken} has 4 problem(s)")


def test_stats_prints_tables_and_bars(corpus: Path) -> None:
    output = calm("stats", corpus, "--near", "--block-tokens", 32).output
    for expected in ("documents by length in tokens", "median", "domains of val", "No document is there twice", "█"):
        assert expected in output
    assert "near duplicates" in output and re.search(r"train +3 +9 ", output)


@pytest.mark.skipif(not can_draw(), reason="matplotlib is not installed")
def test_stats_writes_what_it_names(text_corpus: Path, tmp_path: Path) -> None:
    result = calm("stats", text_corpus, "--out", tmp_path / "a" / "b", "--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "a" / "b" / "stats.json").read_text(encoding="utf-8"))
    named = {Path(line).name for line in result.stderr.splitlines()}
    assert named == {path.name for path in (tmp_path / "a" / "b").iterdir()}
    assert named == {"stats.json", "stats.html", "lengths.png", "domains.png"}


def test_shards_may_lie_elsewhere(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    shutil.copy(corpus / "manifest.json", tmp_path / "c")
    for command in ("inspect", "verify", "stats"):
        calm(command, tmp_path / "c", "--shards-at", corpus)
    assert "name the directory of the shards with --shards-at" in calm("inspect", tmp_path / "c", status=2).stderr


def test_inspect_refuses_a_replaced_tokenizer(corpus: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(corpus, tmp_path / "c"))
    tokenizer = train_bpe(["some text"], 257)
    replace(Manifest.load(own), tokenizer=record_of(tokenizer, tokenizer.save(own))).save(own)
    train_bpe(["some other text, and more"], 260).save(own)
    assert "does not match its shards" in calm("inspect", own, status=2).stderr
    assert BytesTokenizer.fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere"], "nowhere is not a prepared corpus"),
        (["verify", "nowhere"], "nowhere is not a prepared corpus"),
        (["stats", "nowhere", "--out", "out"], "nowhere is not a prepared corpus"),
        (["inspect", "https://host/corpus"], "https://host/corpus is not a local directory: copy"),
        (["verify", "CORPUS", "--shards-at", "pipe:cat {}"], "pipe:cat {} is not a local directory"),
        (["inspect", "CORPUS", "--split", "dev"], "no split 'dev'; it has train, val"),
        (["inspect", "CORPUS", "--shard", "none.tar"], "no shard 'none.tar'; its first one is train-000000.tar"),
        (["inspect", "CORPUS", "--document", "10"], "split train has no document 10: it has 1 to 9"),
        (["stats", "CORPUS", "--near", "--near-threshold", "3", "--out", "out"], "must be between 0.5 and 1"),
        (
            ["stats", "CORPUS", "--shards-at", "nowhere", "--out", "out"],
            "val-000000.tar is missing: name the directory",
        ),
        (["stats", "CORPUS", "--out", "/dev/null/x"], "/dev/null/x cannot be made"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], message: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = calm(*(str(corpus) if argument == "CORPUS" else argument for argument in arguments), status=2)
    assert message in result.stderr and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

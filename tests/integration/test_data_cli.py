"""`calm data` as a user calls it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from calm_lightning.cli.data import app
from calm_lightning.data.shards.manifest import Manifest
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


def test_options_win_over_the_file_of_rules_and_what_they_drop_is_said(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("min_chars: 1000000\nmax_chars: 2000000\nnormalise: NFKC\n")
    result = calm_data(
        "prepare", "sample", "--out", tmp_path / "c", "--shards", "text", "--shard-mb", 0.5,
        "--cleaning", tmp_path / "rules.yaml", "--min-chars", 5000, "--duplicates", "exact", "--workers", 2,
    )  # fmt: skip
    assert "left out: 8 too short" in result.output
    manifest = Manifest.load(tmp_path / "c")
    settings = manifest.provenance.settings
    assert settings["min_chars"] == 5000 and settings["normalise"] == "NFKC" and settings["duplicates"] == "exact"
    assert manifest.provenance.dropped == {"too short": 8}
    assert "532 documents in" in result.output and "tokens" not in result.output
    assert "agree" in calm_data("verify", tmp_path / "c").output


def test_skipped_records_are_named_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "good"}\n{"txt": 1}\n\n{"text": "better"}\n')
    options = ["--out", tmp_path / "c", "--tokenizer", "bytes", "--skip-bad", "--val-fraction", 0]
    result = calm_data("prepare", tmp_path / "t.jsonl", *options)
    assert "left out: 1 unreadable" in result.output
    assert "t.jsonl, line 2" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "none.jsonl.zst", "--out", "c"], r"none\.jsonl\.zst does not exist"),
        (["prepare", "sample", "--out", "c", "--tokenizer", "words"], "unknown tokenizer 'words'"),
        (["prepare", "sample", "--out", "c", "--val-fraction", "1.5"], "below 1"),
        (["prepare", "sample", "--out", "c", "--shards", "text", "--tokenizer", "bytes"], "leave out --tokenizer"),
        (["prepare", "sample", "--out", "c", "--near-threshold", "2"], "--near-threshold"),
        (["prepare", "sample", "--out", "c", "--cleaning", "none.yaml"], r"none\.yaml cannot be read"),
        (["prepare", "sample", "--out", "c", "--piece-mb", "0"], "--piece-mb"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        calm_data(*arguments)
    assert list(tmp_path.iterdir()) == []

"""`calm diagnose` on tiny trained models: files, figures, and what it says when it cannot."""

from __future__ import annotations

import csv
import json
import random
import shutil
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from calm_lightning.cli.diagnose import diagnose
from calm_lightning.cli.main import FrontDoor
from calm_lightning.config import load_config
from calm_lightning.data.texts import PackedText
from calm_lightning.data.tokenizers import BytesTokenizer
from calm_lightning.models import open_model
from calm_lightning.programs.diagnosis import DiagnosisOptions
from calm_lightning.programs.diagnosis import diagnose as ask
from calm_lightning.run import execute
from data_pipelines.prepare import prepare

app = typer.Typer(cls=FrontDoor)
app.command()(diagnose)


@app.callback()
def _group() -> None:
    """Make `diagnose` a subcommand, as it is in `calm`."""


TINY = [
    "data={block_tokens: 48, batch_tokens: 192, eval_batch_tokens: 192, eval_max_blocks: 2}",
    "model={K: 4, d: 16, intermediate: 32, layers: 1, heads: 2, N: 2, M: 2, noise_size: 4}",
    "autoencoder={d: 16, intermediate: 32}",
    "evaluation={every_steps: 0, samples: 2, text_tokens: 0, start_stride: 8}",
    "trainer={max_steps: 2, accelerator: cpu, precision: 32-true}",
    "tracking.mlflow=false",
]
SMALL = ["--tokens", "400", "--prompts", "3", "--length", "32", "--samples", "8"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return run directories by stage."""
    place = tmp_path_factory.mktemp("diagnose")
    generator = random.Random(0)
    words = ["the", "small", "cat", "sat", "on", "a", "mat", "while", "some", "dog", "ran", "past", "green", "trees"]
    for split in ("train", "val", "test"):
        texts = (" ".join(generator.choices(words, k=80)) for _ in range(8))
        (place / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare([place / f"{split}.jsonl" for split in ("train", "val", "test")], place / "corpus", "bytes")
    found: dict[str, Path] = {}
    for stage in ("autoencoder", "calm", "baseline"):
        more = [f"autoencoder_run={found['autoencoder']}"] if stage == "calm" else []
        given = [*TINY, f"data.corpus={place / 'corpus'}", f"work_dir={place / 'runs'}", *more]
        found[stage] = execute(load_config(given, stage=stage), progress=False).run_dir
    return found


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["diagnose", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_everything_at_once(runs: dict[str, Path], tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_text("Gallia est omnis divisa in partes tres, quarum unam incolunt Belgae, aliam Aquitani. " * 3)
    code, shown, errors = run(
        runs["calm"], "--baseline", runs["baseline"], "--foreign", f"Latin={latin}", "--out", tmp_path / "out", *SMALL
    )
    assert code == 0, errors
    assert "Does error accumulate" in shown and "Latin" in shown
    names = {"drift", "roundtrip", "noise", "calibration", "foreign"}
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"{name}.png" for name in names} | {"diagnosis.json", "rows.csv"}
    assert all((tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in names)
    found = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert {one["name"] for one in found["findings"]} == names
    assert found["settings"]["lineage"].keys() == {"model", "autoencoder"}
    rows = list(csv.DictReader((tmp_path / "out" / "rows.csv").open()))
    assert len(rows) == sum(len(one["rows"]) for one in found["findings"])
    assert {row["diagnosis"] for row in rows} == names
    assert {"baseline T=1", "true text"} <= {row["series"] for row in rows if row["diagnosis"] == "drift"}


def test_the_same_seed_gives_the_same_numbers(runs: dict[str, Path], tmp_path: Path) -> None:
    def numbers(seed: int, name: str) -> bytes:
        options: list[str | Path] = ["--only", "noise,calibration", "--seed", str(seed), "--out", tmp_path / name]
        assert run(runs["calm"], *options, *SMALL)[0] == 0
        return (tmp_path / name / "rows.csv").read_bytes()

    assert numbers(0, "first") == numbers(0, "second") != numbers(1, "third")


def test_json_is_all_that_is_printed(runs: dict[str, Path], tmp_path: Path) -> None:
    code, shown, _ = run(runs["baseline"], "--json", "--out", tmp_path, *SMALL)
    assert code == 0
    assert [one["name"] for one in json.loads(shown)["findings"]] == ["drift", "calibration"]


def test_a_text_instead_of_the_corpus(runs: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A short walk through the green trees, and back again before the rain. " * 20)
    code, shown, errors = run(runs["autoencoder"], "--text", text, "--out", tmp_path / "out", *SMALL)
    assert code == 0, errors
    assert "How much noise" in shown and "Does error accumulate" not in shown


def test_without_matplotlib_there_are_tables_and_a_sentence(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, shown, errors = run(runs["autoencoder"], "--only", "noise", "--out", tmp_path, *SMALL)
    assert code == 0
    assert "How much noise" in shown
    assert "matplotlib is not installed" in errors and errors.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"diagnosis.json", "rows.csv"}


def test_what_cannot_be_asked(runs: dict[str, Path], tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    latin = tmp_path / "latin1.txt"
    latin.write_bytes(b"caf\xe9" * 400)
    cases: list[tuple[list[str | Path], str]] = [
        (
            [runs["autoencoder"], "--only", "drift"],
            "is an autoencoder: drift needs a continuous language model or a token",
        ),
        (
            [runs["baseline"], "--only", "noise"],
            "is a token language model: noise needs a continuous language model or an",
        ),
        ([runs["calm"], "--baseline", runs["autoencoder"]], "is an autoencoder: a baseline is a token language model"),
        ([runs["calm"], "--only", "mood"], "diagnosis 'mood' is unknown: choose from drift, roundtrip, noise,"),
        ([runs["calm"], "--text", short], "the text has 11 tokens; drift needs at least 4 blocks of"),
        ([runs["calm"], "--text", short, "--only", "foreign"], "foreign needs at least 2 blocks of 48"),
        ([runs["calm"], "--text", latin], "latin1.txt cannot be read: it is not UTF-8 text"),
        ([runs["calm"], "--foreign", "Latin=nope.txt"], "the text nope.txt cannot be read: No such file or directory"),
        ([runs["calm"], "--solver", "euler"], "solver"),
        ([runs["baseline"], "--sampling-steps", "4"], "are those of a flow or diffusion head"),
        ([runs["calm"], "--tokenizer", "bpe:300"], "would train a new one"),
        ([runs["calm"], "--foreign", "Latin"], "--foreign Latin is not NAME=FILE"),
        (
            [runs["calm"], "--only", "foreign", "--foreign", f"Short={tmp_path / 'tiny.txt'}"],
            "the text Short has 2 tokens",
        ),
        ([tmp_path / "nowhere"], "is not a directory"),
    ]
    (tmp_path / "tiny.txt").write_text("ab")
    for arguments, sentence in cases:
        out = tmp_path / "out"
        code, _, errors = run(*arguments, "--out", out, *SMALL)
        assert code == 2, (arguments, errors)
        assert sentence in errors.replace("\n", " "), (sentence, errors)
        assert errors.splitlines()[-1].startswith("error: ")
        assert not out.exists()


@pytest.mark.parametrize(("option", "value"), [("--length", "-5"), ("--prompts", "1"), ("--samples", "1")])
def test_numbers_out_of_range_are_usage_errors(runs: dict[str, Path], tmp_path: Path, option: str, value: str) -> None:
    code, _, errors = run(runs["calm"], option, value, "--out", tmp_path / "out")
    assert code == 2 and option in errors and "greater than or equal to" in " ".join(errors.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_output_place_that_cannot_be_is_said_first(runs: dict[str, Path], tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    code, shown, errors = run(runs["autoencoder"], "--only", "noise", "--out", tmp_path / place, *SMALL)
    assert code == 2 and shown == ""
    assert errors.startswith(f"error: files cannot be written to {tmp_path / place} (") and "--out" in errors
    assert (tmp_path / "file").read_text() == "mine"


def test_a_second_call_leaves_no_figures_of_the_first(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(b"mine")
    for only in ("noise,calibration", "calibration,calibration"):
        code, _, errors = run(runs["calm"], "--only", only, "--out", tmp_path, *SMALL)
        assert code == 0, errors
    assert {path.name for path in tmp_path.iterdir()} == {"mine.png", "calibration.png", "diagnosis.json", "rows.csv"}
    assert [one["name"] for one in json.loads((tmp_path / "diagnosis.json").read_text())["findings"]] == ["calibration"]


def test_what_was_found_before_a_failure_is_kept(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").write_text("ab")
    foreign = ["--only", "noise,foreign", "--foreign", f"Short={tmp_path / 'tiny.txt'}"]
    code, shown, _ = run(runs["autoencoder"], *foreign, "--out", tmp_path / "out", *SMALL)
    assert code == 2 and "How much noise" in shown
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"noise.png", "diagnosis.json", "rows.csv"}
    found = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert [one["name"] for one in found["findings"]] == ["noise"]


def test_a_model_without_a_tokenizer_is_given_one(runs: dict[str, Path], tmp_path: Path) -> None:
    bare, text = tmp_path / "bare", tmp_path / "text.txt"
    shutil.copytree(runs["autoencoder"], bare)
    shutil.rmtree(bare / "tokenizer")
    corpus = str(load_config([str(bare / "config.yaml")]).data.corpus)
    config = bare / "config.yaml"
    config.write_text(config.read_text().replace(corpus, str(tmp_path / "gone")))
    text.write_text("A short walk through the green trees, and back again before the rain. " * 20)
    given: list[str | Path] = [bare, "--text", text, "--only", "foreign", "--out", tmp_path / "out", *SMALL]
    code, _, errors = run(*given)
    assert code == 2 and "carries no tokenizer" in errors and "--tokenizer" in errors
    code, shown, errors = run(*given, "--tokenizer", "bytes")
    assert code == 0, errors
    assert "digits" in shown


def test_the_steps_are_told_by_number(runs: dict[str, Path]) -> None:
    text = PackedText([("A short walk through the green trees, and back again. " * 40, "text")], BytesTokenizer())
    options, told = DiagnosisOptions(("drift", "calibration"), 400, 3, length=5, samples=8), list[str]()
    (drift, _) = ask(open_model(runs["baseline"]), text, options, on_step=told.append)
    work = "drift (1 of 2): baseline, 3 prompts by 16 tokens, 2 temperatures"
    assert told == ["drift (1 of 2)", work, "calibration (2 of 2)"]
    assert all(row.value < float("inf") for row in drift.rows)

"""`calm eval` as a user sees it, on real runs of every stage."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from calm_lightning.cli.main import app
from calm_lightning.config import load_config
from calm_lightning.data.texts import CorpusSplit
from calm_lightning.errors import CheckpointError
from calm_lightning.models import open_model
from calm_lightning.programs.evaluation import EvaluationOptions, _seeded
from calm_lightning.programs.evaluation import evaluate as run_evaluation
from calm_lightning.run import RunResult, execute
from data_pipelines.prepare import prepare

GOLDEN = Path(os.environ.get("CALM_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
T, STRIDE = 48, 12
TINY = [
    f"data.block_tokens={T}",
    f"data.batch_tokens={2 * T}",
    f"data.eval_batch_tokens={5 * T}",
    "model={d: 16, intermediate: 32, layers: 1, heads: 2, N: 2, M: 3, noise_size: 8}",
    "autoencoder={d: 16, intermediate: 32}",
    f"evaluation={{every_steps: 0, samples: 4, start_stride: {STRIDE}, text_tokens: 0}}",
    "trainer={max_steps: 3, accelerator: cpu, precision: 32-true}",
    "tracking.mlflow=false",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with texts of two domains and a corpus made of them."""
    folder = tmp_path_factory.mktemp("eval")
    generator = random.Random(0)
    for split, documents in (("train", 40), ("val", 25), ("test", 6)):
        rows = []
        for number in range(documents):
            text = " ".join(generator.choices(["the", "small", "cat", "sat", "on", "a", "mat"], k=30))
            rows.append({"text": text, "meta": {"pile_set_name": "odd" if number % 2 else "even"}})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare([folder / f"{split}.jsonl" for split in ("train", "val", "test")], folder / "corpus", "bytes")
    return folder


@pytest.fixture(scope="module")
def runs(place: Path) -> dict[str, RunResult]:
    """Return finished runs: a baseline, autoencoders and language models of K = 2 and 3."""
    shared = [*TINY, f"data.corpus={place / 'corpus'}", f"work_dir={place / 'runs'}"]
    found = {"baseline": execute(load_config(shared, stage="baseline"), progress=False)}
    for K in (2, 3):
        auto = execute(load_config([*shared, f"model.K={K}"], stage="autoencoder"), progress=False)
        extra = [f"model.K={K}", f"autoencoder_run={auto.run_dir}"]
        found |= {f"autoencoder-{K}": auto}
        found |= {f"calm-{K}": execute(load_config([*shared, *extra], stage="calm"), progress=False)}
    return found


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)], env={"COLUMNS": "100"}, catch_exceptions=False)


def score(*arguments: object) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout, parse_constant=pytest.fail)
    return found


def test_a_run_is_scored_as_it_was_in_training(runs: dict[str, RunResult]) -> None:
    """Brier-1 of a softmax model is exact, so another order of draws must give the same number."""
    run = runs["baseline"]
    found = score(run.run_dir, "--precision", "32-true")
    assert found["score"]["brier"][0] == pytest.approx(run.metrics["val/brier_1"], rel=1e-4)
    assert found["score"]["positions"] == run.metrics["val/scored_positions"]
    assert found["score"]["documents"] == run.metrics["val/scored_documents"] == 25
    assert found["score"]["unit"] == "document"
    parts = found["score"]["domains"]
    assert sorted(parts) == ["even", "odd"]
    assert sum(part["documents"] for part in parts.values()) == 25
    assert {part["unit"] for part in parts.values()} == {"piece"}, "12 or 13 documents are too few"


def test_compared_models_are_scored_at_the_same_positions_by_default(runs: dict[str, RunResult]) -> None:
    found = [score(runs[name].run_dir)["protocol"] for name in ("baseline", "calm-2", "calm-3")]
    for key in ("name", "starts", "start_stride", "block_tokens", "blocks", "documents", "corpus", "samples"):
        assert len({one[key] for one in found}) == 1, key
    assert (found[0]["name"], found[0]["start_stride"], found[0]["temperature"]) == ("aligned", STRIDE, 1.0)
    assert found[1]["model"]["autoencoder"] == runs["autoencoder-2"].identity
    assert found[1]["model"]["model"] == runs["calm-2"].identity


@pytest.mark.parametrize(("name", "K"), [("baseline", 1), ("calm-2", 2), ("calm-3", 3)])
def test_the_released_protocol_scores_every_chunk_but_the_first(
    runs: dict[str, RunResult], place: Path, name: str, K: int
) -> None:
    found = score(runs[name].run_dir, "--protocol", "released", "--block-tokens", 96, "--text", place / "test.jsonl")
    protocol = found["protocol"]
    texts = [json.loads(line)["text"] for line in (place / "test.jsonl").read_text().splitlines()]
    tokens = sum(len(text.encode()) + 1 for text in texts)  # a separator before each document
    assert (protocol["blocks"], protocol["left_out_tokens"]) == (tokens // 96, tokens % 96)
    assert (protocol["name"], protocol["samples"], protocol["start_stride"]) == ("released", 2, K)
    assert found["score"]["positions"] == protocol["blocks"] * len(range(K, 96 - 3, K))
    assert protocol["corpus"] == hashlib.sha256("\0".join(texts).encode()).hexdigest()
    assert len(found["score"]["offsets"]) == 4


def test_a_file_is_scored_as_the_split_that_was_made_of_it(runs: dict[str, RunResult], place: Path) -> None:
    compressed = place / "copy.jsonl.gz"
    compressed.write_bytes(gzip.compress((place / "test.jsonl").read_bytes()))
    exact = [
        score(runs["baseline"].run_dir, "--precision", "32-true", *where)["score"]["brier"][0]
        for where in (("--split", "test"), ("--text", place / "test.jsonl"), ("--text", compressed))
    ]
    assert exact[0] == pytest.approx(exact[1], rel=1e-5) == pytest.approx(exact[2], rel=1e-5)


def test_the_same_seed_gives_the_same_score(runs: dict[str, RunResult]) -> None:
    for name in ("calm-2", "baseline"):
        first, again = (score(runs[name].run_dir, "--seed", 1)["score"] for _ in range(2))
        assert first == again
    assert score(runs["baseline"].run_dir, "--seed", 2)["score"]["brier"][1:] != first["brier"][1:]


def test_a_batch_is_drawn_for_alike_whatever_came_before_it(runs: dict[str, RunResult]) -> None:
    """The first two of three blocks are one batch in the first evaluation, the second and third begin anew in both."""
    opened = open_model(runs["baseline"].run_dir)
    text = CorpusSplit(opened.config.data, "val")
    blocks = list(text.batches(T, 1, None))[:3]
    drawn = [[torch.rand(1).item() for _ in _seeded(iter(one), 7)] for one in (blocks, blocks[1:])]
    assert drawn[0][1:] == drawn[1]
    assert len(set(drawn[0])) == 3
    assert [torch.rand(1).item() for _ in _seeded(iter(blocks), 8)] != drawn[0]


def test_what_decides_on_the_draws_is_recorded(runs: dict[str, RunResult]) -> None:
    found = score(runs["calm-2"].run_dir, "--batch-tokens", 3 * T + 5)["protocol"]
    assert (found["batch_tokens"], found["device"]) == (3 * T, "cuda" if torch.cuda.is_available() else "cpu")
    assert score(runs["calm-2"].run_dir)["protocol"]["batch_tokens"] == 5 * T
    assert score(runs["calm-2"].run_dir, "--batch-tokens", 1)["protocol"]["batch_tokens"] == T


@pytest.mark.parametrize(
    ("name", "part"),
    [("baseline", "lm_head"), ("calm-2", "head"), ("autoencoder-2", "decoder"), ("calm-2", "backbone")],
)
def test_a_damaged_model_gets_no_score(runs: dict[str, RunResult], tmp_path: Path, name: str, part: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(runs[name].run_dir, copy)
    weights = load_file(copy / "model.safetensors")
    damaged = next(key for key, weight in weights.items() if part in key and weight.is_floating_point())
    weights[damaged].view(-1)[-1] = torch.nan
    save_file(weights, copy / "model.safetensors")
    result = invoke(copy, *(["--autoencoder", runs["autoencoder-2"].run_dir] if name == "calm-2" else []))
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "are not finite" in line and "weights are damaged" in line


def test_outputs_that_overflow_get_no_score(runs: dict[str, RunResult]) -> None:
    opened = open_model(runs["calm-2"].run_dir)
    assert opened.autoencoder is not None
    with torch.no_grad():
        for weight in opened.autoencoder.parameters():
            weight.fill_(1e38)
    text = CorpusSplit(opened.config.data, "val")
    with pytest.raises(CheckpointError, match="not finite in 32-true"):
        run_evaluation(opened, text, EvaluationOptions(precision="32-true"))


def test_tables_say_how_the_score_was_made(runs: dict[str, RunResult], place: Path) -> None:
    shown = invoke(runs["calm-2"].run_dir, "--block-tokens", 96, "--max-blocks", 2, "--out", place / "score.json")
    assert shown.exit_code == 0
    for part in ("BrierLM [95 %]", "Brier-4 (SE)", "odd", "offset", "chunk", "S = 4", "2 blocks of 96 tokens"):
        assert part in shown.stdout
    assert "Compare models at the same --block-tokens (here 96) and --start-stride (here 12)." in " ".join(
        shown.stdout.split()
    )
    assert "Blocks of 96 tokens were scored, 48 were trained" in shown.stdout
    kept = json.loads((place / "score.json").read_text(), parse_constant=pytest.fail)
    assert kept["protocol"]["max_blocks"] == 2
    assert not list(place.glob("*.tmp"))


def test_an_autoencoder_is_scored_by_what_it_restores(runs: dict[str, RunResult]) -> None:
    run = runs["autoencoder-3"]
    found = score(run.run_dir, "--precision", "32-true")
    assert found["score"] is None
    for ours, logged in (
        ("accuracy_mean", "val/token_accuracy_mean"),
        ("kl", "val/kl"),
        ("cross_entropy", "val/cross_entropy"),
    ):
        tolerance = 1e-4 if ours != "cross_entropy" else 0.05  # of a drawn latent
        assert found["reconstruction"][ours] == pytest.approx(run.metrics[logged], rel=tolerance)
    assert found["protocol"]["starts"] == "every token"
    assert "token accuracy, z sampled" in invoke(run.run_dir).stdout


def test_one_document_in_one_block_has_an_unknown_error(runs: dict[str, RunResult], place: Path) -> None:
    text = place / "note.txt"
    text.write_bytes(b"the small cat sat on\r\na mat " * 2)
    found = score(runs["calm-2"].run_dir, "--text", text)
    assert found["protocol"]["corpus"] == hashlib.sha256(text.read_bytes()).hexdigest()
    assert found["score"]["standard_error"] is None
    assert (found["score"]["low"], found["score"]["high"], found["score"]["units"]) == (0.0, 100.0, 1)
    assert "the error is unknown" in invoke(runs["calm-2"].run_dir, "--text", text).stdout


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden checkpoints at {GOLDEN}")
def test_a_released_checkpoint_is_scored_with_a_tokenizer_that_is_named(place: Path) -> None:
    checkpoint = GOLDEN / "energy" / "K4" / "checkpoint"
    arguments = (
        checkpoint,
        "--autoencoder",
        GOLDEN / "autoencoder" / "K4" / "checkpoint",
        "--text",
        place / "val.jsonl",
    )
    refused = invoke(*arguments)
    assert refused.exit_code == 2
    assert "carries no tokenizer" in refused.stderr
    found = score(*arguments, "--tokenizer", "bytes", "--protocol", "released", "--block-tokens", 64, "--seed", 3)
    assert (found["K"], found["protocol"]["block_tokens"], found["trained_block_tokens"]) == (4, 64, 8192)
    assert found["score"]["positions"] == found["protocol"]["blocks"] * 15
    assert "names no corpus" in invoke(*arguments[:3]).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--block-tokens", "47"], "blocks of 47 tokens do not hold whole chunks of K=2: use 46 or 48"),
        (["--start-stride", "7"], "a start stride of 7 does not fall on chunk borders of K=2"),
        (["--block-tokens", "14"], "blocks of 14 tokens hold no start position: they need at least 16"),
        (["--protocol", "released", "--start-stride", "2"], "leave out the start stride"),
        (["--protocol", "released"], "no whole block of 8,192: take a longer text or shorter blocks"),
        (["--split", "tset"], "the corpus has no split 'tset'"),
        (["--split", "val", "--text", "a.txt"], "--text and --split exclude each other"),
        (["--text", "absent.txt"], "text file absent.txt does not exist"),
        (["--text", "pyproject.toml"], "is not one of *.jsonl, *.jsonl.zst, *.jsonl.gz, *.txt"),
        (["--text", "README.md", "--tokenizer", "bytes"], "is not one of"),
        (["--out", "absent/score.json"], "absent is no directory that can be written to"),
        (["--out", "/dev/null"], "--out /dev/null is no ordinary file"),
        (["--out", "docs"], "--out docs is no ordinary file"),
    ],
)
def test_what_does_not_fit_is_one_sentence(runs: dict[str, RunResult], arguments: list[str], message: str) -> None:
    result = invoke(runs["calm-2"].run_dir, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_a_text_in_other_ids_is_refused(runs: dict[str, RunResult], place: Path, tmp_path: Path) -> None:
    prepare([place / "train.jsonl"], tmp_path / "bpe", "bpe:260")
    tokenizer = f"file:{tmp_path / 'bpe' / 'tokenizer.json'}"
    result = invoke(runs["calm-2"].run_dir, "--text", place / "val.jsonl", "--tokenizer", tokenizer)
    assert result.exit_code == 2
    assert "another tokenizer" in result.stderr


def test_the_text_is_not_written_over_and_its_labels_are_text(runs: dict[str, RunResult], tmp_path: Path) -> None:
    text = tmp_path / "labels.jsonl"
    labels = ["[/foo]", "[red]X[/red]"]
    lines = [json.dumps({"text": "some words " * 30, "meta": {"pile_set_name": labels[n % 2]}}) for n in range(6)]
    text.write_text("\n".join(lines))
    refused = invoke(runs["calm-2"].run_dir, "--text", text, "--out", text)
    assert refused.exit_code == 2 and "is the text to be scored" in refused.stderr
    shown = invoke(runs["calm-2"].run_dir, "--text", text, "--block-tokens", 48)
    assert shown.exit_code == 0 and all(label in shown.stdout for label in labels)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    result = invoke(tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")

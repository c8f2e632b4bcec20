"""`calm generate` as a user meets it: streamed and joined text, JSON, files of prompts, and every refusal."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from calm_lightning.cli.main import app
from calm_lightning.config import load_config
from calm_lightning.data.tokenizers import BytesTokenizer
from calm_lightning.models import open_model
from calm_lightning.programs.generation import GenerationOptions, generate_text
from calm_lightning.run import execute
from data_pipelines.prepare import prepare

TINY = [
    "data={block_tokens: 96, batch_tokens: 384, eval_batch_tokens: 192, eval_max_blocks: 2}",
    "model={d: 16, intermediate: 32, layers: 2, heads: 2, N: 2, M: 3, noise_size: 8, K: 4}",
    "autoencoder={d: 16, intermediate: 32}",
    "evaluation={every_steps: 0, samples: 4, text_tokens: 0}",
    "trainer={max_steps: 3, accelerator: cpu, precision: 32-true}",
    "tracking.mlflow=false",
]
PROMPT = "the cat sat"  # 12 tokens with the separator: three chunks


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return finished runs of every stage."""
    folder = tmp_path_factory.mktemp("generate")
    generator = random.Random(0)
    for split, documents in (("train", 60), ("val", 12)):
        texts = (" ".join(generator.choices(["the", "cat", "sat", "on", "a", "mat"], k=60)) for _ in range(documents))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare([folder / "train.jsonl", folder / "val.jsonl"], folder / "corpus", "bytes", shard_tokens=8192)
    places = [f"data.corpus={folder / 'corpus'}", f"work_dir={folder / 'runs'}"]
    found: dict[str, Path] = {}
    for stage in ("autoencoder", "calm", "baseline"):
        own = [f"autoencoder_run={found['autoencoder']}"] if stage == "calm" else []
        found[stage] = execute(load_config([*TINY, *places, *own], stage=stage), progress=False).run_dir
    return found


def generate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["generate", *map(str, arguments)], env={"COLUMNS": "200"})


def refusal(*arguments: object) -> str:
    result = generate(*arguments)
    assert result.exit_code == 2 and result.stdout == "", result.output
    (line,) = result.stderr.splitlines()
    return line.removeprefix("error: ")


@pytest.mark.parametrize("stage", ["calm", "baseline"])
def test_one_prompt_is_streamed_and_speed_is_told(runs: dict[str, Path], stage: str) -> None:
    first, second = (generate(runs[stage], "--prompt", PROMPT, "--tokens", 30, "--samples", 20) for _ in range(2))
    assert first.exit_code == 0, first.output
    assert first.stdout == second.stdout, "the same seed gives the same text"
    assert first.stdout.startswith(PROMPT) and first.stdout.endswith("\n")
    assert "tokens per second" in first.stderr
    if stage == "baseline":  # three steps teach the continuous model one chunk
        assert generate(runs[stage], "--prompt", PROMPT, "--tokens", 30, "--seed", 1).stdout != first.stdout


def test_streamed_text_is_the_text_of_the_json_document(runs: dict[str, Path]) -> None:
    arguments = (runs["calm"], "--prompt", PROMPT, "--tokens", 40, "--samples", 20, "--precision", "32-true")
    streamed, document = generate(*arguments), json.loads(generate(*arguments, "--json").stdout)
    (text,) = document["continuations"]
    assert streamed.stdout == PROMPT + text["text"] + "\n"
    assert BytesTokenizer().decode(text["tokens"]) == text["text"]
    assert text["ended"] or len(text["tokens"]) == 40
    assert (document["temperature"], document["samples"], document["precision"]) == (0.5, 20, "32-true")
    assert document["tokens_per_second"] > 0


def test_a_file_of_prompts_is_continued_in_batches(runs: dict[str, Path], tmp_path: Path) -> None:
    lines = ["the cat", "a mat on a mat", "sat on the", "über alles €"]
    (tmp_path / "prompts.txt").write_text("\n".join(lines[:3]) + "\n\n" + lines[3] + "\n", encoding="utf-8")
    arguments = ("--prompts", tmp_path / "prompts.txt", "--tokens", 10, "--batch-size", 3, "--align", "cut")
    result = generate(runs["calm"], *arguments, "--samples", 8)
    assert result.exit_code == 0, result.output
    parts = result.stdout.split("--- ")[1:]
    assert [part.splitlines()[0] for part in parts] == ["1", "2", "3", "4"]
    assert all(line in part for line, part in zip(lines, parts, strict=True))
    assert "prompt 2: its 3 oldest tokens (document border included) left out" in result.stderr
    assert "prompt 1:" not in result.stderr, "8 tokens with the separator"
    document = json.loads(generate(runs["calm"], *arguments, "--json").stdout)
    assert [one["left_out"] for one in document["continuations"]] == [0, 3, 3, 0]


def test_the_end_of_a_prompt_is_part_of_the_text_the_model_reads(runs: dict[str, Path]) -> None:
    opened = open_model(runs["calm"])
    pieces: list[tuple[int, str]] = []
    options = GenerationOptions(tokens=9, temperature=1.0, align="match", budget=100_000, precision="32-true")
    found = generate_text(opened, [PROMPT], options, on_text=lambda number, piece: pieces.append((number, piece)))
    (drawn,) = found.continuations
    assert (drawn.matched, drawn.left_out) == (0, 0)
    # The model's own most frequent next byte is certain to be matched.
    longer = PROMPT + (BytesTokenizer().decode([drawn.tokens[0]]) if drawn.tokens[0] < 128 else "")
    (again,) = generate_text(opened, [longer], options).continuations
    assert again.matched == len(longer) - len(PROMPT)
    assert "".join(piece for _, piece in pieces) == drawn.text


def test_exact_sampling_says_when_its_budget_is_spent(runs: dict[str, Path]) -> None:
    arguments = (runs["calm"], "--prompt", PROMPT, "--method", "exact", "--temperature", 0.03, "--budget", 40)
    assert "budget of 40 samples per chunk" in refusal(*arguments)


def test_temperatures_may_be_fractions_or_rounded(runs: dict[str, Path]) -> None:
    arguments = (runs["calm"], "--prompt", PROMPT, "--tokens", 12, "--samples", 20, "--json", "--temperature")
    third, rounded = (json.loads(generate(*arguments, text).stdout) for text in ("1/3", "0.3333"))
    assert third["temperature"] == 1 / 3
    assert third["continuations"] == rounded["continuations"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_neither_weights_nor_random_numbers_are_left_changed(runs: dict[str, Path], precision: str) -> None:
    opened = open_model(runs["calm"])
    weight = next(opened.model.parameters())
    weight.requires_grad_(True)
    assert opened.autoencoder is not None
    weights = [*opened.model.parameters(), *opened.autoencoder.parameters()]
    before, state = [one.requires_grad for one in weights], torch.get_rng_state()
    assert len(set(before)) == 2
    seen: list[set[bool]] = []
    options = GenerationOptions(tokens=8, samples=8, precision=precision)
    generate_text(opened, [PROMPT], options, on_text=lambda *_: seen.append({one.requires_grad for one in weights}))
    assert seen and all(one == {precision == "bf16-mixed"} for one in seen)
    assert [one.requires_grad for one in weights] == before
    assert torch.equal(torch.get_rng_state(), state)


def test_refusals_are_one_sentence(runs: dict[str, Path], tmp_path: Path) -> None:
    calm = runs["calm"]
    assert "is an autoencoder" in refusal(runs["autoencoder"], "--prompt", PROMPT)
    assert "no prompt is given" in refusal(calm)
    assert "a prompt is empty" in refusal(calm, "--prompt", "")
    assert "shorter than one chunk of K = 4" in refusal(calm, "--prompt", "ab")
    assert "choose 1 or 1/2, or --method exact" in refusal(calm, "--prompt", PROMPT, "--temperature", 0.7)
    assert "not in (0, 1]" in refusal(calm, "--prompt", PROMPT, "--temperature", 1.2)
    assert "is not a number such as 0.5 or 1/3" in refusal(calm, "--prompt", PROMPT, "--temperature", "1/0")
    assert "is not a number such as 0.5 or 1/3" in refusal(calm, "--prompt", PROMPT, "--temperature", "warm")
    for method in ("batch", "exact"):
        tiny = (calm, "--prompt", PROMPT, "--method", method, "--temperature")
        assert "is too small" in refusal(*tiny, "1e-320")
        assert "not in (0, 1]" in refusal(*tiny, "inf") and "not in (0, 1]" in refusal(*tiny, "nan")
    assert "needs at least 50000 samples" in refusal(*tiny, "1/50000")
    assert "is not above 0" in refusal(runs["baseline"], "--prompt", PROMPT, "--temperature", 0)
    assert "cannot be read" in refusal(calm, "--prompts", tmp_path / "missing.txt")
    (tmp_path / "blank.txt").write_text("\n \n")
    assert "no line that is not blank" in refusal(calm, "--prompts", tmp_path / "blank.txt")
    assert "is not a directory" in refusal(tmp_path / "nothing", "--prompt", PROMPT)


def test_a_run_without_its_tokenizer_asks_for_it(runs: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(runs["baseline"], copy)
    shutil.rmtree(copy / "tokenizer")
    config = (copy / "config.yaml").read_text().replace(str(runs["baseline"].parents[2] / "corpus"), "gone")
    (copy / "config.yaml").write_text(config)
    assert "carries no tokenizer" in refusal(copy, "--prompt", PROMPT)
    result = generate(copy, "--prompt", PROMPT, "--tokens", 4, "--tokenizer", "bytes")
    assert result.exit_code == 0, result.output


def test_a_prompt_that_is_no_text_is_one_sentence(runs: dict[str, Path]) -> None:
    result = generate(runs["calm"], "--prompt", "fine", "--prompt", "It was \udcff")
    assert result.exit_code == 2 and result.stderr == "error: --prompt number 2 is not valid UTF-8\n"

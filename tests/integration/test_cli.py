"""The front door as a user meets it: speed, help, errors, exit statuses, and a run from corpus to text."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from calm_lightning import __version__
from calm_lightning.cli.main import app

ROOT = Path(__file__).parents[2]
CALM = [sys.executable, "-c", "from calm_lightning.cli.main import main; main()"]
HEAVY = ("torch", "lightning", "mlflow", "optuna", "omegaconf", "numpy", "rich")
TINY = [
    "data.block_tokens=96",
    "data.batch_tokens=384",
    "data.eval_batch_tokens=384",
    "data.eval_max_blocks=4",
    "model={d: 16, intermediate: 32, layers: 1, heads: 2, N: 2, M: 2, noise_size: 8}",
    "autoencoder={d: 16, intermediate: 32}",
    "evaluation={every_steps: 0, samples: 2, text_tokens: 12}",
    "tracking.mlflow=false",
    "trainer={max_steps: 2, accelerator: cpu, precision: 32-true}",
]


def calm(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([*CALM, *arguments], cwd=folder, env=settings, capture_output=True, text=True, timeout=120)


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_importing_the_front_door_imports_nothing_heavy() -> None:
    code = f"import sys, calm_lightning.cli.main; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_help_takes_less_than_half_a_second(tmp_path: Path) -> None:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        assert calm(tmp_path, "--help").returncode == 0
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    "command",
    [
        ["reproduce"],
        ["train"],
        ["eval"],
        ["generate"],
        ["diagnose"],
        ["import-hf"],
        ["export-hf"],
        ["flops"],
        ["config"],
        ["ui"],
        ["report"],
        ["pareto", "front"],
        ["pareto", "compare"],
        *(["runs", name] for name in ("list", "export", "import", "copy", "register", "unsent", "send")),
        ["data", "prepare"],
        ["data", "inspect"],
    ],
    ids=" ".join,
)
def test_help_of_every_command_holds_an_example(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert re.search(rf"Example: calm {' '.join(command)}\b", result.output)


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"calm {__version__}\n"


def test_config_prints_what_config_reads(tmp_path: Path) -> None:
    first = calm(tmp_path, "config", "model.K=3", "sample-calm", "optim.lr=2e-4", "--stage", "calm")
    resolved = yaml.safe_load(first.stdout)
    assert resolved["model"]["K"] == 3
    assert resolved["model"]["d"] == 192, "presets and overrides mix in any order"
    assert resolved["optim"]["lr"] == 2e-4
    (tmp_path / "mine.yaml").write_text(first.stdout)
    again = calm(tmp_path, "config", "mine.yaml", "--json")
    assert json.loads(again.stdout) == resolved


def test_config_lists_presets_with_their_first_line() -> None:
    output = CliRunner().invoke(app, ["config", "--presets"], env={"COLUMNS": "200"}).output
    assert re.search(r"^model/calm-m +CALM-M, published as 371M parameters", output, re.M)
    assert "sweep/" not in output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["config", "model.KK=4"], "model.K"),
        (["config", "model.K=four"], "model.K"),
        (["config", "model.K=5"], "data.block_tokens=768 is not a multiple of model.K=5 (use 765 or 770)"),
        (["config", "model.heads=3"], "model.heads=3"),
        (["config", "model.l=0"], "model.l=0"),
        (["config", "model.N=1"], "model.N=1"),
        (["config", "model.alpha=2.5"], "model.alpha=2.5"),
        (["config", "sample-clam"], "did you mean sample-calm"),
        (["config", "--stage", "clam"], "stage=clam"),
        (["train", "baseline", "stage=calm"], "stage=calm contradicts the command"),
        (["train", "autoencoder"], "data.corpus is empty"),
        (["train", "calm", "data.corpus=nowhere"], "nowhere"),
        (["data", "prepare", "missing.jsonl", "--out", "corpus"], "missing.jsonl"),
        (["reproduce", "k5-sweet-spot"], "k4-sweet-spot/sample"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(tmp_path: Path, arguments: list[str], named: str) -> None:
    assert named in one_sentence(calm(tmp_path, *arguments))


def test_a_place_that_may_not_be_written_is_one_sentence(tmp_path: Path) -> None:
    prepared = calm(tmp_path, "data", "prepare", "sample", "--out", "corpus", "--tokenizer", "bytes")
    assert prepared.returncode == 0, prepared.stderr
    done = calm(tmp_path, "train", "baseline", "data.corpus=corpus", "work_dir=/sys/nobody", *TINY)
    assert "/sys/nobody" in one_sentence(done)


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    code = (
        "import calm_lightning.config\n"
        "calm_lightning.config.load_config = lambda *a, **k: 1 / 0\n"
        "from calm_lightning.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "config"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.slow
def test_from_corpus_to_text_with_what_each_command_says_comes_next(tmp_path: Path) -> None:
    prepared = calm(tmp_path, "data", "prepare", "sample", "--out", "corpora/sample-bytes", "--tokenizer", "bytes")
    assert prepared.returncode == 0, prepared.stderr
    trained = calm(tmp_path, "train", "autoencoder", "sample-autoencoder", "model.K=3", *TINY)
    assert trained.returncode == 0, trained.stderr
    assert "val/token_accuracy_sampled" in trained.stdout
    (following,) = re.findall(r"^next: calm (.*)$", trained.stdout, re.M)
    arguments = following.split()
    assert arguments[:4] == ["train", "calm", "sample-calm", "model.K=3"]
    (run_dir,) = (tmp_path / "runs" / "autoencoder").iterdir()
    command = ["train", "calm", "sample-calm", "model.K=3", arguments[-1], *TINY]
    drawn = calm(tmp_path, *command)
    assert drawn.returncode == 0, drawn.stderr
    assert arguments[-1] == f"autoencoder_run={run_dir.relative_to(tmp_path)}"
    assert "val/brier_lm" in drawn.stdout
    assert "--- continuation" in drawn.stdout
    assert "calm ui --work-dir runs" in drawn.stdout
    again = calm(tmp_path, *command)
    assert again.returncode == 0, again.stderr
    assert "nothing was trained now" in again.stdout
    (drawn_dir,) = (tmp_path / "runs" / "calm").iterdir()
    (drawn_dir / "config.yaml.tmp").symlink_to("/dev/full")
    full = one_sentence(calm(tmp_path, *command))
    assert f"{drawn_dir.relative_to(tmp_path)}/config.yaml cannot be used: No space left on device; free space" in full
    assert "K=2" in one_sentence(calm(tmp_path, *(a.replace("model.K=3", "model.K=2") for a in command)))


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    prepared = calm(tmp_path, "data", "prepare", "sample", "--out", "corpora/sample-bytes", "--tokenizer", "bytes")
    assert prepared.returncode == 0, prepared.stderr
    command = [*CALM, "train", "baseline", "sample-baseline", *TINY, "trainer.max_steps=100000", "checkpoint_steps=5"]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background job is started with Ctrl-C ignored, and so are its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("runs/baseline/*/checkpoints/last.ckpt")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted: run the same command again to continue"
    assert "Traceback" not in errors

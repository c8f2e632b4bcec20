"""`calm reproduce` end to end: real corpus, real models, real Optuna and MLflow stores, all of them tiny."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna")
pytest.importorskip("mlflow")
pytest.importorskip("plotly")
pytest.importorskip("matplotlib")


import typer
from typer.testing import CliRunner

from calm_lightning.cli.reproduce import reproduce

app = typer.Typer()
app.command()(reproduce)
MAIN = "from test_reproduce_cli import app; app()"
SOURCE = "\n".join(
    f'{{"text": "{"the small cat sat on the mat and the dog ran. " * 12}{number}"}}' for number in range(400)
)
TINY = [
    "corpus.tokenizer=bytes",
    "corpus.out=corpora/tiny",
    "all.data={block_tokens: 96, batch_tokens: 384, eval_batch_tokens: 384, eval_max_blocks: 4}",
    "all.model={d: 16, intermediate: 32, layers: 1, heads: 2, N: 2, M: 2}",
    "all.checkpoint_steps=2",
    "autoencoder.autoencoder={d: 16, intermediate: 32}",
    "autoencoder.data.batch_tokens=384",
    "autoencoder.trainer.max_steps=4",
    "calm.trainer.max_steps=6",
    "baseline.trainer.max_steps=6",
    "calm.evaluation.every_steps=3",
    "baseline.evaluation.every_steps=3",
    "space.model.K=[2,3]",
]


def arguments(folder: Path, *more: str) -> list[str]:
    (folder / "train.jsonl").write_text(SOURCE)
    work = ["--work-dir", str(folder / "runs")]
    return ["k4-sweet-spot", *work, f"corpus.source=[{folder / 'train.jsonl'}]", *TINY, *more]


def mlflow_rows(folder: Path, query: str) -> list[tuple[str, ...]]:
    with sqlite3.connect(folder / "mlruns" / "mlflow.db") as store:
        return store.execute(query).fetchall()


def test_dry_run_lists_trials_and_makes_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, arguments(tmp_path, "--dry-run"), env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert "CALM K=3" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]
    assert "together" in result.output


@pytest.mark.slow
def test_killed_sweep_continues_to_table_figures_and_one_parent_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAIN, *arguments(tmp_path)]
    search = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    environment = {**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": "1", "PYTHONPATH": search}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(tmp_path.glob("runs/calm/*/metrics.jsonl")):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while subprocess.run(["pgrep", "-f", str(tmp_path / "runs")], capture_output=True, check=False).stdout:
        time.sleep(0.1)  # its worker notices within a second, saves its place and leaves
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*/model.safetensors")}
    assert finished, "nothing had finished before the kill"

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(path.stat().st_mtime_ns == changed for path, changed in finished.items()), "a finished run was repeated"
    (directory,) = tmp_path.glob("runs/sweeps/k4*")
    for name in ("front.png", "front.html", "points.csv", "summary.md", "study.db", "sweep.yaml"):
        assert (directory / name).is_file()
        assert name.endswith((".db", ".yaml")) or name in done.stdout.replace("\n", "")

    children = mlflow_rows(
        tmp_path,
        "select r.name, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
        "where t.key = 'mlflow.parentRunId' order by r.name",
    )
    names = ["autoencoder-K2-l64-d16-s0", "autoencoder-K3-l96-d16-s0", "baseline-s0", "calm-K2-s0", "calm-K3-s0"]
    assert children == [(name, "FINISHED") for name in names]
    twice = "select run_uuid, key, step from metrics group by run_uuid, key, step having count(*) > 1"
    assert mlflow_rows(tmp_path, twice) == []
    assert len(mlflow_rows(tmp_path, "select value from tags where key = 'pareto'")) == 3
    on_front = mlflow_rows(tmp_path, "select run_uuid from tags where key = 'pareto' and value = 'front'")
    models = mlflow_rows(
        tmp_path,
        "select source_run_id from logged_models m join tags t on t.run_uuid = m.source_run_id "
        "where m.status = 2 and t.key = 'stage' and t.value != 'autoencoder'",
    )
    assert sorted(models) == sorted(on_front), "the language models on the front are copied, and no others"
    volumes = mlflow_rows(tmp_path, "select step, value from metrics where key = 'front/hypervolume' order by step")
    assert [step for step, _ in volumes] == [1, 2, 3]
    assert sorted(value for _, value in volumes) == [value for _, value in volumes]
    (note,) = mlflow_rows(
        tmp_path, "select value from tags where key = 'mlflow.note.content' and value like '%Front after%'"
    )
    assert "get-artifact?path=front.png" in note[0]
    assert "(trial:" not in note[0]
    assert not list(tmp_path.glob("runs/*/*/mlflow*.unsent")), "everything has been sent"
    assert list(tmp_path.glob("mlruns/artifacts/*/artifacts/front.html"))
    assert not list(directory.glob(".*"))

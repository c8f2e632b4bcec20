"""`calm sweep` end to end: real corpus, real models, real Optuna and MLflow stores, all of them tiny."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("optuna")

from calm_lightning.cli.main import app

SOURCE = "\n".join(
    f'{{"text": "{"the small cat sat on the mat and the dog ran. " * 12}{number}"}}' for number in range(400)
)
SWEEP = """
name: tiny
title: A tiny sweep
corpus: {{source: ['{source}'], tokenizer: bytes, out: corpora/tiny}}
all:
  data: {{block_tokens: 96, batch_tokens: 384, eval_batch_tokens: 384, eval_max_blocks: 4}}
  model: {{d: 16, intermediate: 32, layers: 1, heads: 2, N: 2, M: 2}}
  checkpoint_steps: 2
autoencoder: {{autoencoder: {{d: 16, intermediate: 32}}, trainer: {{max_steps: 4}}}}
calm: {{trainer: {{max_steps: 6}}}}
baseline: {{trainer: {{max_steps: 6}}}}
budget: {{evaluations: 2}}
space: {{model.K: [2, 3], model.N: [2, 4]}}
launch: {{workers: 2}}
"""


def write(folder: Path) -> Path:
    (folder / "train.jsonl").write_text(SOURCE)
    path = folder / "tiny.yaml"
    path.write_text(SWEEP.format(source=folder / "train.jsonl"))
    return path


def calm(*arguments: object, width: int = 100) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": str(width)})


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from calm_lightning.cli.main import main; main()", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory in which a sweep was killed twice and continued until it had finished."""
    folder = tmp_path_factory.mktemp("sweep")
    sweep, work = write(folder), folder / "runs"
    for wanted in ("autoencoder", "calm"):
        process = start("sweep", "run", sweep, "--work-dir", work)
        until = time.monotonic() + 120
        while not list(work.glob(f"{wanted}/*/metrics.jsonl")):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        process.kill()
        process.communicate()
        while subprocess.run(["pgrep", "-f", str(work)], capture_output=True, check=False).stdout:
            time.sleep(0.1)
    output, _ = start("sweep", "run", sweep, "--work-dir", work).communicate(timeout=240)
    (folder / "output").write_text(output)
    return folder


@pytest.mark.slow
def test_a_killed_sweep_ends_complete_with_each_model_trained_once(finished: Path) -> None:
    output = (finished / "output").read_text()
    (directory,) = (finished / "runs" / "sweeps").glob("tiny-*")
    assert "all 5 trials have ended (5 complete, 0 pruned, 0 failed)" in output, output
    for name in ("front.png", "front.html", "points.csv", "summary.md"):
        assert (directory / name).is_file()
    assert len(list(finished.glob("runs/autoencoder/*/result.json"))) == 2, "one for each K"
    assert len(list(finished.glob("runs/calm/*/result.json"))) == 4
    assert not list(directory.rglob("*.partial*"))
    with sqlite3.connect(finished / "mlruns" / "mlflow.db") as store:
        rows = store.execute(
            "select r.name, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
            "where t.key = 'mlflow.parentRunId' order by r.name"
        ).fetchall()
        twice = store.execute(
            "select run_uuid, key, step from metrics group by run_uuid, key, step having count(*) > 1"
        ).fetchall()
        fronts = store.execute("select value from tags where key = 'pareto'").fetchall()
    names = ["autoencoder-K2-l64-d16-s0", "autoencoder-K3-l96-d16-s0", "baseline-s0"]
    names += ["calm-K2-N2-s0", "calm-K2-N4-s0", "calm-K3-N2-s0", "calm-K3-N4-s0"]
    assert rows == [(name, "FINISHED") for name in names]
    assert twice == []
    assert len(fronts) == 5


@pytest.mark.slow
def test_status_speaks_of_the_last_sweep_or_of_a_named_one(finished: Path) -> None:
    work = finished / "runs"
    result = calm("sweep", "status", "--work-dir", work)
    assert result.exit_code == 0, result.output
    assert "5 complete" in result.output
    assert "CALM K=3, N=4" in result.output
    named = calm("sweep", "status", "tiny", "--work-dir", work, "--json")
    value = json.loads(named.output)
    assert [trial["state"] for trial in value["trials"]] == ["complete"] * 5
    assert value["cache"]["trained"] == 2
    assert value["cache"]["reused"] == 2
    wrong = calm("sweep", "status", "nothing", "--work-dir", work)
    assert wrong.exit_code == 2
    assert "there is no sweep nothing; in" in wrong.output


@pytest.mark.slow
def test_a_finished_sweep_is_found_and_a_stop_is_taken_back_by_resuming(finished: Path) -> None:
    work = finished / "runs"
    assert calm("sweep", "stop", "tiny", "--work-dir", work).exit_code == 0
    again = calm("sweep", "resume", "tiny", "--work-dir", work)
    assert again.exit_code == 0, again.output
    assert "begun by" not in again.output
    assert "front.png" in again.output.replace("\n", "")


@pytest.mark.slow
def test_more_seeds_extend_it_and_a_hand_can_be_lent(finished: Path) -> None:
    work = finished / "runs"
    process = start("sweep", "run", finished / "tiny.yaml", "seeds=[0,1]", "--workers", 1, "--work-dir", work)
    until = time.monotonic() + 60
    while not list(work.glob("sweeps/tiny-*/workers/local-0.json")) or process.poll() is not None:
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(2)
    helper = start("sweep", "worker", "tiny", "--work-dir", work, "--name", "helper")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    helped, _ = helper.communicate(timeout=60)
    assert helper.returncode == 0, helped
    assert "all 10 trials have ended" in output
    assert len(list(work.glob("sweeps/tiny-*"))) == 1
    assert len(list(finished.glob("runs/autoencoder/*/result.json"))) == 4


@pytest.mark.slow
def test_optuna_dashboard_serves_the_study_on_loopback(finished: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start("sweep", "dashboard", "tiny", "--work-dir", finished / "runs", "--port", port)
    try:
        assert process.stdout is not None
        assert f"http://127.0.0.1:{port}/dashboard" in process.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=10) as answer:
            studies = json.load(answer)["study_summaries"]
        assert [study["study_name"].split("-")[0] for study in studies] == ["tiny"]
        rebound = urllib.request.Request(f"http://127.0.0.1:{port}/api/studies", headers={"Host": "evil.example:80"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(rebound, timeout=10)
        taken = calm("sweep", "dashboard", "tiny", "--work-dir", finished / "runs", "--port", port)
        assert taken.exit_code == 2
        assert "choose another port" in taken.output
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def test_a_dry_run_lists_trials_and_makes_nothing(tmp_path: Path) -> None:
    sweep = write(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    result = calm("sweep", "run", sweep, "--dry-run", "--work-dir", tmp_path / "runs", "constraints=['N < 4']")
    assert result.exit_code == 0, result.output
    assert "CALM K=3, N=2" in result.output
    assert "left out: CALM K=2, N=4: N < 4 does not hold" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    listed = calm("sweep", "run", sweep, "--dry-run", "--json", "--work-dir", tmp_path / "runs", "seeds=[0,1]")
    value = json.loads(listed.output)
    assert value["planned"] == value["totals"]["trials"] == 10
    assert sum(trial["trains_autoencoder"] for trial in value["trials"]) == 4
    assert all(trial["train_flops"] > 0 for trial in value["trials"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "run", "nothing"], "there is no sweep nothing with preset sample"),
        (["sweep", "run", "nowhere.yaml"], "sweep file nowhere.yaml does not exist"),
        (["sweep", "run", "explore", "objectives=[x]"], "objectives=['x'] must be different ones"),
        (["sweep", "run", "explore", "--launcher", "rya"], "rya"),
        (["sweep", "run", "explore", "space.model.K={int: [4, 1]}"], "the smallest value 4 is above the largest 1"),
        (["sweep", "status"], "there is no sweep in"),
        (["sweep", "worker", "nothing"], "there is no sweep nothing"),
        (["sweep", "stop", "nothing"], "there is no sweep nothing"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = calm(*arguments, "--work-dir", tmp_path / "runs", width=300)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_help_has_an_example_everywhere() -> None:
    for command in ("run", "resume", "status", "stop", "worker", "dashboard", "replay"):
        result = calm("sweep", command, "--help")
        assert result.exit_code == 0
        assert "Example: calm sweep" in " ".join(result.output.split()), command

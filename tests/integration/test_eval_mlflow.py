"""`calm eval` in MLflow: a run below its model's, the same one for the same evaluation, kept if the store is away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

pytest.importorskip("mlflow")

from mlflow.entities import Run
from mlflow.utils.validation import _validate_metric_name

from calm_lightning.cli.main import app
from calm_lightning.config import load_config
from calm_lightning.metrics import names
from calm_lightning.programs import evaluation as evaluation_module
from calm_lightning.run import RunResult, execute
from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.models.evaluations import evaluation_metrics
from calm_lightning.tracking.outbox.outbox import Outbox, OutboxPlace, unsent
from calm_lightning.tracking.outbox.sending import send
from calm_lightning.tracking.outbox.tracker import MlflowTracker
from calm_lightning.tracking.store import PARENT_TAG, Store, open_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("eval-mlflow")
    tiny_runs.make_texts(found)
    return found


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, RunResult]:
    return tiny_runs.train(folder / "corpus", folder / "runs")


@pytest.fixture(autouse=True)
def one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit is a part of the protocol; here others may commit while a test runs."""
    monkeypatch.setattr(evaluation_module, "commit", lambda: "0" * 40)


def store_of(folder: Path) -> Store:
    return open_store(TrackingConfig(), folder / "runs")


def evaluations(folder: Path, run: RunResult) -> list[Run]:
    store = store_of(folder)
    below = f"tags.stage = 'evaluation' and tags.`{PARENT_TAG}` = '{run.mlflow_run_id}'"
    found = store.client.search_runs([store.experiment_id], below, order_by=["attributes.start_time ASC"])
    return [store.client.get_run(one.info.run_id) for one in found]


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["eval", *map(str, arguments)], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_an_evaluation_is_a_run_below_its_models(folder: Path, runs: dict[str, RunResult]) -> None:
    run = runs["calm"]
    result = invoke(run.run_dir, "--split", "test", "--json")
    document: dict[str, Any] = json.loads(result.stdout)
    assert result.stderr == ""
    (found,) = evaluations(folder, run)
    assert found.info.run_name == f"eval-aligned-test-{run.name}" and found.info.status == "FINISHED"
    score, protocol = document["score"], document["protocol"]
    assert found.data.metrics[names.BRIER_LM] == score["value"]
    assert found.data.metrics[names.BRIER_LM_SE] == pytest.approx(score["standard_error"])
    assert [found.data.metrics[name] for name in names.BRIER_N] == score["brier"]
    assert found.data.metrics["domain/even/brier_lm_high"] == score["domains"]["even"]["high"]
    assert found.data.metrics["domain/odd _1_/brier_lm"] == score["domains"]["odd (1)"]["value"]
    history = store_of(folder).client.get_metric_history(found.info.run_id, names.BRIER_LM)
    assert [point.step for point in history] == [3], "the step that was trained to"
    assert found.data.params["protocol.block_tokens"] == str(protocol["block_tokens"]) == "96"
    assert found.data.params["protocol.starts"] == protocol["starts"]
    tags = found.data.tags
    assert (tags["K"], tags["seed"], tags["protocol"], tags["split"]) == ("4", "0", "aligned", "test")
    assert tags["calm.model_run"] == run.mlflow_run_id
    assert tags["corpus"] == protocol["corpus"]
    assert "--split test" in tags["mlflow.note.content"] and "](#/experiments/" in tags["mlflow.note.content"]
    artifacts = store_of(folder).client.list_artifacts(found.info.run_id)
    assert [file.path for file in artifacts] == ["evaluation.json"]
    kept = store_of(folder).client.download_artifacts(found.info.run_id, "evaluation.json")
    assert json.loads(Path(kept).read_text())["score"] == score


def test_the_lineage_ends_with_the_evaluation(folder: Path, runs: dict[str, RunResult]) -> None:
    run, client = runs["baseline"], store_of(folder).client
    invoke(run.run_dir, "--split", "test")
    (found,) = evaluations(folder, run)
    made = client.get_run(str(run.mlflow_run_id)).outputs
    assert found.inputs is not None and made is not None
    assert [one.model_id for one in found.inputs.model_inputs] == [one.model_id for one in made.model_outputs]
    (dataset,) = found.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.tags[0].value) == ("corpus/test", "evaluation")


def test_autoencoders_have_evaluations_too(folder: Path, runs: dict[str, RunResult]) -> None:
    run = runs["autoencoder"]
    result = invoke(run.run_dir)
    assert f"recorded in MLflow: eval-aligned-val-{run.name}\n" in result.stdout
    (found,) = evaluations(folder, run)
    restored = json.loads((next((folder / "runs" / "evaluation").glob("*auto*")) / "evaluation.json").read_text())
    assert found.data.metrics[names.VAL_ACCURACY_SAMPLED] == restored["reconstruction"]["accuracy_sampled"]
    assert names.BRIER_LM not in found.data.metrics


def test_the_same_evaluation_is_the_same_run(folder: Path, runs: dict[str, RunResult]) -> None:
    run = runs["calm"]
    before = len(evaluations(folder, run))
    for _ in range(2):
        invoke(run.run_dir, "--samples", 3)
    invoke(run.run_dir, "--samples", 5)
    invoke(run.run_dir, "--samples", 3, "--text", folder / "test.jsonl")
    fresh = evaluations(folder, run)[before:]
    assert [one.info.run_name for one in fresh] == [
        f"eval-aligned-{subject}-{run.name}" for subject in ("val", "val", "test")
    ]
    assert [one.data.tags["samples"] for one in fresh] == ["3", "5", "3"]
    client = store_of(folder).client
    assert all(len(client.get_metric_history(one.info.run_id, names.BRIER_LM)) == 1 for one in fresh)
    text = fresh[-1].inputs
    assert text is not None and [one.dataset.name for one in text.dataset_inputs] == ["test.jsonl"]
    assert f"--text {folder}/test.jsonl" in fresh[-1].data.tags["mlflow.note.content"]


def test_a_trial_of_a_sweep_has_its_evaluations_below_it(folder: Path, tmp_path: Path) -> None:
    place = OutboxPlace(tmp_path / "runs" / "sweeps" / "study")
    place.directory.mkdir(parents=True)
    sweep = MlflowTracker(place, Outbox(identity="study", name="study")).start().finish()
    settings = [*tiny_runs.TINY, f"data.corpus={folder / 'corpus'}", f"work_dir={tmp_path / 'runs'}"]
    trial = execute(load_config(settings, stage="baseline"), parent="study", progress=False)
    for _ in range(2):
        assert "warning" not in invoke(trial.run_dir).stderr
    (found,) = evaluations(tmp_path, trial)
    assert found.data.tags["calm.model_run"] == trial.mlflow_run_id
    assert store_of(tmp_path).client.get_run(str(trial.mlflow_run_id)).data.tags[PARENT_TAG] == sweep
    assert unsent(tmp_path / "runs") == []


def test_recording_can_be_left_out(folder: Path, runs: dict[str, RunResult]) -> None:
    run = runs["baseline"]
    before = len(evaluations(folder, run))
    assert "recorded" not in invoke(run.run_dir, "--no-mlflow", "--samples", 7).stdout
    assert len(evaluations(folder, run)) == before
    assert not list((folder / "runs" / "evaluation").glob("*/mlflow*.unsent"))


def test_what_was_not_recorded_is_evaluated_all_the_same(folder: Path, tmp_path: Path) -> None:
    (run, *_) = tiny_runs.train(folder / "corpus", tmp_path / "runs", "tracking.mlflow=false").values()
    result = invoke(run.run_dir)
    assert "recorded" not in result.stdout and result.stderr == ""
    assert not (tmp_path / "runs" / "evaluation").exists() and not (tmp_path / "mlruns").exists()
    refused = CliRunner().invoke(app, ["eval", str(run.run_dir), "--mlflow"])
    assert refused.exit_code == 2 and "was not recorded in MLflow" in refused.stderr


@pytest.mark.slow
def test_a_store_that_is_away_costs_one_line(folder: Path, runs: dict[str, RunResult]) -> None:
    run, database = runs["baseline"], folder / "mlruns" / "mlflow.db"
    before = len(evaluations(folder, run))
    away = database.with_suffix(".away")
    os.replace(database, away)
    database.write_text("no database, for the moment")
    try:
        command = [sys.executable, "-c", "from calm_lightning.cli.main import main; main()", "eval", str(run.run_dir)]
        done = subprocess.run([*command, "--samples", "9", "--json"], capture_output=True, text=True, timeout=200)
    finally:
        os.replace(away, database)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: MLflow has not got the evaluation") and "calm runs send --work-dir" in line
    (place,) = unsent(folder / "runs")
    assert json.loads((place.directory / "evaluation.json").read_text()) == document
    assert send(place).problem == ""
    fresh = evaluations(folder, run)[before:]
    assert [one.data.metrics[names.BRIER_LM] for one in fresh] == [document["score"]["value"]]
    assert unsent(folder / "runs") == []


def score_of(domain: str) -> dict[str, Any]:
    part = {
        **dict(value=1.0, standard_error=None, low=0.5, high=2.0, zeroed=False, positions=3, documents=2, units=2),
        **dict(brier=[1.0] * 4, brier_standard_error=[None] * 4, domains={}),
    }
    return {"score": {**part, "domains": {domain: part}}}


@given(st.text(max_size=30))
def test_numbers_of_any_domain_have_names_that_mlflow_takes(domain: str) -> None:
    found = evaluation_metrics(score_of(domain))
    for name in found:
        _validate_metric_name(name)
    assert sum(name.startswith("domain/") for name in found) == 4, "an unknown error is left out"
    assert names.BRIER_LM_SE not in found and found[names.BRIER_LM] == 1.0

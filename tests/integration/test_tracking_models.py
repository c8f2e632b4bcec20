"""Trained models in MLflow, on real runs and a real store: loaded elsewhere, logged once, linked, registered."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import pytest
import tiny_runs
import torch
from typer.testing import CliRunner, Result

pytest.importorskip("mlflow")

from mlflow import MlflowClient

from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.cli.main import app as calm
from calm_lightning.data.tokenizers import BytesTokenizer
from calm_lightning.errors import SamplingError, TrackingError
from calm_lightning.models import open_model
from calm_lightning.programs.restoring import restore_texts
from calm_lightning.run import RunResult
from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.entries import read_journal
from calm_lightning.tracking.models.directory import _SCRIPT
from calm_lightning.tracking.models.logging import log_model, model_bytes
from calm_lightning.tracking.store import IDENTITY_TAG, open_store, tracking_uri

PROMPTS = ["the cat sat", "a mat on a mat"]

LOADS = """
import json, sys, warnings
from pathlib import Path
import mlflow.pyfunc
warnings.simplefilter("error", UserWarning)  # of its own MLflow gives some when it is imported
asked, found = json.loads(Path(sys.argv[1]).read_text()), []
for uri, texts, params in asked:
    found.append(mlflow.pyfunc.load_model(uri).predict(texts, params=params))
Path(sys.argv[2]).write_text(json.dumps(found))
"""

KILLED = """
import os, sys
from pathlib import Path
from calm_lightning.tracking.moving import run_files
from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.tracking.models.logging import log_model
from calm_lightning.tracking.store import open_store
send, sent = run_files._send_one, []
def dies(*arguments):
    if len(sent) == 3:
        os._exit(9)
    sent.append(send(*arguments))
run_files._send_one = dies
store = open_store(TrackingConfig(), Path(sys.argv[1]))
log_model(store.client, store.experiment_id, sys.argv[2], Path(sys.argv[3]), None, "killed")
"""


Asked = list[tuple[str, list[str], dict[str, Any]]]
"""Model URIs, texts and parameters."""


def predict(uri: str, asked: Asked, scratch: Path) -> list[list[str]]:
    """Load models of a store in a process of its own, in an empty directory."""
    (scratch / "asked.json").write_text(json.dumps(asked))
    command = [sys.executable, "-c", LOADS, str(scratch / "asked.json"), str(scratch / "found.json")]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=scratch, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = json.loads((scratch / "found.json").read_text())
    return found


@dataclass(frozen=True)
class Project:
    """Runs that were recorded while they trained, and their store."""

    folder: Path
    runs: dict[str, RunResult]
    client: MlflowClient
    experiment_id: str

    @property
    def uri(self) -> str:
        return tracking_uri(TrackingConfig(), self.folder / "runs")

    def models(self, stage: str) -> list[Any]:
        """Models of a run that are there, in any state."""
        identity = self.runs[stage].identity
        return list(self.client.search_logged_models([self.experiment_id], f"tags.`{IDENTITY_TAG}` = '{identity}'"))

    def log(self, stage: str) -> str:
        run = self.runs[stage]
        below = self.runs["autoencoder"].run_dir if stage == "calm" else None
        assert run.mlflow_run_id is not None
        return log_model(self.client, self.experiment_id, run.mlflow_run_id, run.run_dir, below, run.name)

    def predict(self, asked: Asked, scratch: Path) -> list[list[str]]:
        return predict(self.uri, asked, scratch)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("models")
    runs = tiny_runs.train(tiny_runs.make_texts(folder), folder / "runs")
    store = open_store(TrackingConfig(), folder / "runs")
    return Project(folder, runs, store.client, store.experiment_id)


def generated(run_dir: Path, *arguments: object) -> list[str]:
    words = ["generate", str(run_dir), "--json", *(word for prompt in PROMPTS for word in ("--prompt", prompt))]
    result = CliRunner().invoke(calm, [*words, *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return [one["text"] for one in json.loads(result.stdout)["continuations"]]


def test_models_are_whole_without_the_runs_that_made_them(project: Project, tmp_path: Path) -> None:
    """Text in, text out, in another process, the run directories gone; the same seed gives what the CLI gives."""
    settings = {"max_new_tokens": 20, "seed": 3}
    expected = [generated(project.runs[stage].run_dir, "--tokens", 20, "--seed", 3) for stage in ("calm", "baseline")]
    restored = restore_texts(open_model(project.runs["autoencoder"].run_dir), PROMPTS)
    ids = {stage: project.models(stage)[0].model_id for stage in project.runs}
    calm_run = project.runs["calm"]
    asked = [
        (f"models:/{ids['calm']}", PROMPTS, settings),
        (f"models:/{ids['baseline']}", PROMPTS, settings),
        (f"models:/{ids['autoencoder']}", PROMPTS, {}),
        (f"runs:/{calm_run.mlflow_run_id}/{calm_run.name}", PROMPTS, settings),
        (str(tmp_path / "copied"), PROMPTS, settings),
    ]
    shutil.copytree(project.folder / "mlruns" / "artifacts" / "models" / ids["calm"] / "artifacts", tmp_path / "copied")
    (project.folder / "runs").rename(project.folder / "away")
    try:
        found = project.predict(asked, tmp_path)
    finally:
        (project.folder / "away").rename(project.folder / "runs")
    assert found == [*expected, restored, expected[0], expected[0]]


def test_nothing_in_a_model_is_pickled(project: Project) -> None:
    files = [path for path in (project.folder / "mlruns" / "artifacts" / "models").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {"", ".json", ".yaml", ".txt", ".py", ".safetensors"}
    for path in files:
        if path.suffix == ".safetensors":
            assert path.read_bytes()[8:9] == b"{"
        else:
            path.read_text(encoding="utf-8")
    assert {path.parent.name for path in files if path.name == "pyfunc.py"} == {"artifacts"}


def test_models_that_are_logged_load_with_later_versions() -> None:
    """Every logged model has a copy of the script: what it imports has to stay where it is, for ever."""
    code = [line for line in _SCRIPT.read_text().partition('"""\n\n')[2].splitlines() if line]
    assert code == [
        "from calm_lightning.programs.text_models import open_text_model",
        "from calm_lightning.tracking.models.pyfunc import serve",
        "serve(open_text_model)",
    ]


def test_lineage_leads_from_the_autoencoder_to_the_language_model(project: Project) -> None:
    models = {stage: project.models(stage) for stage in project.runs}
    assert all(len(found) == 1 and found[0].status.value == "READY" for found in models.values())
    for stage, run in project.runs.items():
        assert run.mlflow_run_id is not None
        recorded = project.client.get_run(run.mlflow_run_id)
        made = [one.model_id for one in recorded.outputs.model_outputs] if recorded.outputs else []
        used = [one.model_id for one in recorded.inputs.model_inputs] if recorded.inputs else []
        assert made == [models[stage][0].model_id]
        assert used == ([models["autoencoder"][0].model_id] if stage == "calm" else [])
    assert models["calm"][0].params["K"] == "4" and "N" not in models["baseline"][0].params


def test_scores_are_the_models_and_stay_single_in_the_run(project: Project) -> None:
    run = project.runs["calm"]
    (model,) = project.models("calm")
    assert {one.key: one.value for one in model.metrics} == run.metrics
    assert {one.dataset_name for one in model.metrics} == {"corpus/val"}
    for name in run.metrics:
        journal = [(entry.step, entry.metrics[name]) for entry in read_journal(run.run_dir) if name in entry.metrics]
        points = project.client.get_metric_history(str(run.mlflow_run_id), name)
        assert sorted((point.step, point.value) for point in points) == sorted(journal)


def test_a_model_is_logged_once_also_by_two_at_the_same_time(project: Project) -> None:
    (before,) = project.models("calm")
    with ThreadPoolExecutor(2) as threads:
        assert set(threads.map(project.log, ["calm", "calm"])) == {before.model_id}
    for model in project.models("calm"):
        project.client.delete_logged_model(model.model_id)
    with ThreadPoolExecutor(2) as threads:
        (made,) = set(threads.map(project.log, ["calm", "calm"]))
    (model,) = project.models("calm")
    assert model.model_id == made != before.model_id


@pytest.mark.slow
def test_a_killed_upload_is_finished_by_the_next(project: Project, tmp_path: Path) -> None:
    run = project.runs["baseline"]
    for model in project.models("baseline"):
        project.client.delete_logged_model(model.model_id)
    command = [sys.executable, "-c", KILLED, str(project.folder / "runs"), str(run.mlflow_run_id), str(run.run_dir)]
    assert subprocess.run(command, capture_output=True, timeout=200).returncode == 9
    (half,) = project.models("baseline")
    tags = {IDENTITY_TAG: run.identity}
    project.client.create_logged_model(project.experiment_id, "other", run.mlflow_run_id, tags=tags)
    assert half.status.value == "PENDING"
    assert project.log("baseline") == half.model_id
    (model,) = project.models("baseline")
    assert model.status.value == "READY"
    (found,) = project.predict([(f"models:/{model.model_id}", PROMPTS, {"max_new_tokens": 9})], tmp_path)
    assert found == generated(run.run_dir, "--tokens", 9)


def test_what_cannot_be_logged_is_said_in_a_sentence(project: Project, tmp_path: Path) -> None:
    run = project.runs["calm"]
    with pytest.raises(TrackingError, match="no finished run"):
        log_model(project.client, project.experiment_id, str(run.mlflow_run_id), tmp_path, None, "x")
    broken = tmp_path / "broken"
    shutil.copytree(project.runs["autoencoder"].run_dir, broken)
    (broken / "model.safetensors").unlink()
    for model in project.models("autoencoder"):
        project.client.set_logged_model_tags(model.model_id, {IDENTITY_TAG: "hidden"})
    try:
        with pytest.raises(TrackingError, match=r"model\.safetensors is missing"):
            log_model(project.client, project.experiment_id, str(run.mlflow_run_id), broken, None, "x")
        (left,) = project.models("autoencoder")
        assert left.status.value == "PENDING"
        project.client.delete_logged_model(left.model_id)
    finally:
        tags = {IDENTITY_TAG: project.runs["autoencoder"].identity}
        hidden = project.client.search_logged_models([project.experiment_id], f"tags.`{IDENTITY_TAG}` = 'hidden'")
        for model in hidden:
            project.client.set_logged_model_tags(model.model_id, tags)


def test_size_is_that_of_the_files_that_are_copied(project: Project) -> None:
    run, below = project.runs["calm"].run_dir, project.runs["autoencoder"].run_dir
    (model,) = project.models("calm")
    copied = project.folder / "mlruns" / "artifacts" / "models" / model.model_id / "artifacts" / "artifacts" / "run"
    assert copied.is_dir()
    result = (run / "result.json").stat().st_size + (below / "result.json").stat().st_size
    found = sum(path.stat().st_size for path in copied.rglob("*") if path.is_file() and path.name != "result.json")
    assert model_bytes(run, below) - result == found  # result.json gets the MLflow run id afterwards


def registered(*arguments: object) -> Result:
    return CliRunner().invoke(calm, ["runs", "register", *map(str, arguments)], catch_exceptions=False)


def test_registered_models_load_by_version_and_alias(project: Project, tmp_path: Path) -> None:
    run, other = project.runs["calm"], project.runs["baseline"]
    first = registered(run.run_dir, "--name", "sat", "--alias", "champion")
    assert first.exit_code == 0, first.output
    assert first.stdout.startswith(f"sat version 1, alias champion: {run.name} (registered)\n")
    assert 'load_model("models:/sat@champion")' in first.stdout and project.uri in first.stdout
    place = ("--work-dir", project.folder / "runs")
    for again in (run.run_dir, run.mlflow_run_id, run.name):
        assert registered(again, "--name", "sat", *place).stdout.startswith(
            f"sat version 1: {run.name} (was registered"
        )
    assert registered(other.run_dir, "--name", "sat", "--alias", "champion").stdout.startswith("sat version 2, alias")
    assert sorted(int(one.version) for one in project.client.search_model_versions("name = 'sat'")) == [1, 2]
    settings = {"max_new_tokens": 12, "temperature": 1.0, "seed": 1}
    asked = [("models:/sat/1", PROMPTS, settings), ("models:/sat@champion", PROMPTS, settings)]
    by_cli = ("--tokens", 12, "--temperature", 1.0, "--seed", 1)
    assert project.predict(asked, tmp_path) == [generated(one.run_dir, *by_cli) for one in (run, other)]


def test_a_model_that_was_not_copied_is_copied_to_be_registered(project: Project) -> None:
    run = project.runs["autoencoder"]
    for model in project.models("autoencoder"):
        project.client.delete_logged_model(model.model_id)
    result = registered(run.mlflow_run_id, "--name", "restorer", "--work-dir", project.folder / "runs")
    assert result.exit_code == 0, result.output
    (model,) = project.models("autoencoder")
    (version,) = project.client.search_model_versions("name = 'restorer'")
    assert (version.run_id, version.source) == (run.mlflow_run_id, model.artifact_location)
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "restorer", "version": 1}]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing", "--name", "x"), "'nothing' means no run"),
        (("tags.seed = '0'", "--name", "x"), "means 3 runs"),
        (("not/there", "--name", "x"), "not a directory"),
        (("corpus", "--name", "x"), "no finished run"),
        (("{calm}", "--name", "a/b"), "is no name for a registered model"),
        (("{calm}", "--name", "x", "--alias", "v1"), "is no alias"),
        (("{calm}", "--name", "x", "--alias", "two words"), "is no alias"),
    ],
)
def test_refusals_of_register(project: Project, arguments: tuple[str, ...], said: str) -> None:
    words = [word.replace("{calm}", str(project.runs["calm"].run_dir)) for word in arguments]
    if words[0] == "corpus":
        words[0] = str(project.folder / "corpus")
    result = registered(*words, "--work-dir", project.folder / "runs")
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert said in line
    assert [one.name for one in project.client.search_registered_models("name = 'x'")] == []


def test_a_run_that_was_not_recorded_is_not_registered(project: Project, tmp_path: Path) -> None:
    copied = tmp_path / "runs" / "baseline" / "copied"
    shutil.copytree(project.runs["baseline"].run_dir, copied)
    result = registered(copied, "--name", "x")
    assert result.exit_code == 2 and "store that is not at" in result.stderr


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """An MLflow server that keeps files itself; yields its URI."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", str(tmp_path / "kept")]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_models_go_over_a_server(project: Project, server: str, tmp_path: Path) -> None:
    uri = f"tracking.uri={server}"
    runs = tiny_runs.train(project.folder / "corpus", tmp_path / "runs", uri, "tracking.wait_seconds=120")
    run, client = runs["calm"], MlflowClient(server)
    recorded = client.get_run(str(run.mlflow_run_id))
    assert recorded.inputs is not None and len(recorded.inputs.model_inputs) == 1
    assert not (tmp_path / "mlruns").exists()
    assert registered(run.run_dir, "--name", "served", "--alias", "best").exit_code == 0
    assert "(was registered before)" in registered(run.run_dir, "--name", "served").stdout
    for directory in (tmp_path / "runs").iterdir():
        if directory.name != "calm":
            shutil.rmtree(directory)
    expected = generated(run.run_dir, "--tokens", 8, "--autoencoder", project.runs["autoencoder"].run_dir)
    asked = [(name, PROMPTS, {"max_new_tokens": 8}) for name in ("models:/served@best", "models:/served/1")]
    assert predict(server, asked, tmp_path) == [expected, expected]


def test_autoencoders_restore_texts_of_any_length(project: Project) -> None:
    opened, tokenizer = open_model(project.runs["autoencoder"].run_dir), BytesTokenizer()
    model = opened.model
    assert isinstance(model, ChunkAutoencoder)
    texts = ["the cat", "on", "a mat on a mat, über alles"]
    for text, restored in zip(texts, restore_texts(opened, texts), strict=True):
        ids = tokenizer.encode(text)
        filled = [*ids, *[tokenizer.separator_id] * (-len(ids) % 4)]
        tokens_CK = torch.tensor(filled).view(-1, 4)
        expected = model.decode_tokens(model.encode(tokens_CK)[0]).flatten().tolist()[: len(ids)]
        assert restored == tokenizer.decode(expected)
    drawn = [restore_texts(opened, texts, sampled=True, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(SamplingError, match="empty"):
        restore_texts(opened, ["", "a"])
    with pytest.raises(SamplingError, match="no autoencoder"):
        restore_texts(open_model(project.runs["baseline"].run_dir), ["a"])


def test_a_frame_whose_first_column_is_another_is_refused() -> None:
    from calm_lightning.tracking.models.pyfunc import _texts

    assert _texts(pandas.DataFrame({"prompt": ["a", "b"]})) == _texts(pandas.DataFrame(["a", "b"])) == ["a", "b"]
    with pytest.raises(SamplingError, match="'id'"):
        _texts(pandas.DataFrame({"id": ["1"], "prompt": ["a"]}))

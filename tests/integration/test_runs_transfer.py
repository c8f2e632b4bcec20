"""`calm runs`: listed, exported, imported and copied on real SQLite stores and a real server, and killed in between."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

pytest.importorskip("mlflow")

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)

from calm_lightning.cli import runs
from calm_lightning.cli.main import FrontDoor
from calm_lightning.errors import TrackingError
from calm_lightning.tracking.moving.archive import ArchiveSource
from calm_lightning.tracking.moving.archive_writer import write_archive
from calm_lightning.tracking.moving.records import safe_path
from calm_lightning.tracking.moving.transfer import FILES_TAG, batches, copy_runs
from calm_lightning.tracking.reading.places import find_place, open_place
from calm_lightning.tracking.reading.store_source import COPIED_FROM, StoreSource

COMMAND = typer.Typer(cls=FrontDoor)
COMMAND.add_typer(runs.app, name="runs")
PROGRAM = (
    "import typer; from calm_lightning.cli import runs; from calm_lightning.cli.main import FrontDoor; "
    "app = typer.Typer(cls=FrontDoor); app.add_typer(runs.app, name='runs'); app()"
)
POINTS = 2500


def calm(*words: str) -> Any:
    return CliRunner().invoke(COMMAND, ["runs", *words], catch_exceptions=False, env={"COLUMNS": "200"})


def quiet(done: int, total: int, name: str) -> None:
    """Show no progress."""


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with nothing in it, to be copied: making MLflow's schema takes seconds."""
    folder = tmp_path_factory.mktemp("template")
    open_place(find_place(folder), make=True)
    return folder / "mlruns"


@pytest.fixture
def project(empty_store: Path, tmp_path: Path) -> Path:
    """A directory with an empty store."""
    shutil.copytree(empty_store, tmp_path / "other" / "mlruns")
    return tmp_path / "other"


@pytest.fixture(scope="module")
def source(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the store that runs are copied from: a sweep, its autoencoder, a model, an evaluation."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(empty_store, folder / "mlruns")
    client = open_place(find_place(folder))
    experiment = client.create_experiment(
        "calm", (folder / "mlruns" / "artifacts").as_uri(), {"mlflow.experimentKind": "custom_model_development"}
    )
    autoencoder = begin(client, experiment, "autoencoder", stage="autoencoder", K="4", l="128")
    finish(client, autoencoder, 20)
    parent = begin(client, experiment, "sweep", stage="sweep", study="s")
    for seed in range(2):
        name = f"calm-K4-s{seed}"
        child = begin(client, experiment, name, parent, stage="calm", K="4", l="128", N="8", head="energy", study="s")
        client.set_tag(child, "calm.autoencoder_run", autoencoder)
        note = f"[up](#/experiments/{experiment}/runs/{parent}) ![f](get-artifact?path=front.png&run_uuid={child})"
        client.set_tag(child, "mlflow.note.content", note)
        fill(client, folder, child, POINTS if seed == 0 else 30)
        if seed == 0:
            log_model(client, folder, experiment, child)
        finish(client, child, 1000 * (seed + 2), "KILLED" if seed else "FINISHED")
    finish(client, parent, 9000)
    return folder


def begin(client: MlflowClient, experiment: str, name: str, parent: str = "", **tags: str) -> str:
    tags["mlflow.user"] = "ada"
    if parent:
        tags["mlflow.parentRunId"] = parent
    return str(client.create_run(experiment, start_time=1000, run_name=name, tags=tags).info.run_id)


def finish(client: MlflowClient, run_id: str, end: int, status: str = "FINISHED") -> None:
    client.set_terminated(run_id, status, 1000 + end)


def fill(client: MlflowClient, folder: Path, run_id: str, count: int) -> None:
    """Log everything that a run can have: more of each than fits in one request."""
    values = [float("nan"), float("inf"), -float("inf"), 1e-300, 0.1]
    points = [Metric("val/brier_lm", values[i] if i < 5 else i / 7, 1000 + i, i) for i in range(count)]
    points += [Metric("val/brier_lm", 3.25, 1000 + count, count), Metric("val/brier_lm", 3.5, 2000 + count, count)]
    points += [Metric("cost/train_flops_with_autoencoder", 5.3e13, 1000 + count, count)]
    for start in range(0, len(points), 1000):
        client.log_batch(run_id, metrics=points[start : start + 1000])
    for start in (0, 100):
        client.log_batch(run_id, params=[Param(f"p.{i}", "é" * 40 + str(i)) for i in range(start, start + 100)])
        client.log_batch(run_id, tags=[RunTag(f"t.{i}", "ü" * 400 + str(i)) for i in range(start, start + 100)])
    dataset = Dataset("corpus", "abc", "local", '{"uri": "x"}', '{"schema": 1}', '{"tokens": 5}')
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "train")])])
    files = folder / "files"
    (files / "deep" / "er").mkdir(parents=True, exist_ok=True)
    (files / "front.png").write_bytes(os.urandom(5000))
    (files / "deep" / "er" / "sample text.txt").write_text("a sample\n")
    (files / "deep" / "empty").write_bytes(b"")
    client.log_artifacts(run_id, str(files))


def log_model(client: MlflowClient, folder: Path, experiment: str, run_id: str) -> None:
    model = client.create_logged_model(experiment, "model", run_id, {"kind": "calm"}, {"K": "4"}, "calm")
    files = folder / "model"
    (files / "code").mkdir(parents=True)
    (files / "MLmodel").write_text(f"run_id: {run_id}\nmodel_id: {model.model_id}\n")
    (files / "code" / "weights.safetensors").write_bytes(os.urandom(3000))
    client.log_model_artifacts(model.model_id, str(files))
    client.log_batch(run_id, metrics=[Metric("model/score", 4.5, 1500, 7, model_id=model.model_id)])
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 7)])
    evaluation = begin(client, experiment, "evaluation", stage="evaluation")
    client.set_tag(evaluation, "calm.model_run", run_id)
    client.log_inputs(evaluation, models=[LoggedModelInput(model.model_id)])
    finish(client, evaluation, 5)


def all_runs(client: MlflowClient) -> dict[str, Any]:
    """Return every run by name; two of one name are a failure."""
    ids = [one.experiment_id for one in client.search_experiments()]
    found = client.search_runs(ids)
    names = [run.info.run_name for run in found]
    assert len(names) == len(set(names)), f"duplicates: {names}"
    return {run.info.run_name: run for run in found}


def picture(place: Path | str) -> dict[str, Any]:
    """Return everything that can be compared about a store's runs, with names in the place of ids."""
    client = open_place(find_place(place))
    found = all_runs(client)
    names = {run.info.run_id: name for name, run in found.items()}
    models = {}
    for run in found.values():
        for output in run.outputs.model_outputs if run.outputs else []:
            models[output.model_id] = client.get_logged_model(output.model_id)
            names[output.model_id] = models[output.model_id].name
    source = StoreSource(client, find_place(place), tuple(run.info.run_id for run in found.values()))

    def named(text: str) -> str:
        text = re.sub(r"(m-)?[0-9a-f]{32}", lambda match: names.get(match[0], match[0]), text)
        return re.sub(r"#/experiments/\d+", "#/experiments/E", text)

    def files(owner: str) -> dict[str, str]:
        with source.files(owner) as folder:
            return {
                file.path: named((folder.root / file.path).read_text()) if file.path == "MLmodel" else file.sha256
                for file in folder.files
            }

    def described(run: Any) -> dict[str, Any]:
        histories = source.histories(run.info.run_id)
        inputs = run.inputs.dataset_inputs if run.inputs else []
        return {
            "experiment": client.get_experiment(run.info.experiment_id).name,
            "info": (run.info.status, run.info.start_time, run.info.end_time, run.info.user_id),
            "tags": {k: named(v) for k, v in run.data.tags.items() if k not in (COPIED_FROM, FILES_TAG)},
            "params": dict(run.data.params),
            "histories": {one.key: sorted(map(repr, one.points)) for one in histories},
            "datasets": [(one.dataset.to_dictionary(), [(t.key, t.value) for t in one.tags]) for one in inputs],
            "uses": [names[one.model_id] for one in (run.inputs.model_inputs if run.inputs else [])],
            "makes": [(names[one.model_id], one.step) for one in (run.outputs.model_outputs if run.outputs else [])],
            "files": files(run.info.run_id),
        }

    return {name: described(run) for name, run in found.items()} | {
        f"model {model.name}": {
            "status": str(model.status),
            "made by": names[model.source_run_id],
            "tags": {k: v for k, v in model.tags.items() if k != COPIED_FROM},
            "params": model.params,
            "metrics": [(m.key, m.value, m.timestamp, m.step, names[m.run_id]) for m in model.metrics],
            "files": files(model.model_id),
        }
        for model in models.values()
    }


class Server:
    """A real tracking server."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        command += [*options, "--port", str(port), "--workers", "1"]
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError("the server did not start")

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def server(empty_store: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that keeps files itself, as one for several machines does."""
    shutil.copytree(empty_store, tmp_path / "served")
    running = Server(tmp_path / "served", "--artifacts-destination", str(tmp_path / "served" / "files"))
    yield running
    running.stop()


def test_a_copy_is_the_same_in_every_point(source: Path, project: Path) -> None:
    result = calm("copy", "--all", "--from", str(source), "--to", str(project))
    assert result.exit_code == 0, result.output
    assert "5 runs in sqlite:///" in result.output and ": 5 copied" in result.output
    before, after = picture(source), picture(project)
    assert len(before["calm-K4-s0"]["histories"]["val/brier_lm"]) == POINTS + 2
    assert "nan" in before["calm-K4-s0"]["histories"]["val/brier_lm"][-1] or any(
        "nan" in point for point in before["calm-K4-s0"]["histories"]["val/brier_lm"]
    )
    assert before["calm-K4-s1"]["tags"]["mlflow.note.content"].startswith("[up](#/experiments/E/runs/sweep)")
    assert before["evaluation"]["tags"]["calm.model_run"] == "calm-K4-s0"
    assert after == before


def test_copying_again_changes_nothing_and_what_went_on_is_added(source: Path, project: Path, tmp_path: Path) -> None:
    place = find_place(project)
    shutil.copytree(source, tmp_path / "moving")
    origin = find_place(tmp_path / "moving")
    copy_runs(StoreSource.choose(origin, ["sweep"]), place, progress=quiet)
    again = copy_runs(StoreSource.choose(origin, ["sweep"]), place, progress=quiet)
    assert [one.what for one in again] == ["unchanged"] * 4

    client = open_place(origin)
    run_id = all_runs(client)["calm-K4-s1"].info.run_id
    client.log_metric(run_id, "val/brier_lm", 9.0, timestamp=5000, step=99)
    client.set_tag(run_id, "pareto", "front")
    (tmp_path / "front.png").write_bytes(os.urandom(5000))  # of the same size as before
    client.log_artifact(run_id, str(tmp_path / "front.png"))
    third = {one.name: one.what for one in copy_runs(StoreSource.choose(origin, ["sweep"]), place, progress=quiet)}
    assert third.pop("calm-K4-s1") == "completed"
    assert set(third.values()) == {"unchanged"}
    before, after = picture(tmp_path / "moving"), picture(project)
    assert all(after[name] == before[name] for name in ("sweep", "calm-K4-s0", "calm-K4-s1", "autoencoder"))


def test_without_children_and_later_with_them(source: Path, project: Path) -> None:
    place = find_place(project)
    chosen = StoreSource.choose(find_place(source), ["calm-K4-s0"], children=False)
    assert [one.what for one in copy_runs(chosen, place, progress=quiet)] == ["copied"]
    assert "mlflow.parentRunId" not in all_runs(open_place(place))["calm-K4-s0"].data.tags
    copy_runs(StoreSource.choose(find_place(source), []), place, progress=quiet)
    assert picture(project) == picture(source)


def test_into_a_server_and_back(source: Path, project: Path, server: Server, tmp_path: Path) -> None:
    assert calm("copy", "--all", "--from", str(source), "--to", server.uri).exit_code == 0
    before = picture(source)
    assert picture(server.uri) == before
    assert not list((tmp_path / "served" / "files").rglob("*.part"))
    back = calm("copy", "--all", "--from", server.uri, "--to", str(project))
    assert back.exit_code == 0 and "5 copied" in back.output
    assert picture(project) == before
    home = calm("copy", "--all", "--from", str(project), "--to", server.uri)
    assert "5 there already" in home.output
    origin = calm("copy", "--all", "--from", str(project), "--to", str(source))
    assert "5 left alone, since they were recorded there" in origin.output
    assert picture(source) == before


def test_a_server_that_keeps_files_in_a_directory(
    source: Path, project: Path, empty_store: Path, tmp_path: Path
) -> None:
    """As `calm ui` serves the embedded store. Files are read through the server, so a tunnel is enough."""
    shutil.copytree(source, tmp_path / "remote")
    place = tmp_path / "remote" / "mlruns"
    running = Server(place, "--default-artifact-root", (place / "artifacts").as_uri())
    try:
        assert calm("copy", "--all", "--from", running.uri, "--to", str(project)).exit_code == 0
        assert picture(project) == picture(source)
        shutil.copytree(empty_store, tmp_path / "new" / "mlruns")
        client = open_place(find_place(tmp_path / "new"))
        run_id = begin(client, client.create_experiment("more", (tmp_path / "new" / "a").as_uri()), "more")
        client.log_text(run_id, "text", "a/b.txt")
        client.log_text(run_id, "text", "c.txt")
        result = calm("copy", "more", "--from", str(tmp_path / "new"), "--to", running.uri)
        assert "1 copied" in result.output
    finally:
        running.stop()
    assert picture(tmp_path / "remote")["more"]["files"].keys() == {"a/b.txt", "c.txt"}


def test_files_of_a_store_that_was_moved_are_found(source: Path, project: Path, tmp_path: Path) -> None:
    before = picture(source)
    shutil.copytree(source, tmp_path / "first")
    hidden = source.rename(source.with_name("gone"))
    try:
        copy_runs(StoreSource.choose(find_place(tmp_path / "first"), []), find_place(project), progress=quiet)
    finally:
        hidden.rename(source)
    assert picture(project) == before


def test_two_copies_at_once_are_refused(source: Path, project: Path) -> None:
    from calm_lightning.tracking.moving.destination import Destination

    with Destination(find_place(project)).alone():
        result = calm("copy", "--all", "--from", str(source), "--to", str(project))
    assert result.exit_code == 2 and "another process copies runs into" in result.stderr
    assert all_runs(open_place(find_place(project))) == {}


def test_a_file_whose_name_cannot_travel_is_named(empty_store: Path, project: Path, tmp_path: Path) -> None:
    shutil.copytree(empty_store, tmp_path / "odd" / "mlruns")
    client = open_place(find_place(tmp_path / "odd"))
    run_id = begin(client, client.create_experiment("odd", (tmp_path / "odd" / "a").as_uri()), "odd")
    client.log_text(run_id, "x", "a\nb.txt")
    result = calm("copy", "odd", "--from", str(tmp_path / "odd"), "--to", str(project))
    assert result.exit_code == 2 and "because of its name" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_copied_model_is_loaded_from_its_copy(project: Path, empty_store: Path, tmp_path: Path) -> None:
    import mlflow

    origin = tmp_path / "origin"
    shutil.copytree(empty_store, origin / "mlruns")
    place, before = find_place(origin), mlflow.get_tracking_uri()
    open_place(place).create_experiment("calm", (origin / "mlruns" / "artifacts").as_uri())
    code = (
        "import mlflow\n"
        "class Shout(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input: list[str]) -> list[str]:\n"
        "        return [text + '!' for text in model_input]\n"
        "mlflow.models.set_model(Shout())\n"
    )
    (tmp_path / "shout.py").write_text(code)
    try:
        mlflow.set_tracking_uri(place.uri)
        mlflow.set_experiment("calm")
        with mlflow.start_run(run_name="loud"):
            mlflow.pyfunc.log_model(name="model", python_model=str(tmp_path / "shout.py"), pip_requirements=["mlflow"])
        copy_runs(StoreSource.choose(place, []), find_place(project), progress=quiet)
        shutil.rmtree(origin)
        mlflow.set_tracking_uri(find_place(project).uri)
        run = all_runs(open_place(find_place(project)))["loud"]
        model = mlflow.pyfunc.load_model(f"models:/{run.outputs.model_outputs[0].model_id}")
        assert model.predict(["hi"]) == ["hi!"]
        assert model.metadata.run_id == run.info.run_id
    finally:
        mlflow.set_tracking_uri(before)


@pytest.mark.slow
def test_killed_again_and_again_there_is_one_whole_copy(source: Path, project: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "runs", "copy", "--all", "--from", str(source), "--to", str(project)]
    database = project / "mlruns" / "mlflow.db"

    def count(table: str) -> int:
        with sqlite3.connect(database, timeout=30) as connection:
            return int(connection.execute(f"select count(*) from {table}").fetchone()[0])

    killed = 0
    for table, more in (("runs", 1), ("metrics", 900), ("metrics", 900), ("metrics", 1), ("tags", 100)):
        wanted = count(table) + more
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and count(table) < wanted:
            time.sleep(0.002)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 4
    last = subprocess.run(command, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert picture(project) == picture(source)
    with sqlite3.connect(database) as connection:
        assert connection.execute("select count(*) from logged_models").fetchone() == (1,)


def test_an_archive_holds_everything(source: Path, project: Path, tmp_path: Path) -> None:
    archive = tmp_path / "runs.zip"
    result = calm("export", "sweep", "evaluation", "--work-dir", str(source / "runs"), "--out", str(archive))
    assert result.exit_code == 0 and "5 runs in" in result.output
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []
    first = archive.read_bytes()
    assert calm("export", "--all", "--work-dir", str(source / "runs"), "--out", str(archive)).exit_code == 2
    calm("export", "sweep", "evaluation", "--work-dir", str(source / "runs"), "--out", str(archive), "--force")
    assert archive.read_bytes() == first
    result = calm("import", str(archive), "--work-dir", str(project / "runs"))
    assert result.exit_code == 0 and "5 copied" in result.output
    assert picture(project) == picture(source)
    assert "5 there already" in calm("import", str(archive), "--work-dir", str(project / "runs")).output
    result = calm("import", str(archive), "--work-dir", str(project / "runs"), "--into", "guests")
    assert "5 copied" in result.output


@pytest.fixture(scope="module")
def archive(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "runs.zip"
    write_archive(StoreSource.choose(find_place(source), ["calm-K4-s1"], children=False), path, quiet)
    return path


def rewritten(archive: Path, target: Path, change: Any) -> Path:
    """Return an archive whose entries were changed, with an index that fits them."""
    import hashlib

    with zipfile.ZipFile(archive) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    index = json.loads(entries.pop("calm-runs.json"))
    change(entries, index)
    index["entries"] = {
        name: [len(data), hashlib.sha256(data).hexdigest()] for name, data in entries.items()
    } | index.get("forced", {})
    index.pop("forced", None)
    with zipfile.ZipFile(target, "w") as new:
        for name, data in {**entries, "calm-runs.json": json.dumps(index).encode()}.items():
            new.writestr(name, data)
    return target


def refusal(path: Path) -> str:
    with pytest.raises(TrackingError) as caught, ArchiveSource(path) as source:
        for run_id in source.run_ids:
            source.run(run_id)
            list(source.histories(run_id))
            with source.files(run_id):
                pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["files/x/../../evil", "/etc/evil", "files/x/..", "files//x", "a\\b", "c:/x"])
def test_paths_that_leave_the_archive_are_refused(archive: Path, tmp_path: Path, name: str) -> None:
    bad = rewritten(archive, tmp_path / "bad.zip", lambda entries, index: entries.update({name: b"x"}))
    assert "not a path inside a directory" in refusal(bad)


def test_a_run_id_that_is_a_path_is_refused(archive: Path, tmp_path: Path) -> None:
    bad = rewritten(archive, tmp_path / "bad.zip", lambda entries, index: index["runs"].append("../../x"))
    assert "runs.1" in refusal(bad)


def test_foreign_damaged_and_newer_files_are_one_sentence(archive: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.zip"
    text.write_text("no zip")
    assert "is not an archive of runs" in refusal(text)
    assert "there is no file" in refusal(tmp_path / "none.zip")
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("readme.txt", "hello")
    assert "is a zip file but not an archive of runs" in refusal(other)
    newer = rewritten(archive, tmp_path / "newer.zip", lambda entries, index: index.update(version=2))
    assert "written by a newer calm (format 2)" in refusal(newer)
    whole = archive.read_bytes()
    cut = tmp_path / "cut.zip"
    cut.write_bytes(whole[: len(whole) // 2])
    assert "is not an archive of runs" in refusal(cut)


def test_a_damaged_archive_leaves_no_trace(archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        place = next(info.header_offset for info in file.infolist() if info.filename.endswith("front.png"))
    content[place + 2000] ^= 1
    (tmp_path / "bad.zip").write_bytes(content)
    result = calm("import", str(tmp_path / "bad.zip"), "--work-dir", str(tmp_path / "new" / "runs"))
    assert result.exit_code == 2 and "front.png" in result.stderr and "is damaged" in result.stderr
    assert not (tmp_path / "new").exists()


def test_entries_are_those_of_the_index(archive: Path, tmp_path: Path) -> None:
    extra = tmp_path / "extra.zip"
    shutil.copy(archive, extra)
    with zipfile.ZipFile(extra, "a") as file:
        file.writestr("more.txt", "x")
    assert "not those of its index" in refusal(extra)
    missing = rewritten(archive, tmp_path / "b.zip", lambda e, i: i.update(forced={"files/x/y": [1, "0" * 64]}))
    assert "not those of its index" in refusal(missing)
    (run_id,) = json.loads(zipfile.ZipFile(archive).read("calm-runs.json"))["runs"]
    name = f"files/{run_id}/front.png"
    size = rewritten(archive, tmp_path / "c.zip", lambda e, i: i.update(forced={name: [1 << 40, "0" * 64]}))
    assert "another size than the index says" in refusal(size)
    content = rewritten(archive, tmp_path / "d.zip", lambda e, i: i.update(forced={name: [5000, "0" * 64]}))
    assert f"{name} is not what the index says" in refusal(content)
    below = rewritten(archive, tmp_path / "e.zip", lambda e, i: e.update({f"{name}/below": b"x"}))
    assert "not those of its index" in refusal(below)


def test_a_record_with_a_wrong_type_is_refused(archive: Path, tmp_path: Path) -> None:
    def change(entries: dict[str, bytes], index: dict[str, Any]) -> None:
        (name,) = (name for name in entries if name.endswith("run.json"))
        record = json.loads(entries[name])
        record["tags"]["K"] = 4
        entries[name] = json.dumps(record).encode()

    assert "tags.K" in refusal(rewritten(archive, tmp_path / "bad.zip", change))


def test_every_flipped_byte_is_noticed_or_harmless(archive: Path, tmp_path: Path) -> None:
    """Whatever single byte is wrong, what is read is refused or is what was written."""
    with ArchiveSource(archive) as source:
        (run_id,) = source.run_ids
        expected = (source.run(run_id), [one.model_dump_json() for one in source.histories(run_id)])
    whole, bad = archive.read_bytes(), tmp_path / "bad.zip"
    refused = 0
    for position in range(7, len(whole), len(whole) // 60):
        content = bytearray(whole)
        content[position] ^= 0x55
        bad.write_bytes(content)
        try:
            with ArchiveSource(bad) as source:
                found = (source.run(run_id), [one.model_dump_json() for one in source.histories(run_id)])
                with source.files(run_id):
                    pass
        except TrackingError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert found == expected
    assert refused > 20


def test_list_shows_and_filters(source: Path) -> None:
    result = calm("list", "tags.K = '4' and tags.stage = 'calm'", "--work-dir", str(source / "runs"))
    assert result.exit_code == 0, result.output
    assert "calm-K4-s0" in result.output and "calm-K4-s1" in result.output and "2 runs" in result.output
    assert "5.30e13" in result.output and "3.50" in result.output and "energy" in result.output
    rows = json.loads(calm("list", "--json", "--uri", f"sqlite:///{source}/mlruns/mlflow.db").output)
    assert {row["name"] for row in rows} == {"autoencoder", "sweep", "calm-K4-s0", "calm-K4-s1", "evaluation"}
    child = next(row for row in rows if row["name"] == "calm-K4-s1")
    assert (child["N"], child["status"], child["study"], child["brier_lm"]) == ("8", "killed", "s", 3.5)
    begun = calm("list", child["run_id"][:9], "--json", "--work-dir", str(source / "runs"))
    assert [row["name"] for row in json.loads(begun.output)] == ["calm-K4-s1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("list", "tags.K ="), "MLflow cannot read the filter 'tags.K ='"),
        (("list", "--experiment", "none"), "there is no experiment 'none'"),
        (("list", "--uri", "http://127.0.0.1:9"), "nothing answers at http://127.0.0.1:9"),
        (("list", "--uri", "postgresql://me:secret@127.0.0.1:9/x"), "postgresql://me:***@127.0.0.1:9/x"),
        (("export", "--out", "x.zip"), "no runs are named"),
        (("export", "nobody", "--out", "x.zip"), "is meant by 'nobody'"),
        (("copy", "x", "--all", "--to", "y"), "contradict each other"),
        (("copy", "--all"), "to itself: name another store"),
        (("import", "none.zip"), "there is no file none.zip"),
    ],
)
def test_what_can_be_mended_is_one_sentence(source: Path, words: tuple[str, ...], said: str) -> None:
    began = time.monotonic()
    result = calm(*words, *(("--work-dir", str(source / "runs")) if "--uri" not in words else ()))
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert "secret" not in result.stderr
    assert time.monotonic() - began < 30


def test_no_store_is_made_by_looking(tmp_path: Path) -> None:
    result = calm("list", "--work-dir", str(tmp_path / "runs"))
    assert result.exit_code == 2 and "there is no MLflow store at" in result.stderr
    assert list(tmp_path.iterdir()) == []


@given(st.text(max_size=30))
def test_safe_paths_stay_inside(path: str) -> None:
    try:
        safe = safe_path(path)
    except ValueError:
        return
    assert Path(os.path.normpath(f"/root/{safe}")).is_relative_to("/root")
    assert os.path.normpath(safe) == safe and safe != "."


@given(
    st.lists(st.tuples(st.text(max_size=5), st.integers(0, 150_000).map("x".__mul__)), max_size=8), st.integers(1, 4)
)
def test_batches_keep_everything_in_order_within_limits(pairs: list[tuple[str, str]], count: int) -> None:
    lots = list(batches(pairs, count))
    assert [pair for lot in lots for pair in lot] == pairs
    assert all(lots) and all(len(lot) <= count for lot in lots)
    assert all(len(lot) == 1 or sum(len(k) + len(v) for k, v in lot) <= 200_000 for lot in lots)


def test_math_of_nan_is_not_forgotten(source: Path) -> None:
    client = open_place(find_place(source))
    history = client.get_metric_history(all_runs(client)["calm-K4-s0"].info.run_id, "val/brier_lm")
    assert any(math.isnan(point.value) for point in history)

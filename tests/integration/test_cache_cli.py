"""`calm cache` and the stage cache on real runs of a tiny corpus: listed, verified, damaged, pruned."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from click.testing import Result
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from calm_lightning.cli import cache
from calm_lightning.cli.main import FrontDoor
from calm_lightning.config import RunConfig, load_config
from calm_lightning.run import RunResult, execute, locate
from sweeps.cache.inventory import Uses, entries
from sweeps.cache.pruning import remove
from sweeps.cache.records import lease_name, leases_directory
from sweeps.cache.stage_cache import StageCache
from sweeps.trials.leases import Leases

app = typer.Typer(cls=FrontDoor)
app.add_typer(cache.app, name="cache")
TINY = [
    "data.block_tokens=96",
    "data.batch_tokens=384",
    "data.eval_batch_tokens=192",
    "data.eval_max_blocks=4",
    "model={d: 16, intermediate: 32, layers: 1, heads: 2, N: 2, M: 2, noise_size: 8, K: 2}",
    "autoencoder={d: 16, intermediate: 32}",
    "evaluation={every_steps: 0, samples: 2, text_tokens: 0}",
    "trainer={max_steps: 3, accelerator: cpu, precision: 32-true}",
    "tracking.mlflow=false",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from data_pipelines.prepare import prepare

    folder = tmp_path_factory.mktemp("cache")
    for split, documents in (("train", 60), ("val", 8)):
        rows = (json.dumps({"text": f"{'the small cat sat on the mat. ' * 8}{number}"}) for number in range(documents))
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    prepare([folder / "train.jsonl", folder / "val.jsonl"], folder / "corpus", "bytes", shard_tokens=8192)
    return folder / "corpus"


def configure(corpus: Path, work_dir: Path, stage: str, *overrides: str) -> RunConfig:
    return load_config([*TINY, f"data.corpus={corpus}", f"work_dir={work_dir}", *overrides], stage=stage)


@pytest.fixture(scope="module")
def made(corpus: Path) -> Path:
    """Return a work directory with a used autoencoder, an unused one, and one that was interrupted."""
    work_dir = corpus.parent / "runs"
    used = execute(configure(corpus, work_dir, "autoencoder"), progress=False)
    execute(configure(corpus, work_dir, "calm", f"autoencoder_run={used.run_dir}"), progress=False)
    execute(configure(corpus, work_dir, "autoencoder", "seed=1"), progress=False)
    part = execute(configure(corpus, work_dir, "autoencoder", "seed=2"), progress=False).run_dir
    for name in ("result.json", "model.safetensors"):
        (part / name).unlink()
    return work_dir


@pytest.fixture
def work_dir(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs"


def calm(work_dir: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        app, ["cache", arguments[0], "--work-dir", str(work_dir), *arguments[1:]], env={"COLUMNS": "200"}
    )


def listed(work_dir: Path) -> dict[str, dict[str, object]]:
    result = calm(work_dir, "ls", "--json")
    assert result.exit_code == 0, result.output
    return {re.sub(r".*-(s\d+)-.*", r"\1", Path(one["run_dir"]).name): one for one in json.loads(result.output)}


def directories(work_dir: Path) -> list[str]:
    return sorted(re.sub(r".*-(s\d+)-.*", r"\1", path.name) for path in (work_dir / "autoencoder").glob("*-*"))


def test_ls_says_what_is_there(work_dir: Path) -> None:
    found = listed(work_dir)
    states = {name: (one["state"], len(one["users"]), one["step"]) for name, one in found.items()}  # type: ignore[arg-type]
    assert states == {"s0": ("finished", 1, 3), "s1": ("finished", 0, 3), "s2": ("interrupted", 0, 3)}
    one = found["s0"]
    result = json.loads((Path(str(one["run_dir"])) / "result.json").read_text())
    assert (one["K"], one["l"], one["d"]) == (2, 64, 16)
    assert one["identity"] == result["identity"] and one["corpus"] == result["protocol"]["corpus"]
    assert one["accuracy"] == result["metrics"]["val/token_accuracy_sampled"]
    assert one["train_flops"] == result["train_flops"] > 0
    assert found["s2"]["train_flops"] == one["train_flops"], "what the interrupted one has cost, it has cost"
    weights = (Path(str(one["run_dir"])) / "model.safetensors").stat().st_size
    assert weights < one["bytes"] < 20 * weights  # type: ignore[operator]
    table = calm(work_dir, "ls").output
    assert "K2-l64-d16-s0" in table and "interrupted at step 3" in table and "3 autoencoders, " in table


def test_ls_says_who_trains(work_dir: Path) -> None:
    leases = Leases(leases_directory(work_dir), "k4/local-1")
    lease = leases.acquire(lease_name(str(listed(work_dir)["s2"]["identity"])))
    assert lease is not None
    assert "training by k4/local-1" in calm(work_dir, "ls").output
    leases.close()
    assert "interrupted at step 3" in calm(work_dir, "ls").output


def test_what_cannot_be_listed_is_one_sentence(tmp_path: Path) -> None:
    for command in ("ls", "verify", "prune"):
        result = calm(tmp_path / "nowhere", command)
        assert result.exit_code == 2 and "--work-dir DIR" in result.output, result.output
    assert "holds no autoencoders" in calm(tmp_path, "ls").output
    assert "nothing to remove" in calm(tmp_path, "prune").output
    assert list(tmp_path.iterdir()) == []


def test_verify_finds_nothing_in_sound_ones(work_dir: Path) -> None:
    result = calm(work_dir, "verify")
    assert result.exit_code == 0, result.output
    assert "2 finished autoencoders" in result.output and "nothing wrong" in result.output


def damage(run_dir: Path, how: str) -> None:
    weights, config, result = (run_dir / name for name in ("model.safetensors", "config.yaml", "result.json"))
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "missing":
        weights.unlink()
    elif how in ("nan", "shape", "renamed"):
        tensors = load_file(weights)
        first = sorted(tensors)[0]
        if how == "nan":
            tensors[first].flat[3] = np.nan
        elif how == "shape":
            tensors[first] = tensors[first][1:].copy()
        else:
            tensors["stranger"] = tensors.pop(first)
        save_file(tensors, weights)
    elif how == "config":
        config.write_text(config.read_text().replace("lr: 0.0003", "lr: 0.003"))
    elif how == "unknown key":
        config.write_text(config.read_text() + "no_such_key: 1\n")
    elif how == "corpus":
        value = json.loads(result.read_text())
        value["protocol"]["corpus"] = "0" * 64
        result.write_text(json.dumps(value))
    elif how == "result":
        result.write_text("{")
    elif how == "directory":
        run_dir.rename(run_dir.with_name(f"{run_dir.name[:-10]}0123456789"))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated", "model.safetensors is missing or damaged"),
        ("missing", "model.safetensors is missing or damaged"),
        ("nan", "model.safetensors holds numbers that are not finite in decoder"),
        ("shape", "of other shapes than config.yaml says"),
        ("renamed", "model.safetensors has unknown tensors stranger"),
        ("config", "give identity"),
        ("unknown key", "config.yaml does not load"),
        ("corpus", "and corpus 0000000000 give identity"),
        ("result", "result.json cannot be read"),
        ("directory", "the directory is named after 0123456789"),
    ],
)
def test_verify_finds_what_is_wrong(work_dir: Path, how: str, words: str) -> None:
    damage(Path(str(listed(work_dir)["s1"]["run_dir"])), how)
    result = calm(work_dir, "verify")
    assert result.exit_code == 1
    assert words in " ".join(result.output.replace("│", " ").split()), result.output
    assert "-s1-" in result.output and "-s0-" not in result.output
    assert "put the original files back" in result.output


def test_prune_says_what_it_would_do_and_does_it(work_dir: Path) -> None:
    result = calm(work_dir, "prune")
    assert result.exit_code == 0 and "nothing was removed: add --yes" in result.output
    assert directories(work_dir) == ["s0", "s1", "s2"]
    assert "removed autoencoder-K2-l64-d16-s1" in calm(work_dir, "prune", "--yes").output
    assert directories(work_dir) == ["s0", "s2"]
    calm(work_dir, "prune", "--unfinished", "--yes")
    assert directories(work_dir) == ["s0"]
    assert "nothing to remove" in calm(work_dir, "prune", "--all-unused", "--yes").output
    assert not (work_dir / "autoencoder" / ".pruned").exists()


def test_prune_by_age(work_dir: Path) -> None:
    old = Path(str(listed(work_dir)["s2"]["run_dir"]))
    week = time.time() - 7 * 86400
    for path in (*old.rglob("*"), old):
        os.utime(path, (week, week))
    assert "nothing to remove" in calm(work_dir, "prune", "--all-unused", "--older-than", "8", "--yes").output
    calm(work_dir, "prune", "--all-unused", "--older-than", "6", "--yes")
    assert directories(work_dir) == ["s0", "s1"]


def test_prune_spares_what_anybody_needs(work_dir: Path, corpus: Path) -> None:
    unused = Path(str(listed(work_dir)["s1"]["run_dir"]))
    leases = Leases(leases_directory(work_dir), "local-0")
    with leases.acquire(lease_name(unused.name[-10:])):  # type: ignore[union-attr]
        assert "held by local-0" in calm(work_dir, "prune", "--yes").output
    config = configure(corpus, work_dir, "autoencoder", "seed=1")
    StageCache(work_dir, leases, announce=print).obtain(config, train=pytest.fail)  # type: ignore[arg-type]
    assert "given to a trial within the last ten minutes" in calm(work_dir, "prune", "--yes").output
    (unused / "used").unlink()
    run = next((work_dir / "calm").iterdir())
    starting = run.with_name("calm-starting-0123456789")
    starting.mkdir()
    text = (run / "config.yaml").read_text()
    (starting / "config.yaml").write_text(re.sub("autoencoder_run: .*", f"autoencoder_run: gone/{unused.name}", text))
    assert "nothing to remove" in calm(work_dir, "prune", "--yes").output, "it is used by an unfinished run"
    (starting / "config.yaml").write_text("{")
    result = calm(work_dir, "prune", "--yes")
    assert result.exit_code == 2 and "is not known" in result.output
    shutil.rmtree(starting)
    leases.close()
    assert directories(work_dir) == ["s0", "s1", "s2"]


def test_a_run_that_begins_between_looking_and_removing_is_seen(work_dir: Path) -> None:
    leases, uses = Leases(leases_directory(work_dir), "prune"), Uses(work_dir)
    (unused,) = [one for one in entries(work_dir, leases, uses) if "-s1-" in one.run_dir.name]
    late = work_dir / "calm" / "calm-late-0123456789"
    late.mkdir()
    (late / "config.yaml").write_text(f"autoencoder_run: {unused.run_dir}\n")
    assert remove(work_dir, unused, leases, uses) == "used by calm-late-0123456789"
    leases.close()


def test_the_cache_finds_real_runs_under_any_name_and_language_models_train_on_them(
    work_dir: Path, corpus: Path
) -> None:
    leases = Leases(leases_directory(work_dir), "local-0")
    store = StageCache(work_dir, leases, announce=print)

    def train(config: RunConfig) -> RunResult:
        return execute(config, progress=False)

    _, use = store.obtain(configure(corpus, work_dir, "autoencoder", "seed=0", "name=another"), train)
    assert not use.trained and use.run_dir.name.startswith("autoencoder-K2-l64-d16-s0-")
    outcome, use = store.obtain(configure(corpus, work_dir, "autoencoder", "seed=2"), train)
    assert use.trained, "the interrupted one is completed"
    assert use.identity == locate(configure(corpus, work_dir, "autoencoder", "seed=2")).identity
    model = execute(configure(corpus, work_dir, "calm", "seed=2", f"autoencoder_run={outcome.run_dir}"), progress=False)
    assert model.train_flops > use.train_flops > 0
    assert calm(work_dir, "verify").exit_code == 0
    assert listed(work_dir)["s2"]["users"] == [model.run_dir.name]
    leases.close()


def test_every_command_explains_itself_with_an_example() -> None:
    for command in ("ls", "verify", "prune"):
        assert f"Example: calm cache {command}" in CliRunner().invoke(app, ["cache", command, "--help"]).output

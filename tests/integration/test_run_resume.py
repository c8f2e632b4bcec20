"""A run killed anywhere and started again ends with the numbers and weights of a run that was never interrupted."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from calm_lightning.config import RunConfig, load_config
from calm_lightning.errors import CheckpointError, ConfigError, DivergenceError
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.metrics import names
from calm_lightning.models import open_model
from calm_lightning.run import RunResult, execute, read_points, read_result
from calm_lightning.stages.watch import RunStopped
from calm_lightning.tracking.journal import by_step, read_journal
from data_pipelines.prepare import prepare

STEPS = 60
TINY = [
    "data.block_tokens=96",
    "data.batch_tokens=384",
    "data.eval_batch_tokens=192",
    "data.eval_max_blocks=4",
    "model={d: 16, intermediate: 32, layers: 2, heads: 2, N: 2, M: 3, noise_size: 8}",
    "autoencoder={d: 16, intermediate: 32}",
    "optim={warmup_steps: 5, schedule: cosine, lr: 3e-3}",
    "evaluation={every_steps: 20, samples: 4, text_tokens: 12}",
    f"trainer={{max_steps: {STEPS}, accelerator: cpu, precision: 32-true}}",
    "tracking.mlflow=false",
    "checkpoint_steps=7",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a small corpus."""
    folder = tmp_path_factory.mktemp("resume")
    generator = random.Random(0)
    words = ["the", "small", "cat", "sat", "on", "a", "mat", "while", "some", "dog", "ran", "past", "green", "trees"]
    for split, documents in (("train", 120), ("val", 12)):
        texts = (" ".join(generator.choices(words, k=60)) for _ in range(documents))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare([folder / "train.jsonl", folder / "val.jsonl"], folder / "corpus", "bytes", shard_tokens=8192)
    return folder


def configure(place: Path, stage: str, *overrides: str) -> RunConfig:
    return load_config(
        [*TINY, f"data.corpus={place / 'corpus'}", f"work_dir={place / 'runs'}", *overrides], stage=stage
    )


@pytest.fixture(scope="module")
def autoencoders(place: Path) -> dict[int, Path]:
    """Return the run directories of trained autoencoders by K."""
    few = ["trainer.max_steps=4", "evaluation.every_steps=0"]
    return {K: execute(configure(place, "autoencoder", f"model.K={K}", *few), progress=False).run_dir for K in (2, 3)}


@pytest.fixture(scope="module")
def processes() -> Iterator[Any]:
    """Return a context whose processes start with everything imported, each a process of its own to kill."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["calm_lightning.run"])
    yield context


def start(processes: Any, config: RunConfig) -> BaseProcess:
    process: BaseProcess = processes.Process(target=execute, args=(config,), kwargs={"progress": False})
    process.start()
    return process


def run_dir(config: RunConfig) -> Path | None:
    return next(iter(Path(config.work_dir, config.stage).glob("*-*")), None)


def steps_logged(config: RunConfig) -> int:
    """Return the last step in the journal, -1 where there is none yet."""
    folder = run_dir(config)
    return max(by_step(read_journal(folder)), default=-1) if folder else -1


def kill_at(processes: Any, config: RunConfig, step: int) -> None:
    """Run until a step has been logged, then kill -9."""
    process = start(processes, config)
    deadline = time.monotonic() + 120
    while steps_logged(config) < step:
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.002)
    process.kill()
    process.join()
    folder = run_dir(config)
    assert folder is not None and not (folder / "result.json").exists(), "it finished before it was killed"


def finish(processes: Any, config: RunConfig) -> RunResult:
    process = start(processes, config)
    process.join(120)
    assert process.exitcode == 0
    folder = run_dir(config)
    assert folder is not None
    return read_result(folder)


def numbers(result: RunResult) -> dict[int, dict[str, float]]:
    """Return everything logged that a resumed run must reproduce: all of it but speed."""
    timed = {names.SECONDS, names.TRAIN_TOKENS_PER_SECOND}
    steps = by_step(read_journal(result.run_dir))
    found = {step: {name: value for name, value in at.items() if name not in timed} for step, at in steps.items()}
    return {step: values for step, values in found.items() if values}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "K", "overrides"),
    [
        ("calm", 2, []),
        ("calm", 3, ["data.workers=1"]),
        ("calm", 2, ["trainer.accumulate_grad_batches=2"]),
        ("calm", 2, ["optim.ema_decay=0.9"]),
        ("calm", 2, ["evaluation.every_steps=0", "trainer.accumulate_grad_batches=3"]),
        ("calm", 2, ["model.head=flow", "model.input=both"]),
        ("autoencoder", 2, []),
        ("baseline", 2, []),
    ],
    ids=[
        "calm",
        "calm-K3-workers",
        "calm-accumulate",
        "calm-ema",
        "calm-unevaluated",
        "calm-flow-both",
        "autoencoder",
        "baseline",
    ],
)
def test_killed_twice_equals_never_killed(
    place: Path,
    autoencoders: dict[int, Path],
    processes: Any,
    tmp_path: Path,
    stage: str,
    K: int,
    overrides: list[str],
    request: pytest.FixtureRequest,
) -> None:
    used = [f"autoencoder_run={autoencoders[K]}"] if stage == "calm" else []
    config = configure(place, stage, f"model.K={K}", *used, *overrides)
    whole = finish(processes, replace(config, work_dir=str(tmp_path / "whole")))
    killed = replace(config, work_dir=str(tmp_path / "killed"))
    where = random.Random(request.node.name)
    for low, high in ((1, STEPS // 3), (STEPS // 2, STEPS - 10)):
        kill_at(processes, killed, where.randrange(low, high))
    result = finish(processes, killed)
    assert result.identity == whole.identity
    counts = Counter((entry.step, name) for entry in read_journal(result.run_dir) for name in entry.metrics)
    assert [pair for pair, times in counts.items() if times > 1] == []
    assert numbers(result) == numbers(whole)
    assert result.text == whole.text
    weights = [(folder.run_dir / "model.safetensors").read_bytes() for folder in (result, whole)]
    assert weights[0] == weights[1]
    assert not list(result.run_dir.rglob("*.tmp"))


class Impatient:
    """A watcher that stops a run after some steps, or at an evaluation, and writes down what it is told."""

    def __init__(self, after: int, at_evaluation: int = -1) -> None:
        self.left, self.at_evaluation = after, at_evaluation
        self.evaluations: list[int] = []

    def interrupted(self) -> bool:
        self.left -= 1
        return self.left < 0

    def evaluated(self, step: int) -> None:
        self.evaluations.append(step)
        if step == self.at_evaluation:
            raise RunStopped("enough")


@pytest.mark.parametrize("accumulate", [1, 3])
def test_stopped_by_its_watcher_equals_never_stopped(
    place: Path, autoencoders: dict[int, Path], tmp_path: Path, accumulate: int
) -> None:
    overrides = ["evaluation.every_steps=4", "trainer.max_steps=12", f"trainer.accumulate_grad_batches={accumulate}"]
    config = configure(place, "calm", "model.K=2", f"autoencoder_run={autoencoders[2]}", *overrides)
    told = Impatient(10**9)
    whole = execute(replace(config, work_dir=str(tmp_path / "whole")), progress=False, watch=told)
    assert told.evaluations == [4, 8, 12]
    stopped = replace(config, work_dir=str(tmp_path / "stopped"))
    for watch in (Impatient(1), Impatient(2), Impatient(10**9, at_evaluation=8), Impatient(0)):
        with pytest.raises(RunStopped):
            execute(stopped, progress=False, watch=watch)
    folder = run_dir(stopped)
    assert folder is not None
    assert [point.step for point in read_points(folder)] == [0, 4, 8]
    assert steps_logged(stopped) == 9, "an interrupted run has saved its very last step"
    result = execute(stopped, progress=False)
    assert numbers(result) == numbers(whole)
    weights = [(one.run_dir / "model.safetensors").read_bytes() for one in (result, whole)]
    assert weights[0] == weights[1]


def test_an_average_survives_a_kill_between_the_last_step_and_the_result(
    place: Path, autoencoders: dict[int, Path], tmp_path: Path
) -> None:
    overrides = ["optim.ema_decay=0.9", "trainer.max_steps=6", "checkpoint_steps=3", "evaluation.every_steps=4"]
    config = configure(place, "calm", "model.K=2", f"autoencoder_run={autoencoders[2]}", *overrides)
    config = replace(config, work_dir=str(tmp_path))
    folder = execute(config, progress=False).run_dir
    weights = (folder / "model.safetensors").read_bytes()
    for lost in ("result.json", "model.safetensors"):
        (folder / lost).unlink()
    assert not execute(config, progress=False).reused
    assert (folder / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.head=flow", "model.sampling_steps=2"],
        ["model.head=flow", "model.solver=euler"],
        ["model.head=diffusion", "model.sampling_steps=4"],
        ["model.head=diffusion", "model.sampling_steps=4", "model.solver=ddim", "model.N=1"],
        ["model.input=latent"],
        ["model.input=both", "model.noise=gaussian", "model.alpha=1.5"],
    ],
    ids=" ".join,
)
def test_every_head_and_input_trains_scores_and_writes(
    place: Path, autoencoders: dict[int, Path], tmp_path: Path, overrides: list[str]
) -> None:
    few = ["trainer.max_steps=6", "evaluation.every_steps=3", f"autoencoder_run={autoencoders[2]}", "model.K=2"]
    config = replace(configure(place, "calm", *few, *overrides), work_dir=str(tmp_path))
    result = execute(config, progress=False)
    assert names.VAL_HEAD_LOSS[config.model.head] in result.metrics
    assert [point.step for point in result.points] == [0, 3, 6]
    assert result.text.partition("--- continuation\n")[2]
    opened = open_model(result.run_dir)
    assert isinstance(opened.model, ContinuousLM) and opened.tokenizer is not None
    assert opened.model.reads_latents == (config.model.input != "discrete")
    assert opened.lineage["autoencoder"]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["model.head=gan"], r"model\.head=gan must be one of energy, flow, diffusion"),
        (["model.head=flow", "model.solver=ddpm"], r"model\.solver=ddpm must be one of midpoint, euler"),
        (["model.sampling_steps=4"], r"model\.head=energy draws in one step"),
        (["model.head=diffusion", "model.sampling_steps=1"], r"sampling_steps=1 must lie between 2 and 1000"),
        (["model.input=words"], r"model\.input=words must be one of discrete, latent, both"),
        (["model.noise=pink"], r"model\.noise=pink must be one of uniform, gaussian"),
        (["model.alpha=2.5"], r"model\.alpha=2\.5 must lie in \(0, 2\]"),
        (["model.N=1"], r"model\.N=1 must be at least 2"),
    ],
)
def test_a_head_that_cannot_be_is_one_sentence(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides, stage="calm")


def test_a_damaged_result_is_one_sentence(place: Path, tmp_path: Path) -> None:
    config = replace(configure(place, "baseline", "trainer.max_steps=2"), work_dir=str(tmp_path))
    folder = execute(config, progress=False).run_dir
    for garbage in ("{", "[]", "{}"):
        (folder / "result.json").write_text(garbage)
        with pytest.raises(CheckpointError, match=r"result\.json .*delete it and run"):
            execute(config, progress=False)


def test_divergence_is_one_sentence(place: Path, tmp_path: Path) -> None:
    overrides = ["optim.lr=1e30", "optim.warmup_steps=0", "trainer.gradient_clip_val=null", "trainer.max_steps=20"]
    config = replace(configure(place, "baseline", *overrides), work_dir=str(tmp_path))
    with pytest.raises(DivergenceError, match=r"diverged: val/cross_entropy is nan after 20 steps; lower optim\.lr"):
        execute(config, progress=False)


@pytest.fixture(scope="module")
def three(place: Path, autoencoders: dict[int, Path]) -> RunResult:
    """Return a finished run with K = 3."""
    config = configure(place, "calm", "model.K=3", f"autoencoder_run={autoencoders[3]}", "trainer.max_steps=4")
    return execute(config, progress=False)


def test_three_tokens_per_chunk_work_end_to_end(three: RunResult) -> None:
    assert three.name == "calm-K3-l96-N2-d16-s0"
    assert [point.step for point in three.points] == [0, 4]
    first, last = three.points
    assert first.stage_train_flops == 0
    assert last.text_tokens == 4 * 384
    assert last.train_flops > last.stage_train_flops > 0, "the autoencoder is paid for"
    assert last.inference_flops_per_token > 0
    assert three.metrics[names.SCORED_POSITIONS] == 4 * 3
    assert "--- continuation" in three.text


def test_a_finished_run_is_found_not_trained_again(
    place: Path, autoencoders: dict[int, Path], three: RunResult
) -> None:
    config = configure(place, "calm", "model.K=3", f"autoencoder_run={autoencoders[3]}", "trainer.max_steps=4")
    changed = {path: path.stat().st_mtime_ns for path in three.run_dir.rglob("*.safetensors")}
    again = execute(replace(config, checkpoint_steps=3), progress=False)
    assert again.reused
    assert again.run_dir == three.run_dir
    assert again.metrics == three.metrics
    assert {path: path.stat().st_mtime_ns for path in three.run_dir.rglob("*.safetensors")} == changed


def test_what_does_not_fit_the_model_is_one_sentence(
    place: Path, autoencoders: dict[int, Path], tmp_path: Path
) -> None:
    def refused(error: type[Exception], words: str, *overrides: str) -> None:
        with pytest.raises(error, match=words) as caught:
            execute(configure(place, "calm", *overrides), progress=False)
        assert "\n" not in str(caught.value)

    two = f"autoencoder_run={autoencoders[2]}"
    refused(ConfigError, "model.K=3 but the autoencoder .* has K=2: set model.K=2", "model.K=3", two)
    refused(ConfigError, "model.l=32 but the autoencoder .* has l=64", "model.K=2", "model.l=32", two)
    refused(ConfigError, "vocabulary of 300 differs from the", "model.K=2", "model.vocabulary=300", two)
    refused(ConfigError, "model.vocabulary=10 is smaller than the", "model.K=2", "model.vocabulary=10", two)
    refused(ConfigError, "autoencoder_run is empty", "model.K=2")
    refused(CheckpointError, "holds no run", "model.K=2", f"autoencoder_run={tmp_path}")
    refused(ConfigError, "unknown key trainer.no_such_argument", "model.K=2", two, "trainer.no_such_argument=1")


def test_a_damaged_autoencoder_is_one_sentence(place: Path, autoencoders: dict[int, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.yaml", "result.json", "model.safetensors"):
        (broken / name).write_bytes((autoencoders[2] / name).read_bytes())
    (broken / "model.safetensors").write_bytes(b"\x08" + bytes(20))
    config = configure(place, "calm", "model.K=2", f"autoencoder_run={broken}", f"work_dir={tmp_path / 'runs'}")
    with pytest.raises(CheckpointError, match=r"broken/model\.safetensors is missing or damaged"):
        execute(config, progress=False)
    (broken / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"broken/model\.safetensors is missing or damaged"):
        execute(config, progress=False)


def test_two_processes_cannot_train_one_run(
    place: Path, autoencoders: dict[int, Path], processes: Any, tmp_path: Path
) -> None:
    used = f"autoencoder_run={autoencoders[2]}"
    config = configure(place, "calm", "model.K=2", used, "trainer.max_steps=5000", f"work_dir={tmp_path}")
    process = start(processes, config)
    try:
        while steps_logged(config) < 0:
            assert process.is_alive()
            time.sleep(0.01)
        with pytest.raises(Exception, match="another process is training"):
            execute(config, progress=False)
    finally:
        process.kill()
        process.join()


def test_runs_moved_together_find_one_another(place: Path, autoencoders: dict[int, Path], tmp_path: Path) -> None:
    config = configure(place, "calm", "model.K=2", f"autoencoder_run={autoencoders[2]}", "trainer.max_steps=2")
    folder = execute(replace(config, work_dir=str(tmp_path / "there" / "runs")), progress=False).run_dir
    alone = tmp_path / "elsewhere" / "runs" / "calm" / folder.name
    shutil.copytree(folder, alone)
    text = (alone / "config.yaml").read_text()
    (alone / "config.yaml").write_text(text.replace(str(autoencoders[2]), f"gone/{autoencoders[2].name}"))
    with pytest.raises(CheckpointError, match=r"was not found at gone/.* give its directory \(--autoencoder DIR\)"):
        open_model(alone)
    shutil.copytree(autoencoders[3], alone.parents[1] / "autoencoder" / autoencoders[2].name)
    with pytest.raises(CheckpointError, match="was not found"):
        open_model(alone)  # what lies there is another autoencoder
    shutil.rmtree(alone.parents[1] / "autoencoder")
    shutil.copytree(autoencoders[2], alone.parents[1] / "autoencoder" / autoencoders[2].name)
    assert open_model(alone).lineage == open_model(folder).lineage
    assert open_model(alone, autoencoder=str(autoencoders[2])).autoencoder is not None

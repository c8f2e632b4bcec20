"""Exact resume of the data: killed anywhere, with other workers or other ranks, training sees the same batches."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from calm_lightning.config import RunConfig, load_config
from calm_lightning.run import execute
from data_pipelines.prepare import prepare

T, STEPS = 96, 40
TINY = [
    f"data.block_tokens={T}",
    f"data.batch_tokens={4 * T}",
    f"data.eval_batch_tokens={2 * T}",
    "data.eval_max_blocks=2",
    "data.shuffle_shards=2",
    "data.record_batches=true",
    "model={K: 2, d: 16, intermediate: 32, layers: 1, heads: 2}",
    "autoencoder={d: 16, intermediate: 32}",
    "evaluation={every_steps: 0, samples: 2, text_tokens: 0}",
    f"trainer={{max_steps: {STEPS}, accelerator: cpu, precision: 32-true}}",
    "tracking.mlflow=false",
    "checkpoint_steps=3",
]


def documents() -> list[tuple[str, str]]:
    generator = random.Random(0)
    words = ["the", "small", "cat", "sat", "on", "a", "mat", "while", "some", "dog", "ran", "past", "green", "trees"]
    return [
        (" ".join(generator.choices(words, k=generator.randrange(20, 90))), generator.choice(["Books", "Web", "Code"]))
        for _ in range(200)
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, make_corpus: Any) -> Path:
    out, rows = tmp_path_factory.mktemp("corpora") / "small", documents()
    make_corpus(out, {"train": rows, "val": rows[:30]}, 25)
    return out


@pytest.fixture(scope="module")
def text_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rows = tmp_path_factory.mktemp("text"), documents()
    for split, own in (("train", rows), ("val", rows[:30])):
        records = ({"text": text, "meta": {"pile_set_name": domain}} for text, domain in own)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    prepare([folder], folder / "corpus", shards="text", shard_mb=0.01)
    return folder / "corpus"


@pytest.fixture(scope="module")
def processes() -> Iterator[Any]:
    """Return a context whose processes start with everything imported, each a process of its own to kill."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["calm_lightning.run"])
    yield context


def lines(work_dir: Path) -> list[str]:
    (path,) = work_dir.glob("autoencoder/*/batches.csv")
    return path.read_text().splitlines()[1:]


def recorded(work_dir: Path) -> int:
    return sum(len(path.read_text().splitlines()) - 1 for path in work_dir.glob("autoencoder/*/batches.csv"))


def run_until(processes: Any, config: RunConfig, batches: int | None) -> None:
    """Run to the end, or kill -9 as soon as so many batches have been recorded."""
    process = processes.Process(target=execute, args=(config,), kwargs={"progress": False})
    process.start()
    deadline = time.monotonic() + 120
    while process.is_alive() and (batches is None or recorded(Path(config.work_dir)) < batches):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    workers: list[psutil.Process] = []
    if batches is not None:
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    process.join()
    assert process.exitcode == (0 if batches is None else -signal.SIGKILL)
    _, left = psutil.wait_procs(workers, timeout=20)
    assert not left, "its worker processes live on"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("corpus", []),
        ("corpus", ["data.weights={Books: 1, Web: 2}", "data.workers=1"]),
        ("text_corpus", ["data.tokenizer=bpe:300"]),
    ],
    ids=["plain", "mixed", "text"],
)
def test_killed_and_resumed_runs_see_the_very_batches_of_an_uninterrupted_one(
    tmp_path: Path, processes: Any, kind: str, overrides: list[str], request: pytest.FixtureRequest
) -> None:
    corpus = request.getfixturevalue(kind)

    def configure(name: str, workers: int | None = None) -> RunConfig:
        changed = [] if workers is None else [f"data.workers={workers}"]
        # each has a cache of its own: what the other tokenised must not help
        place = [f"data.corpus={corpus}", f"work_dir={tmp_path / name}", f"data.cache_dir={tmp_path / name}-cache"]
        return load_config([*TINY, *overrides, *place, *changed], stage="autoencoder")

    run_until(processes, configure("whole"), None)
    expected = lines(tmp_path / "whole")
    assert [int(line.split(",")[0]) for line in expected] == list(range(STEPS))
    assert len({line.split(",")[1] for line in expected}) == STEPS
    generator = random.Random(7)
    for workers in (0, 2, 1, 0, 3):
        seen = recorded(tmp_path / "killed")
        if seen < STEPS - 4:
            run_until(processes, configure("killed", workers), seen + generator.randrange(2, 9))
    run_until(processes, configure("killed", 2), None)
    assert lines(tmp_path / "killed") == expected


SCRIPT = """
import json, sys
from pathlib import Path

import lightning
import torch

from calm_lightning.data.config import DataConfig
from calm_lightning.data.datamodule import PileDataModule
from calm_lightning.stages.callbacks import AtomicCheckpointIO, StreamPlace


class Probe(lightning.LightningModule):
    def __init__(self, record):
        super().__init__()
        self.weight, self.record = torch.nn.Parameter(torch.zeros(())), record

    def training_step(self, batch, batch_idx):
        with (self.record / f"rank-{self.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps([batch.index, batch.blocks.tolist(), batch.tokens.sum(1).tolist()]) + "\\n")
        return self.weight * batch.tokens.float().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Save(lightning.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step % 2 == 0:
            trainer.save_checkpoint(self.path)


corpus, place, world, workers, steps = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
checkpoint = place / "resume.ckpt"
module = PileDataModule(
    DataConfig(corpus, block_tokens=96, batch_tokens=8 * 96, shuffle_shards=2, workers=workers, weights=WEIGHTS), seed=4
)
trainer = lightning.Trainer(
    accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", max_steps=steps, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    callbacks=[StreamPlace(0), Save(checkpoint)], plugins=[AtomicCheckpointIO()],
)
resume = str(checkpoint) if checkpoint.is_file() else None
trainer.fit(Probe(place), datamodule=module, ckpt_path=resume, weights_only=True)
"""


def global_batches(place: Path) -> dict[int, list[tuple[int, int]]]:
    """Return the (block, sum of its tokens) pairs of every batch, those of all ranks together."""
    batches: dict[int, dict[str, list[tuple[int, int]]]] = {}
    for path in sorted(place.glob("rank-*.jsonl")):
        for line in path.read_text().splitlines():
            index, blocks, sums = json.loads(line)
            # a later line for the same batch is the resumed run's
            batches.setdefault(index, {})[path.name] = list(zip(blocks, sums, strict=True))
    return {index: sorted(row for rows in ranks.values() for row in rows) for index, ranks in batches.items()}


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["{}", "{'Books': 1, 'Web': 2}"], ids=["plain", "mixed"])
def test_other_numbers_of_ranks_go_on_with_the_same_global_batches(corpus: Path, tmp_path: Path, weights: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("WEIGHTS", weights))
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}

    def run(place: Path, world: int, workers: int, steps: int, kill_after: int | None = None) -> None:
        place.mkdir(exist_ok=True)
        before = len(global_batches(place))
        command = [sys.executable, str(script), str(corpus), str(place), *map(str, (world, workers, steps))]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        while kill_after is not None and process.poll() is None and len(global_batches(place)) < before + kill_after:
            time.sleep(0.01)
        if kill_after is not None:
            os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == (0 if kill_after is None else -signal.SIGKILL), errors.decode()[-2000:]

    run(tmp_path / "whole", 1, 0, 24)
    expected = global_batches(tmp_path / "whole")
    assert sorted(expected) == list(range(24)) and all(len(rows) == 8 for rows in expected.values())
    changing = tmp_path / "changing"
    run(changing, 1, 0, 500, kill_after=5)
    for path in changing.glob("rank-*.jsonl"):
        path.rename(path.with_suffix(".first"))
    run(changing, 2, 1, 24)
    found = global_batches(changing)
    assert max(found) == 23 and 2 <= min(found) < 20
    assert found == {index: expected[index] for index in found}

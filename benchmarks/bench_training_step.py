"""How fast a training step of each stage is, beside what this machine's matrix multiplication can do.

    python benchmarks/bench_training_step.py            # the shapes of the sample ablation
    python benchmarks/bench_training_step.py --json results.json

Steps of all stages are interleaved, so that a disturbance meets all of them, and the median is reported. FLOPs are the
analytic count of `calm flops`; utilisation is against the fastest bf16 (or fp32) matmul measured in the same run.
Run it on a quiet machine: a second process on the same cores can make a step three times as long.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from calm_lightning.assembly import resolve_precision
from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.config import RunConfig, load_config
from calm_lightning.data.datamodule import PileDataModule
from calm_lightning.flops.count import for_stage
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.stages.allocator import keep_freed_memory
from calm_lightning.stages.autoencoder import AutoencoderStage
from calm_lightning.stages.base import Stage
from calm_lightning.stages.baseline import BaselineStage
from calm_lightning.stages.calm import CalmStage
from calm_lightning.stages.optim import make_optimizer
from data_pipelines.prepare import prepare

CASES = [
    ("autoencoder K=4", ["stage=autoencoder", "model.K=4", "data.batch_tokens=6144"]),
    ("CALM K=1", ["stage=calm", "model.K=1"]),
    ("CALM K=2", ["stage=calm", "model.K=2"]),
    ("CALM K=4", ["stage=calm", "model.K=4"]),
    ("CALM K=8", ["stage=calm", "model.K=8"]),
    ("baseline", ["stage=baseline"]),
]
SHAPE = ["sample-calm", "data.workers=0"]


@dataclass(frozen=True)
class Row:
    """One stage's result."""

    case: str
    step_ms: float
    tokens_per_second: float
    tflops: float
    utilisation: float


def build(config: RunConfig, vocabulary: int) -> Stage:
    """Return a stage with fresh weights; a CALM stage gets a fresh autoencoder, which costs what a trained one does."""
    model = config.model
    torch.manual_seed(0)
    autoencoder = ChunkAutoencoder(config.autoencoder, model.K, model.latent_width(), vocabulary)
    if config.stage == "autoencoder":
        return AutoencoderStage(autoencoder, config.optim, config.evaluation)
    if config.stage == "baseline":
        return BaselineStage(TokenLM(model, vocabulary), config.optim, config.evaluation)
    return CalmStage(ContinuousLM(model, vocabulary), autoencoder, config.optim, config.evaluation)


def stepper(config: RunConfig, data: PileDataModule) -> Callable[[], float]:
    """Return a function that trains one step and returns its seconds."""
    stage = build(config, data.vocabulary)
    optimizer = make_optimizer(stage, config.optim)
    batches = iter(data.train_dataloader())
    bf16 = resolve_precision("auto") == "bf16-mixed"

    def step() -> float:
        tokens = next(batches).tokens
        begin = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = stage.loss(tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(stage.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - begin

    return step


def matmul_peak() -> float:
    """Return the best FLOP/s of a square matmul in the precision that training uses."""
    dtype = torch.bfloat16 if resolve_precision("auto") == "bf16-mixed" else torch.float32
    best = 0.0
    for width in (512, 1024, 2048):
        a = torch.randn(width, width).to(dtype)
        for _ in range(12):
            begin = time.perf_counter()
            a @ a
            best = max(best, 2 * width**3 / (time.perf_counter() - begin))
    return best


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few repetitions: does it run?")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    arguments = parser.parse_args()
    rounds = 3 if arguments.small else 20
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        prepare(["sample"], folder + "/corpus", "bytes")
        configs = [(name, load_config([*SHAPE, *extra, f"data.corpus={folder}/corpus"])) for name, extra in CASES]
        made = [(name, config, PileDataModule(config.data, 0)) for name, config in configs]
        steps = [stepper(config, data) for _, config, data in made]
        times: list[list[float]] = [[] for _ in steps]
        for number in range(rounds + 2):
            for own, step in zip(times, steps, strict=True):
                seconds = step()
                if number >= 2:
                    own.append(seconds)
    peak = matmul_peak()
    rows = []
    for (name, config, data), own in zip(made, times, strict=True):
        median, T = statistics.median(own), config.data.block_tokens
        report = for_stage(config.stage, config.model, config.autoencoder, data.vocabulary, T)
        speed = config.data.batch_tokens / median
        flops = speed * report.training_per_token_total
        rows.append(Row(name, 1e3 * median, speed, flops / 1e12, flops / peak))
    table = Table("stage", "step (ms)", "text tokens/s", "TFLOP/s", "of matmul peak")
    for row in rows:
        table.add_row(
            row.case,
            f"{row.step_ms:.0f}",
            f"{row.tokens_per_second:,.0f}",
            f"{row.tflops:.3f}",
            f"{100 * row.utilisation:.0f} %",
        )
    Console().print(
        table, f"matmul peak {peak / 1e12:.2f} TFLOP/s, {torch.get_num_threads()} threads, {platform.machine()}"
    )
    if arguments.json:
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
        arguments.json.write_text(
            json.dumps({"rows": [asdict(row) for row in rows], "peak_flops": peak, **machine}, indent=2)
        )


if __name__ == "__main__":
    main()

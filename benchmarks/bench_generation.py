"""How fast text is generated at T = 0.5 from S = 200 samples, beside a plain implementation of the method.

    python benchmarks/bench_generation.py
    python benchmarks/bench_generation.py --json results.json --threads 1

The reference does what the method's description says, in float32: the head runs over every hidden state repeated S
times, the decoder makes the logits of all S * B * K tokens, and a chunk is chosen per sequence by counting its samples
in Python and weighing them with C(c, n). It shares the model and its key-value cache with ours. Ours is
`stream_chunks`, in float32 and in the precision that `calm generate` picks.

What ours saves depends on how often samples of a pool agree, so every shape is timed in three states of random weights:
"different" (next to no two chunks agree), "some" and "many". Ours and the reference take turns, medians are reported.
CPU seconds are what the process used on all cores: on a busy machine they say more than the clock.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from calm_lightning.assembly import resolve_precision
from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.backbone.transformer import BranchCache
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.language_model.heads.energy import EnergyHead
from calm_lightning.programs.arithmetic import arithmetic
from calm_lightning.sampling.chunks import ChunkSampling
from calm_lightning.sampling.generate import stream_chunks
from calm_lightning.sampling.prompts import AlignedPrompt
from calm_lightning.stages.allocator import keep_freed_memory

K, BATCH, SAMPLES, PROMPT_CHUNKS, NOISE = 4, 8, 200, 16, 64
INVERSE_TEMPERATURE = 2


@dataclass(frozen=True)
class Shape:
    """A model's size."""

    name: str
    vocabulary: int
    autoencoder: tuple[int, int]  # width, SwiGLU width
    l: int
    backbone: tuple[int, int, int, int]  # width, SwiGLU width, layers, heads


SHAPES = [
    Shape("tiny", 4096, (256, 640), 64, (256, 688, 4, 4)),
    Shape("small", 32000, (512, 1280), 128, (512, 1376, 8, 8)),
]
AGREEMENT = {"different": (0.0, 1.0), "some": (1.0, 0.3), "many": (1.0, 0.1)}
"""Spread of the latents' common part, and gain of the head's last layer, which draws them apart."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    shape: str
    samples: str
    first_token_collision: float
    chunk_collision: float
    sampler: str
    tokens_per_second: float
    tokens_per_cpu_second: float
    speedup: float
    cpu_speedup: float


def build(shape: Shape) -> tuple[ContinuousLM, ChunkAutoencoder]:
    """Return a language model and an autoencoder with random weights."""
    torch.manual_seed(0)
    d, intermediate, layers, heads = shape.backbone
    config = LanguageModelConfig(
        K=K, l=shape.l, d=d, intermediate=intermediate, layers=layers, heads=heads, head_blocks=1, noise_size=NOISE
    )
    width, inner = shape.autoencoder
    autoencoder = ChunkAutoencoder(AutoencoderConfig(d=width, intermediate=inner), K, shape.l, shape.vocabulary)
    return ContinuousLM(config, shape.vocabulary).eval(), autoencoder.eval()


def draw_apart(model: ContinuousLM, spread: float, gain: float) -> None:
    """Initialise the head's last layer, which is zero in a fresh model, so that samples differ."""
    torch.manual_seed(1)
    assert isinstance(model.head, EnergyHead)
    nn.init.xavier_uniform_(model.head.to_latent.weight, gain)
    nn.init.normal_(model.head.to_latent.bias, std=spread)


def collision(model: ContinuousLM, autoencoder: ChunkAutoencoder, prompts_BLK: Tensor, tokens: int) -> float:
    """Return how often two samples of a pool agree in their first tokens."""
    hidden_BD = model(prompts_BLK)[:, -1]
    pool_BSK = autoencoder.decode_tokens(model.head.sample(hidden_BD, SAMPLES)).transpose(0, 1)[..., :tokens]
    equal = (pool_BSK.unsqueeze(1) == pool_BSK.unsqueeze(2)).all(-1).sum() - BATCH * SAMPLES
    return float(equal) / (BATCH * SAMPLES * (SAMPLES - 1))


def reference(model: ContinuousLM, autoencoder: ChunkAutoencoder, prompts_BLK: Tensor, tokens: int) -> None:
    """Generate as the method is described, one step after the other, nothing saved."""
    assert isinstance(model.head, EnergyHead)
    hidden_BLD, prefix = model.backbone.prefill(model.input(prompts_BLK))
    hidden_BD, own, length_1 = hidden_BLD[:, -1], BranchCache(), torch.tensor([prompts_BLK.shape[1]])
    for _ in range(tokens // K):
        noise_1PU = torch.rand(1, BATCH * SAMPLES, NOISE) - 0.5
        latents_PZ = model.head(hidden_BD.repeat_interleave(SAMPLES, 0), noise_1PU)[0]
        pools = autoencoder.decode(latents_PZ).argmax(-1).view(BATCH, SAMPLES, K).tolist()
        chunk_BK = torch.tensor([choose(pool) for pool in pools])
        hidden_BD = model.backbone.branch_step(model.input(chunk_BK).unsqueeze(1), prefix, own, length_1)[:, 0]


def choose(pool: list[list[int]]) -> tuple[int, ...]:
    """Choose a chunk with weight C(c, n), lowering n until there is one."""
    counts = Counter(map(tuple, pool))
    for n in range(INVERSE_TEMPERATURE, 0, -1):
        able = {chunk: math.comb(count, n) for chunk, count in counts.items() if count >= n}
        if able:
            return random.choices(list(able), list(able.values()))[0]
    raise AssertionError("a pool is never empty")


def ours(
    model: ContinuousLM, autoencoder: ChunkAutoencoder, prompts_BLK: Tensor, tokens: int, precision: object
) -> None:
    """Generate with the toolkit."""
    prompts = [AlignedPrompt(prompt_LK, None) for prompt_LK in prompts_BLK]
    with arithmetic([model, autoencoder], str(precision), torch.device("cpu")):
        for _ in stream_chunks(model, autoencoder, prompts, tokens, ChunkSampling(1 / INVERSE_TEMPERATURE, SAMPLES)):
            pass


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Return seconds by the clock and seconds of CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - clock, time.process_time() - cpu


@torch.no_grad()
def measure(shape: Shape, rounds: int, tokens: int) -> list[Row]:
    """Time one shape in every state of agreement."""
    model, autoencoder = build(shape)
    prompts_BLK = torch.randint(shape.vocabulary, (BATCH, PROMPT_CHUNKS, K))
    precisions = dict.fromkeys(["32-true", str(resolve_precision("auto", "cpu"))])
    rows = []
    for name, (spread, gain) in AGREEMENT.items():
        draw_apart(model, spread, gain)
        agree = [collision(model, autoencoder, prompts_BLK, count) for count in (1, K)]
        runs: dict[str, Callable[[], None]] = {"reference": lambda: reference(model, autoencoder, prompts_BLK, tokens)}
        for one in precisions:
            runs[one] = lambda one=one: ours(model, autoencoder, prompts_BLK, tokens, one)  # type: ignore[misc]
        times: dict[str, list[tuple[float, float]]] = {key: [] for key in runs}
        for number in range(rounds + 1):
            for key, run in runs.items():
                seconds = timed(run)
                if number:
                    times[key].append(seconds)
        clock = {key: statistics.median(one for one, _ in own) for key, own in times.items()}
        cpu = {key: statistics.median(one for _, one in own) for key, own in times.items()}
        for key in runs:
            speed, per_cpu = BATCH * tokens / clock[key], BATCH * tokens / cpu[key]
            gains = clock["reference"] / clock[key], cpu["reference"] / cpu[key]
            rows.append(Row(shape.name, name, *agree, key, speed, per_cpu, *gains))
    return rows


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the smallest shape, few repetitions: does it run?")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    rounds, tokens = (1, K) if arguments.small else (3, 2 * K)
    load = os.getloadavg()[0]
    rows = [row for shape in (SHAPES[:1] if arguments.small else SHAPES) for row in measure(shape, rounds, tokens)]
    table = Table()
    for title in ("shape", "samples", "agree in 1 / K", "sampler", "tokens/s", "times", "per CPU s", "times"):
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(
            row.shape,
            row.samples,
            f"{100 * row.first_token_collision:.1f} / {100 * row.chunk_collision:.1f} %",
            row.sampler,
            f"{row.tokens_per_second:,.1f}",
            f"{row.speedup:.1f}",
            f"{row.tokens_per_cpu_second:,.1f}",
            f"{row.cpu_speedup:.1f}",
        )
    threads = torch.get_num_threads()
    Console(width=100).print(table, f"{threads} threads, {platform.machine()}, load average before {load:.1f}")
    if arguments.json:
        machine = {"torch": torch.__version__, "threads": threads, "machine": platform.machine(), "load": load}
        arguments.json.write_text(json.dumps({"rows": [asdict(row) for row in rows], **machine}, indent=2))


if __name__ == "__main__":
    main()

"""How long BrierLM takes, beside a straightforward evaluation that loops over start positions.

    python benchmarks/bench_brier.py            # K = 1, 2, 4 and the token baseline
    python benchmarks/bench_brier.py --json results.json

Shape "tiny": V 4096; autoencoder 256 (SwiGLU 640), l = 16 K; backbone 256 (688), 4 layers, 4 heads; one head block.
Random weights, blocks of 1,024 tokens, S = 2, every chunk scored (every token of the baseline): the released protocol.

The reference does what the released evaluation is described to do. For K < 4 and for the baseline it visits one start
position after the other, runs the model over the prefix and each sample's own tokens, a full forward pass per step, and
draws two samples; its total is estimated from the mean over evenly spaced positions. For K = 4, where one latent holds
four tokens, it is one forward pass, two draws and their logits. It is built of the same layers, without its own
slowness, and in float32; ours is timed in float32 and in the precision that `calm eval` picks by itself.

All cases are interleaved, so that a disturbance meets all of them, and medians are reported. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from calm_lightning.assembly import resolve_precision
from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.metrics import BrierLM, BrierScores
from calm_lightning.programs.arithmetic import BF16, arithmetic
from calm_lightning.sampling.continuations import HORIZON, start_positions
from calm_lightning.stages.allocator import keep_freed_memory
from calm_lightning.stages.scoring import chunk_scores, token_scores

V, S = 4096, 2
BASELINE = 0
"""Stands for the baseline where K is asked for."""


@dataclass(frozen=True)
class Row:
    """Seconds for all blocks of one case."""

    case: str
    positions: int
    ours: float
    ours_auto: float
    reference: float
    reference_positions: int

    @property
    def speedup(self) -> float:
        """How many times faster ours is, both in float32."""
        return self.reference / self.ours


class Case:
    """One model with the three ways of scoring it."""

    def __init__(self, K: int, tokens_BT: Tensor, visited: int) -> None:
        self.name = f"CALM K={K}" if K else "baseline"
        torch.manual_seed(K)
        shape = LanguageModelConfig(K=max(K, 1), l=16 * max(K, 1), d=256, intermediate=688, layers=4, heads=4)
        self.K, self.tokens_BT = max(K, 1), tokens_BT
        self.starts_G = start_positions(tokens_BT.shape[1], self.K)
        self.visited = self.starts_G[torch.linspace(0, len(self.starts_G) - 1, visited).round().long()].tolist()
        self.model = (ContinuousLM(shape, V) if K else TokenLM(shape, V)).eval()
        self.codec = ChunkAutoencoder(AutoencoderConfig(d=256, intermediate=640), self.K, 16 * self.K, V).eval()
        for parameter in self.model.parameters():  # heads start at zero: let samples differ
            if parameter.ndim > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.5)

    def ours(self, bf16: bool) -> float:
        """Return the seconds of scoring every start position."""
        metric = BrierScores()
        begin = time.perf_counter()
        precision = BF16 if bf16 else "32-true"
        with arithmetic([self.model, self.codec], precision, torch.device("cpu")), torch.inference_mode():
            if isinstance(self.model, TokenLM):
                found = token_scores(self.model, self.tokens_BT, self.starts_G, S)
            else:
                found = chunk_scores(self.model, self.codec, self.tokens_BT, self.starts_G, S)
            metric.update(found.brier, found.offsets)
        return time.perf_counter() - begin

    def reference(self) -> float:
        """Return the seconds that the straightforward evaluation takes or would take for every start position."""
        metric = BrierLM()
        begin = time.perf_counter()
        with torch.inference_mode():
            if self.K == HORIZON:
                self._all_chunks(metric)
                return time.perf_counter() - begin
            for start in self.visited:
                drawn_BSH = self._next_tokens(start) if isinstance(self.model, TokenLM) else self._next_chunks(start)
                metric.update(drawn_BSH, self.tokens_BT[:, start : start + HORIZON])
        return (time.perf_counter() - begin) / len(self.visited) * len(self.starts_G)

    def _all_chunks(self, metric: BrierLM) -> None:
        """Score a K = 4 model: one forward pass, two draws of every chunk but the first, full logits."""
        model, B = self.model, len(self.tokens_BT)
        assert isinstance(model, ContinuousLM)
        chunks_BLK = self.tokens_BT.unflatten(1, (-1, self.K))
        hidden_PD = model(chunks_BLK[:, :-1]).flatten(0, 1)
        logits = [self.codec.decode(model.head.sample(hidden_PD, 1)[0]) for _ in range(S)]
        drawn_PSK = torch.stack([one.argmax(-1) for one in logits], dim=1)
        assert len(drawn_PSK) == B * len(self.starts_G)
        metric.update(drawn_PSK, chunks_BLK[:, 1:].flatten(0, 1))

    def _next_chunks(self, start: int) -> Tensor:
        """Return the next four tokens of two samples, (B, S, 4), from one pass over everything per chunk."""
        model, B = self.model, len(self.tokens_BT)
        assert isinstance(model, ContinuousLM)
        read_QLK = self.tokens_BT[:, :start].unflatten(1, (-1, self.K))
        latents_QZ = model.head.sample(model(read_QLK)[:, -1], S).transpose(0, 1).flatten(0, 1)
        read_QLK = read_QLK.repeat_interleave(S, dim=0)
        while True:
            read_QLK = torch.cat((read_QLK, self.codec.decode_tokens(latents_QZ).unsqueeze(1)), dim=1)
            if read_QLK.shape[1] * self.K >= start + HORIZON:
                return read_QLK.flatten(1)[:, start : start + HORIZON].view(B, S, HORIZON)
            latents_QZ = model.head.sample(model(read_QLK)[:, -1], 1)[0]

    def _next_tokens(self, start: int) -> Tensor:
        """Return the next four tokens of two samples of the baseline, (B, S, 4), from one pass over all per token."""
        model, B = self.model, len(self.tokens_BT)
        assert isinstance(model, TokenLM)
        read_QT = self.tokens_BT[:, :start]
        while read_QT.shape[1] < start + HORIZON:
            logits_QV = model.lm_head(model.backbone(model.embedding(read_QT))[:, -1])
            if read_QT.shape[1] == start:
                read_QT, logits_QV = (part.repeat_interleave(S, dim=0) for part in (read_QT, logits_QV))
            read_QT = torch.cat((read_QT, torch.multinomial(logits_QV.softmax(-1), 1)), dim=1)
        return read_QT[:, start:].view(B, S, HORIZON)


def measure(cases: list[Case], rounds: int) -> list[Row]:
    """Return the medians over interleaved rounds, the first one left out."""
    bf16 = resolve_precision("auto") == "bf16-mixed"
    ways: list[Callable[[Case], float]] = [
        lambda case: case.ours(bf16=False),
        lambda case: case.ours(bf16=bf16),
        lambda case: case.reference(),
    ]
    times: list[list[list[float]]] = [[[] for _ in ways] for _ in cases]
    for number in range(rounds + 1):
        for case, own in zip(cases, times, strict=True):
            for way, seconds in zip(ways, own, strict=True):
                taken = way(case)
                if number:
                    seconds.append(taken)
    return [
        Row(
            case.name,
            len(case.tokens_BT) * len(case.starts_G),
            *(statistics.median(seconds) for seconds in own),
            reference_positions=len(case.starts_G) if case.K == HORIZON else len(case.visited),
        )
        for case, own in zip(cases, times, strict=True)
    ]


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="short blocks, few repetitions: does it run?")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--blocks", type=int, default=1, help="blocks of 1,024 tokens, scored in one batch")
    arguments = parser.parse_args()
    keep_freed_memory()
    B, T = (1, 128) if arguments.small else (arguments.blocks, 1024)
    rounds, visited = (1, 2) if arguments.small else (5, 6)
    torch.manual_seed(0)
    tokens_BT = torch.randint(V, (B, T))
    rows = measure([Case(K, tokens_BT, visited) for K in (1, 2, 4, BASELINE)], rounds)
    table = Table("case", "starts", "ours fp32", "ours auto", "reference fp32", "timed", "speed-up")
    for row in rows:
        table.add_row(
            row.case,
            f"{row.positions:,}",
            f"{row.ours:.2f} s",
            f"{row.ours_auto:.2f} s",
            f"{row.reference:.2f} s",
            f"{row.reference_positions}",
            f"{row.speedup:.2f}x" if row.speedup < 10 else f"{row.speedup:.0f}x",
        )
    precision = resolve_precision("auto")
    Console().print(
        table,
        f"{B} block(s) of {T} tokens, S = {S}; auto is {precision}; speed-up in fp32 over a reference timed at some "
        f"starts; {torch.get_num_threads()} threads, {platform.machine()}",
    )
    if arguments.json:
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
        found = [{**asdict(row), "speedup": row.speedup} for row in rows]
        shape = {"blocks": B, "block_tokens": T, "samples": S, "auto_precision": precision}
        arguments.json.write_text(json.dumps({"rows": found, **shape, **machine}, indent=2))


if __name__ == "__main__":
    main()

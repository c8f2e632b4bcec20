"""Finished runs of every stage, so small that training them takes seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path

from calm_lightning.config import load_config
from calm_lightning.run import RunResult, execute
from data_pipelines.prepare import prepare

TINY = [
    "data={block_tokens: 96, batch_tokens: 384, eval_batch_tokens: 192, eval_max_blocks: 2}",
    "model={d: 16, intermediate: 32, layers: 2, heads: 2, N: 2, M: 3, noise_size: 8, K: 4}",
    "autoencoder={d: 16, intermediate: 32}",
    "evaluation={every_steps: 0, samples: 4, text_tokens: 0}",
    "trainer={max_steps: 3, accelerator: cpu, precision: 32-true}",
    "tracking.system_metrics=false",
]


def make_texts(folder: Path) -> Path:
    """Write texts of two domains and a corpus of bytes made of them; returns the corpus."""
    generator = random.Random(0)
    for split, documents in (("train", 60), ("val", 12), ("test", 12)):
        rows = []
        for number in range(documents):
            text = " ".join(generator.choices(["the", "cat", "sat", "on", "a", "mat"], k=60))
            rows.append({"text": text, "meta": {"pile_set_name": "odd (1)" if number % 2 else "even"}})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [folder / f"{split}.jsonl" for split in ("train", "val", "test")]
    prepare(sources, folder / "corpus", "bytes", shard_tokens=8192)
    return folder / "corpus"


def train(corpus: Path, work_dir: Path, *settings: str) -> dict[str, RunResult]:
    """Train an autoencoder, a language model on it, and a baseline; returns them by stage."""
    found: dict[str, RunResult] = {}
    for stage in ("autoencoder", "calm", "baseline"):
        own = [f"autoencoder_run={found['autoencoder'].run_dir}"] if stage == "calm" else []
        arguments = [*TINY, f"data.corpus={corpus}", f"work_dir={work_dir}", *own, *settings]
        found[stage] = execute(load_config(arguments, stage=stage), progress=False)
    return found

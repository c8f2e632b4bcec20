"""How fast text becomes shards and shards become batches, beside Hugging Face `datasets` and a plain read.

    python benchmarks/bench_data.py
    python benchmarks/bench_data.py --source DIRECTORY --tokenizer file:tokenizer.json --json results.json

Four questions, each answered within one run, the candidates taking turns and medians reported:

- reading: tokens per second of the training stream over token shards (first epoch, which checks SHA-256 and every id;
  later epochs), of `datasets` streaming the same .jsonl.zst files with the same tokenizer on the fly, and of reading
  the shards' bytes in order: into memory that keeps them, or shard after shard into the same cached memory. Files are
  in the page cache.
- preparing: text megabytes per second of `calm data prepare` and of `datasets.map`, by processes. `datasets` reads the
  files in first; its speed is given without that and with it. Ours includes it, and writing checksummed shards. One
  process means one core: the tokenizer library's own threads are off.
- waiting: the share of time a 0.2 s training step waits for its next batch.
- memory: what a reader holds (anonymous memory, without the page cache) over corpora of growing size, and what
  preparing holds at most.

Needs the `bench` extra. The source is a directory of .jsonl.zst files; the embedded sample by default.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from calm_lightning.data.config import DataConfig
from calm_lightning.data.datamodule import PileDataModule
from calm_lightning.data.shards.manifest import Manifest, SplitRecord
from calm_lightning.data.tokenizers import Tokenizer, make_tokenizer
from data_pipelines.prepare import prepare
from data_pipelines.reading.sources import sample_dir

STEP_SECONDS = 0.2
LARGE_BATCH = 1 << 17


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        question: "reading", "preparing", "waiting" or "memory".
        candidate: What was measured.
        value: The median.
        spread: Half the distance between the lowest and highest round, as a share of the median.
        unit: Unit of the value.
        ratio: To the first candidate of the question.
    """

    question: str
    candidate: str
    value: float
    spread: float
    unit: str
    ratio: float


def rows_of(question: str, unit: str, measured: dict[str, list[float]]) -> list[Row]:
    """Return the medians of every candidate and their ratios to the first."""
    medians = {name: statistics.median(values) for name, values in measured.items()}
    first = next(iter(medians.values()))
    return [
        Row(question, name, value, (max(measured[name]) - min(measured[name])) / 2 / value, unit, value / first)
        for name, value in medians.items()
    ]


def take_turns(candidates: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure every candidate once per round."""
    measured: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, measure in candidates.items():
            measured[name].append(measure())
    return measured


def jsonl_files(source: Path) -> list[str]:
    """Return the training files of a source."""
    return [str(path) for path in sorted([*source.glob("train*.jsonl.zst"), *source.glob("train/*.jsonl.zst")])]


def encoder(tokenizer: Tokenizer) -> Callable[[dict[str, list[str]]], dict[str, list[list[int]]]]:
    """Return what `datasets` maps over batches of texts."""
    return lambda batch: {"ids": tokenizer.encode_batch(batch["text"])}


def hugging_face_stream(files: list[str], tokenizer: Tokenizer, documents: int | None) -> float:
    """Return tokens per second of `datasets` streaming and tokenising the files."""
    import datasets

    begin, tokens = time.perf_counter(), 0
    stream = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
    mapped = stream.select_columns(["text"]).map(encoder(tokenizer), batched=True, remove_columns=["text"])
    for row in islice(mapped, documents):
        tokens += len(row["ids"]) + 1
    return tokens / (time.perf_counter() - begin)


def plain_read(corpus: Path, keep: bool) -> float:
    """Return tokens per second of reading the training shards' bytes in order, kept in memory or each dropped."""
    record = Manifest.load(corpus).split("train")
    begin, kept = time.perf_counter(), list[bytes]()
    for shard in record.shards:
        data = (corpus / shard.file).read_bytes()
        if keep:
            kept.append(data)
    return record.totals.tokens / (time.perf_counter() - begin)


def stream_epochs(corpus: Path, batch_tokens: int, epochs: int, **options: Any) -> list[float]:
    """Return tokens per second of each epoch of the training stream, the first one opening every shard."""
    block = options.pop("block_tokens", 768)
    config = DataConfig(str(corpus), block_tokens=block, batch_tokens=batch_tokens // block * block, **options)
    module = PileDataModule(config, seed=0)
    batches = sum(module.manifest.split("train").blocks(block)) * block // config.batch_tokens
    stream, speeds = iter(module.train_dataloader()), []
    for _ in range(epochs):
        begin = time.perf_counter()
        for _ in islice(stream, batches):
            pass
        speeds.append(batches * config.batch_tokens / (time.perf_counter() - begin))
    return speeds


def reading(corpus: Path, files: list[str], tokenizer: Tokenizer, rounds: int) -> list[Row]:
    """Compare ways to get training tokens."""

    def ours(batch_tokens: int, epoch: int) -> Callable[[], float]:
        return lambda: stream_epochs(corpus, batch_tokens, epoch + 1)[epoch]

    measured = take_turns(
        {
            "plain read into memory": lambda: plain_read(corpus, keep=True),
            "plain read, each shard dropped": lambda: plain_read(corpus, keep=False),
            f"stream, batches of {LARGE_BATCH:,} tokens, first epoch": ours(LARGE_BATCH, 0),
            f"stream, batches of {LARGE_BATCH:,} tokens, later epochs": ours(LARGE_BATCH, 1),
            "stream, batches of 6,144 tokens, first epoch": ours(6144, 0),
            "stream, batches of 6,144 tokens, later epochs": ours(6144, 1),
            "datasets, streaming .jsonl.zst, tokenised on the fly": lambda: hugging_face_stream(files, tokenizer, 2000),
        },
        rounds,
    )
    millions = {name: [value / 1e6 for value in values] for name, values in measured.items()}
    return rows_of("reading", "million tokens/s", millions)


def hugging_face_map(files: list[str], tokenizer: Tokenizer, processes: int, scratch: Path) -> tuple[float, float]:
    """Return text MB/s of `datasets.map` alone, and with reading the files in."""
    import datasets

    datasets.disable_progress_bars()
    shutil.rmtree(scratch, ignore_errors=True)
    begin = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(scratch))
    rows = rows.select_columns(["text"])
    loaded = time.perf_counter()
    mapped = rows.map(
        encoder(tokenizer), batched=True, num_proc=processes if processes > 1 else None, remove_columns=["text"]
    )
    done = time.perf_counter()
    megabytes = sum(len(text.encode()) for text in rows["text"]) / 1e6
    assert len(mapped) == len(rows)
    return megabytes / (done - loaded), megabytes / (done - begin)


def preparing(files: list[str], spec: str, tokenizer: Tokenizer, rounds: int, scratch: Path) -> list[Row]:
    """Compare ways to tokenise and store a corpus."""

    def ours(workers: int) -> float:
        shutil.rmtree(scratch / "prepared", ignore_errors=True)
        begin = time.perf_counter()
        manifest = prepare(files, scratch / "prepared", spec, workers=workers, val_fraction=0.0, test_fraction=0.0)
        return manifest.split("train").totals.text_bytes / 1e6 / (time.perf_counter() - begin)

    def theirs(processes: int, part: int) -> float:
        return hugging_face_map(files, tokenizer, processes, scratch / "datasets")[part]

    candidates: dict[str, Callable[[], float]] = {}
    for processes in (1, 2):
        candidates |= {
            f"datasets.map alone, {processes} process(es)": lambda n=processes: theirs(n, 0),
            f"datasets, load and map, {processes} process(es)": lambda n=processes: theirs(n, 1),
            f"calm data prepare, {processes} worker(s)": lambda n=processes: ours(n),
        }
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        return rows_of("preparing", "MB/s of text", take_turns(candidates, rounds))
    finally:
        del os.environ["TOKENIZERS_PARALLELISM"]


def waiting(corpora: dict[str, DataConfig], steps: int) -> list[Row]:
    """Measure how long a training step of `STEP_SECONDS` waits for its batch, as a share of the whole time."""
    measured = {}
    work = torch.randn(512, 512)
    for name, config in corpora.items():
        stream = iter(PileDataModule(config, seed=0).train_dataloader())
        next(stream)  # opening the corpus is the start-up, not a step's waiting
        waited, begin = 0.0, time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            next(stream)
            got = time.perf_counter()
            waited += got - asked
            while time.perf_counter() - got < STEP_SECONDS:
                work @ work
        measured[name] = [100 * waited / (time.perf_counter() - begin)]
    return rows_of("waiting", "% of the time", measured)


def grown(corpus: Path, out: Path, times: int) -> Path:
    """Make a corpus that holds another one's training shards several times, as links."""
    manifest = Manifest.load(corpus)
    out.mkdir()
    shards = []
    for copy in range(times):
        for shard in manifest.split("train").shards:
            name = f"train-{copy:03d}-{shard.file}"
            os.link(corpus / shard.file, out / name)
            shards.append(replace(shard, file=name))
    if manifest.tokenizer and manifest.tokenizer.file:
        shutil.copy(corpus / manifest.tokenizer.file, out)
    replace(manifest, splits={"train": SplitRecord(tuple(shards))}).save(out)
    return out


def anonymous_megabytes() -> float:
    """Return this process' anonymous memory: what the system cannot drop and read again."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1e3


def read_and_tell(corpus: str) -> None:
    """Stream an epoch in a process of its own and print its memory."""
    stream_epochs(Path(corpus), 6144, 1)
    print(anonymous_megabytes())


def memory(corpus: Path, files: list[str], spec: str, scratch: Path, sizes: tuple[int, ...]) -> list[Row]:
    """Measure what readers and writers hold over growing corpora."""
    measured = {}
    for times in sizes:
        place = grown(corpus, scratch / f"grown-{times}", times)
        command = [sys.executable, __file__, "--read-and-tell", str(place)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        tokens = Manifest.load(place).split("train").totals.tokens
        measured[f"reading {tokens / 1e6:.0f}M tokens"] = [float(output)]
        shutil.rmtree(place)
    for times in sizes[:2]:
        code = (
            "import sys; from data_pipelines.prepare import prepare; "
            "prepare(sys.argv[3:], sys.argv[1], sys.argv[2], workers=1, val_fraction=0.0, test_fraction=0.0); "
            "print(next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM')) / 1e3)"
        )
        copies = [scratch / f"copy-{copy}-{Path(file).name}" for copy in range(times) for file in files]
        for copy, file in zip(copies, files * times, strict=True):
            os.symlink(file, copy)
        command = [sys.executable, "-c", code, str(scratch / f"written-{times}"), spec, *map(str, copies)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for copy in copies:
            copy.unlink()
        measured[f"preparing {times} x the sources (peak, whole process)"] = [float(output)]
    return rows_of("memory", "MB", measured)


def measure(arguments: argparse.Namespace, scratch: Path) -> Iterator[list[Row]]:
    """Answer every question."""
    source = arguments.source or sample_dir()
    files = [str(Path(file).resolve()) for file in jsonl_files(source)][: arguments.files]
    spec = arguments.tokenizer
    corpus = scratch / "corpus"
    prepare(files, corpus, spec, val_fraction=0.0, test_fraction=0.0)
    if spec.startswith("bpe:"):  # trained just now: the others use the same one
        spec = f"file:{corpus / 'tokenizer.json'}"
    tokenizer = make_tokenizer(spec, ())
    rounds, wanted = 1 if arguments.small else 3, arguments.only
    if wanted in (None, "reading"):
        yield reading(corpus, files, tokenizer, rounds)
    if wanted in (None, "preparing"):
        yield preparing(files[:1] if arguments.small else files[:2], spec, tokenizer, rounds, scratch)
    if wanted in (None, "waiting"):
        prepare(files[:1], scratch / "text", spec, shards="text", val_fraction=0.0, test_fraction=0.0)
        text = DataConfig(str(scratch / "text"), tokenizer=spec, cache_dir=str(scratch / "cache"), shuffle_shards=1)
        corpora = {
            "token shards": DataConfig(str(corpus)),
            "token shards, 2 workers": DataConfig(str(corpus), workers=2),
            "text shards, tokenised on the fly": text,
        }
        yield waiting(corpora, 20 if arguments.small else 200)
    if wanted in (None, "memory"):
        yield memory(corpus, files[:2], spec, scratch, (1, 4) if arguments.small else (1, 4, 16))


def show(console: Console, rows: list[Row]) -> None:
    """Print the answers to one question."""
    table = Table(title=rows[0].question)
    table.add_column("candidate")
    for heading in (rows[0].unit, "±", "ratio to the first"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.candidate, f"{row.value:,.3g}", f"{row.spread:.0%}", f"{row.ratio:.3g}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="directory of train*.jsonl.zst or train/*.jsonl.zst")
    parser.add_argument("--tokenizer", default="bpe:1024", help="as for `calm data prepare`")
    parser.add_argument("--files", type=int, default=None, help="use only so many files of the source")
    parser.add_argument("--only", choices=["reading", "preparing", "waiting", "memory"], help="answer one question")
    parser.add_argument("--small", action="store_true", help="one round, small sizes: does it still work?")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--read-and-tell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read_and_tell:
        read_and_tell(arguments.read_and_tell)
        return
    console, rows = Console(), list[Row]()
    with tempfile.TemporaryDirectory() as scratch:
        for answer in measure(arguments, Path(scratch)):
            show(console, answer)
            rows += answer
    machine = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()

"""`calm data`: prepare a corpus, look into it, verify it.

The commands only read options and draw tables; the work is that of `data_pipelines`. Everything heavy is
imported inside the commands, so that `calm --help` stays quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from calm_lightning.data.shards import Manifest, SplitRecord
    from data_pipelines.prepare import Progress as Report

app = typer.Typer(no_args_is_help=True, help="Prepare, inspect and verify token corpora.")

CorpusArgument = Annotated[
    Path, typer.Argument(metavar="CORPUS", help="A corpus directory made by `calm data prepare`.")
]


@app.command()
def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="`sample` (the embedded one), a directory in the Pile's layout, or .jsonl, .jsonl.gz and "
            ".jsonl.zst files or globs.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Corpus directory to make.")],
    tokenizer: Annotated[
        str, typer.Option(help="bpe:SIZE (trained on the train split), bytes, llama3, llama3:PATH or file:PATH.")
    ] = "bpe:1024",
    shard_tokens: Annotated[
        int, typer.Option(min=1, help="Close a shard at the document that reaches this many tokens.")
    ] = 1 << 20,
    val_fraction: Annotated[
        float, typer.Option(help="Share of documents held out as val, where sources are not laid out by split.")
    ] = 0.02,
    test_fraction: Annotated[
        float, typer.Option(help="Share of documents held out as test, where sources are not laid out by split.")
    ] = 0.02,
    max_documents: Annotated[
        int | None, typer.Option(min=1, help="Keep at most this many documents of every split.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another corpus at --out.")] = False,
) -> None:
    """Turn Pile-format text into token shards with a manifest.

    Documents go to the splits their files are laid out in (train.jsonl.zst or train/*.jsonl.zst, and likewise
    val and test), otherwise to one chosen by the hash of their text. The corpus appears at --out when it is
    whole; run again, the same command finds it finished.

    Example: calm data prepare sample --out corpora/sample-bpe --tokenizer bpe:1024
    """
    from rich.console import Console

    from data_pipelines.prepare import prepare as prepare_corpus

    with _ProgressBar() as bar:
        manifest = prepare_corpus(
            sources,
            out,
            tokenizer,
            shard_tokens=shard_tokens,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            max_documents=max_documents,
            force=force,
            progress=bar.show,
        )
    if bar.latest is None:
        typer.echo(f"{out} is finished already: same sources, tokenizer and settings; nothing to do")
        return
    _print_splits(Console(), manifest, block_tokens=None)
    seconds, counts = bar.seconds(), bar.latest.counts
    typer.echo(
        f"{out}: {counts.documents:,} documents, {counts.tokens:,} tokens in {seconds:.1f} s "
        f"({counts.text_bytes / 1e6 / seconds:.1f} MB/s, {counts.tokens / seconds:,.0f} tokens/s)"
    )


@app.command()
def inspect(
    corpus: CorpusArgument,
    split: Annotated[str, typer.Option(help="Split to take samples and domains from.")] = "train",
    samples: Annotated[int, typer.Option(min=0, help="Documents to decode and show.")] = 3,
    sample_characters: Annotated[int, typer.Option(min=1, help="Characters shown of each.")] = 300,
    block_tokens: Annotated[int, typer.Option(min=1, help="Block length T to count blocks for.")] = 768,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show what a corpus holds: splits, domains, tokenizer, decoded samples.

    Example: calm data inspect corpora/sample-bytes --split val --samples 1
    """
    import json

    from rich.console import Console
    from rich.markup import escape

    from calm_lightning.data.shards import Manifest
    from calm_lightning.data.tokenizers import load_tokenizer

    manifest = Manifest.load(corpus)
    record = manifest.split(split)
    tokenizer = load_tokenizer(corpus, manifest.tokenizer)
    decoded = [
        {"domain": domain, "text": tokenizer.decode(ids)[:sample_characters]}
        for domain, ids in _sample_documents(corpus, manifest, record, samples)
    ]
    if as_json:
        typer.echo(json.dumps(_summary(manifest, split, block_tokens, decoded), indent=2, ensure_ascii=False))
        return
    console = Console()
    t = manifest.tokenizer
    console.print(
        f"corpus {manifest.corpus_hash[:12]}   tokenizer {t.kind}, V = {t.vocabulary:,}, separator {t.separator_id}, "
        f"fingerprint {t.fingerprint[:12]}",
        highlight=False,
        soft_wrap=True,
    )
    _print_splits(console, manifest, block_tokens)
    _print_domains(console, split, record)
    for sample in decoded:
        console.print(f"\n[bold]{escape(sample['domain'])}[/bold]", highlight=False)
        console.print(sample["text"], markup=False, highlight=False)


@app.command()
def verify(corpus: CorpusArgument) -> None:
    """Reread every shard of a corpus against its manifest.

    Example: calm data verify corpora/sample-bytes
    """
    from calm_lightning.data.shards import Manifest
    from calm_lightning.errors import DataError
    from data_pipelines.verify import find_problems

    manifest = Manifest.load(corpus)
    problems = find_problems(corpus)
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise DataError(f"{corpus} has {len(problems)} problem(s), listed above: prepare the corpus again")
    shards = sum(len(split.shards) for split in manifest.splits.values())
    typer.echo(f"{corpus}: {shards} shards agree with the manifest (corpus {manifest.corpus_hash[:12]})")


class _ProgressBar:
    """A bar on stderr that vanishes at the end, and the last report it was shown (None before the first)."""

    def __init__(self) -> None:
        import time

        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("reading sources", total=None)
        self._clock, self._started = time.perf_counter, time.perf_counter()
        self.latest: Report | None = None

    def __enter__(self) -> _ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def seconds(self) -> float:
        """Return the time since the start."""
        return self._clock() - self._started

    def show(self, report: Report) -> None:
        """Move the bar."""
        self.latest = report
        label = {"tokenizer": "training the tokenizer", "shards": "writing shards"}[report.phase]
        if report.counts.text_bytes:
            label += f" {report.counts.text_bytes / 1e6 / self.seconds():.1f} MB/s"
        self._bar.update(self._task, description=label, completed=report.bytes_read, total=report.bytes_total)


def _sample_documents(
    corpus: Path, manifest: Manifest, record: SplitRecord, samples: int
) -> list[tuple[str, list[int]]]:
    """Return (domain, token ids) of documents spread evenly over the first shard of a split."""
    from itertools import islice

    from data_pipelines.verify import read_shard

    shard = record.shards[0]
    wanted = {i * shard.documents // samples for i in range(min(samples, shard.documents))} if samples else set()
    documents = islice(read_shard(corpus / shard.file, manifest.dtype), max(wanted, default=-1) + 1)
    return [(d.domain, d.tokens[1:].tolist()) for i, d in enumerate(documents) if i in wanted]


def _summary(manifest: Manifest, split: str, block_tokens: int, samples: list[dict[str, str]]) -> dict[str, object]:
    """Return what `inspect` shows as a JSON-ready value."""
    from dataclasses import asdict

    return {
        "corpus_hash": manifest.corpus_hash,
        "tokenizer": asdict(manifest.tokenizer),
        "dtype": manifest.dtype,
        "block_tokens": block_tokens,
        "splits": {
            name: {
                **asdict(record.totals),
                "shards": len(record.shards),
                "blocks": sum(record.blocks(block_tokens)),
                "dropped_tokens": record.dropped_tokens(block_tokens),
                "domains": {domain: asdict(counts) for domain, counts in record.domains.items()},
            }
            for name, record in manifest.splits.items()
        },
        "sample_split": split,
        "samples": samples,
    }


def _print_splits(console: Console, manifest: Manifest, block_tokens: int | None) -> None:
    from rich.table import Table

    table = Table(title="splits")
    table.add_column("split")
    extra = ["text MB"] if block_tokens is None else [f"blocks of {block_tokens}", "left over"]
    for heading in ("shards", "documents", "tokens", "bytes/token", *extra):
        table.add_column(heading, justify="right")
    for name, record in manifest.splits.items():
        totals = record.totals
        cells = [f"{len(record.shards):,}", f"{totals.documents:,}", f"{totals.tokens:,}"]
        cells.append(f"{totals.text_bytes / totals.tokens:.3f}")
        if block_tokens is None:
            cells.append(f"{totals.text_bytes / 1e6:.2f}")
        else:
            cells += [f"{sum(record.blocks(block_tokens)):,}", f"{record.dropped_tokens(block_tokens):,}"]
        table.add_row(name, *cells)
    console.print(table)


def _print_domains(console: Console, split: str, record: SplitRecord) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"domains of {split}")
    table.add_column("domain")
    for heading in ("documents", "tokens", "share", "bytes/token"):
        table.add_column(heading, justify="right")
    for domain, counts in sorted(record.domains.items(), key=lambda item: -item[1].tokens):
        share, density = counts.tokens / record.totals.tokens, counts.text_bytes / counts.tokens
        table.add_row(escape(domain), f"{counts.documents:,}", f"{counts.tokens:,}", f"{share:.1%}", f"{density:.3f}")
    console.print(table)

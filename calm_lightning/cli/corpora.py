"""`calm data inspect`, `verify` and `stats`: look at a finished corpus in a local directory.

The commands only read options and draw tables; the work is that of `data_pipelines`. Everything heavy is imported
inside the commands, so that `calm --help` stays quick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from calm_lightning.data.shards.manifest import Manifest, ShardRecord
    from data_pipelines.inspecting.look import Look

CorpusArgument = Annotated[str, typer.Argument(metavar="CORPUS", help="A corpus directory.")]
ShardsAt = Annotated[
    str, typer.Option(metavar="DIR", help="Directory of the shards, where they are not beside the manifest.")
]


def inspect(
    corpus: CorpusArgument,
    split: Annotated[str, typer.Option(help="Split to take domains and samples from.")] = "train",
    samples: Annotated[int, typer.Option(min=0, help="Documents to show.")] = 3,
    sample_characters: Annotated[
        int | None, typer.Option(min=1, help="Characters shown of each; default 300, or all of a single document.")
    ] = None,
    block_tokens: Annotated[int, typer.Option(min=1, help="Block length T to count blocks for.")] = 768,
    shard: Annotated[str, typer.Option(metavar="NAME", help="Look at this shard alone.")] = "",
    document: Annotated[
        int | None, typer.Option(min=1, help="Show this document of the split, or of the shard, counted from 1.")
    ] = None,
    shards_at: ShardsAt = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show what a corpus holds: splits, domains, tokenizer, where it comes from, documents.

    Example: calm data inspect corpora/sample-bytes --split val --samples 1
    """
    import json

    from calm_lightning.data.shards.manifest import Manifest, SplitRecord
    from calm_lightning.data.tokenizers import load_tokenizer
    from data_pipelines.inspecting.look import find_document, find_shard, look_at, spread
    from data_pipelines.inspecting.terminal import open_console, print_corpus, print_document, print_domains

    place, shards = _local(corpus, shards_at)
    manifest = Manifest.load(place)
    if shard:
        split, one = find_shard(manifest, shard)
        record = SplitRecord((one,))
    else:
        record = manifest.split(split)
    tokenizer = load_tokenizer(place, manifest.tokenizer) if manifest.tokenizer else None
    if document is not None:
        at, number = find_document(shard or f"split {split}", record, document)
        looks = look_at(shards / at.file, manifest, [number], tokenizer, sample_characters)
    else:
        numbers = spread(record.shards[0].totals.documents, samples)
        looks = look_at(shards / record.shards[0].file, manifest, numbers, tokenizer, sample_characters or 300)
    if as_json:
        value = _summary(manifest, split, record.shards[0] if shard else None, block_tokens, looks)
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    screen = open_console()
    if document is None:
        print_corpus(screen, manifest, block_tokens)
        print_domains(screen, shard or split, record, tokens=manifest.tokenizer is not None)
    for look in looks:
        print_document(screen, look)


def verify(
    corpus: CorpusArgument,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every document of tokens, too, and compare its length in bytes.")
    ] = False,
    shards_at: ShardsAt = "",
) -> None:
    """Reread every shard of a corpus against its manifest, with a reader of its own.

    Example: calm data verify corpora/sample-bytes --deep
    """
    from calm_lightning.data.shards.manifest import Manifest
    from calm_lightning.errors import DataError
    from data_pipelines.inspecting.terminal import visible
    from data_pipelines.inspecting.verify import find_problems, find_strangers

    place, shards = _local(corpus, shards_at)
    manifest = Manifest.load(place)
    with _progress("verifying", manifest) as advance:
        problems = find_problems(place, shards, deep=deep, progress=advance)
    for problem in problems:
        typer.echo(visible(problem))
    for name in find_strangers(place, shards):
        typer.echo(f"note: {visible(str(place / name))} is no part of the corpus", err=True)
    if problems:
        raise DataError(
            f"{corpus} has {len(problems)} problem(s), listed above: put the original files back, "
            f"or prepare it again with --force"
        )
    totals = [record.totals for record in manifest.splits.values()]
    count = sum(len(record.shards) for record in manifest.splits.values())
    typer.echo(
        f"{corpus}: {count:,} shards with {sum(one.documents for one in totals):,} documents agree with the manifest "
        f"(corpus {manifest.corpus_hash[:12]})"
    )


def stats(
    corpus: CorpusArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write stats.json, figures and stats.html into this directory.")
    ] = None,
    block_tokens: Annotated[int, typer.Option(min=1, help="Block length T to count blocks for.")] = 768,
    near: Annotated[bool, typer.Option("--near", help="Count near duplicates, too.")] = False,
    near_threshold: Annotated[float, typer.Option(help="Similarity from which documents are near duplicates.")] = 0.8,
    characters: Annotated[
        bool, typer.Option("--characters/--no-characters", help="Decode tokens to count characters.")
    ] = True,
    shards_at: ShardsAt = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure a corpus: lengths, domains, bytes per token, duplicates, blocks.

    Shards are read one after another in constant memory, but --near keeps a signature per document.

    Example: calm data stats corpora/sample-bytes --out stats/sample-bytes
    """
    import json

    from calm_lightning.data.shards.manifest import Manifest
    from data_pipelines.inspecting.stats import measure
    from data_pipelines.inspecting.stats_report import can_draw, write_report
    from data_pipelines.inspecting.terminal import open_console, print_stats

    place, shards = _local(corpus, shards_at)
    manifest = Manifest.load(place)
    with _directory(out), _progress("reading", manifest) as advance:
        found = measure(
            place,
            shards,
            block_tokens=block_tokens,
            characters=characters,
            near_threshold=near_threshold if near else None,
            progress=advance,
        )
        written = write_report(out, found) if out else []
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        print_stats(open_console(), found)
    for path in written:
        typer.echo(str(path), err=as_json)
    if written and not can_draw():
        typer.echo("no figures: matplotlib is not installed; run pip install 'calm-lightning[sweeps]'", err=True)


def _local(corpus: str, shards_at: str) -> tuple[Path, Path]:
    """Return the directories of the manifest and of the shards.

    Raises:
        DataError: One is an address.
    """
    from calm_lightning.errors import DataError

    for given in (corpus, shards_at):
        if "://" in given or given.startswith("pipe:"):
            raise DataError(f"{given} is not a local directory: copy the corpus to this machine to look at it")
    return Path(corpus), Path(shards_at or corpus)


@contextmanager
def _directory(out: Path | None) -> Iterator[None]:
    """Make the output directory before any work is done; take it away again if nothing comes of it.

    Raises:
        DataError: It cannot be made.
    """
    from calm_lightning.errors import DataError

    made = [folder for folder in (out, *out.parents) if not folder.exists()] if out else []
    try:
        try:
            if out:
                out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{out} cannot be made ({error.strerror}): name another directory with --out") from None
        yield
    finally:
        for folder in made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


@contextmanager
def _progress(label: str, manifest: Manifest) -> Iterator[Callable[[int], None]]:
    """Show a bar over the bytes of all shards on stderr; it vanishes at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn(label), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        total = sum(shard.bytes for record in manifest.splits.values() for shard in record.shards)
        task = bar.add_task(label, total=total)
        yield lambda more: bar.advance(task, more)


def _summary(
    manifest: Manifest, split: str, shard: ShardRecord | None, block_tokens: int, looks: list[Look]
) -> dict[str, Any]:
    """Return what `inspect` shows as a JSON-ready value."""
    from dataclasses import asdict

    splits = {}
    for name, record in manifest.splits.items():
        splits[name] = {
            **asdict(record.totals),
            "shards": len(record.shards),
            "blocks": sum(record.blocks(block_tokens)),
            "dropped_tokens": record.dropped_tokens(block_tokens),
            "domains": {domain: asdict(counts) for domain, counts in record.domains.items()},
        }
    return {
        "corpus_hash": manifest.corpus_hash,
        "kind": manifest.kind,
        "tokenizer": asdict(manifest.tokenizer) if manifest.tokenizer else None,
        "dtype": manifest.dtype,
        "block_tokens": block_tokens,
        "splits": splits,
        "provenance": asdict(manifest.provenance),
        "shard": asdict(shard) if shard else None,
        "sample_split": split,
        "samples": [asdict(look) for look in looks],
    }

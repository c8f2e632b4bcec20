"""`calm data index`: tars of text that others made become a corpus.

The command reads options and draws; the work is that of `data_pipelines.indexing.index`. Everything heavy is imported
inside the command, so that `calm --help` stays quick.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from data_pipelines.indexing.index import Indexed
    from data_pipelines.indexing.index import Progress as Report


def index(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Tars in WebDataset layout (.tar, .tar.gz, .tar.zst): files, globs, directories, or addresses with "
            "braces such as https://host/pile-{000000..000009}.tar.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Corpus directory to make; it gets the manifest.")],
    val_shards: Annotated[
        int | None, typer.Option(min=0, help="Hold out this many tars as val where they are not laid out by split [1].")
    ] = None,
    test_shards: Annotated[
        int | None, typer.Option(min=0, help="Hold out the last this many tars as test, likewise [0].")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the manifest of other tars at --out.")] = False,
    retries: Annotated[int, typer.Option(min=0, help="Further attempts at a remote tar.")] = 5,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds without a byte until an attempt fails.")] = 60.0,
) -> None:
    """Make a corpus of tars of text documents, which stay where they are.

    A sample of a tar is a document: KEY.txt, or KEY.json with "text"; KEY.json may also name its domain as "meta":
    {"pile_set_name": ...} or "domain". Tars in folders train, val and test, or named train-*, val-* and test-*, keep
    their splits; otherwise the last ones are held out. Every tar is read once and validated; interrupted, the same
    command continues.

    Example: calm data index 'tars/*.tar' --out corpora/tars --val-shards 2
    """
    from rich.console import Console

    from data_pipelines.indexing.index import index as index_tars

    with _bar() as show:
        indexed = index_tars(
            sources,
            out,
            val_shards=val_shards,
            test_shards=test_shards,
            force=force,
            retries=retries,
            timeout=timeout,
            progress=show,
        )
    _print_splits(Console(), indexed)
    if indexed.ignored:
        passed = ", ".join(f"{number:,} {kind}" for kind, number in sorted(indexed.ignored.items())[:20])
        typer.echo(f"members that are no documents were passed over: {ascii(passed)[1:-1]}")
    state = "written" if indexed.changed else "was up to date"
    typer.echo(f"{out / 'manifest.json'} {state} (corpus {indexed.manifest.corpus_hash[:12]}); train on it with")
    shards_at = f" data.shards_at={_quoted(indexed.shards_at)}" if indexed.shards_at else ""
    typer.echo(f"  data.corpus={_quoted(str(out))}{shards_at} data.tokenizer=bpe:1024")


def _quoted(value: str) -> str:
    import shlex

    return shlex.quote(value)


def _bar() -> AbstractContextManager[Callable[[Report], None]]:
    """Return a context manager that yields what moves a bar on stderr; the bar vanishes at the end."""
    from collections.abc import Iterator
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    @contextmanager
    def shown() -> Iterator[Callable[[Report], None]]:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[tars]}"),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("reading tars", total=None, tars="")

            def show(report: Report) -> None:
                tars = f"{report.tars}/{report.tars_total}"
                bar.update(task, completed=report.bytes_read, total=report.bytes_total, tars=tars)

            yield show

    return shown()


def _print_splits(console: Console, indexed: Indexed) -> None:
    from rich.table import Table

    table = Table(title="splits")
    table.add_column("split")
    for heading in ("shards", "documents", "text MB", "domains"):
        table.add_column(heading, justify="right")
    for name, record in indexed.manifest.splits.items():
        totals = record.totals
        cells = (f"{len(record.shards):,}", f"{totals.documents:,}", f"{totals.text_bytes / 1e6:,.2f}")
        table.add_row(name, *cells, f"{len(record.domains):,}")
    console.print(table)

"""`calm data`: prepare a corpus; the commands beside it are in `corpora.py`, `index.py` and `mixture.py`.

The command only reads options, shows progress and draws a table; the work is that of `data_pipelines`. Everything
heavy is imported inside, so that `calm --help` stays quick.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calm_lightning.cli.corpora import inspect, stats, verify
from calm_lightning.cli.index import index
from calm_lightning.cli.mixture import mixture

if TYPE_CHECKING:
    from rich.console import Console

    from calm_lightning.data.shards.manifest import Manifest
    from data_pipelines.writing.passage import Progress as Report

app = typer.Typer(no_args_is_help=True, help="Prepare corpora, look at them, verify them.")
INTERRUPTED = 130
_CLEANING, _SHARDS, _WORK = "Cleaning", "Shards", "Work"


class Shards(StrEnum):
    """What shards hold."""

    tokens = "tokens"
    text = "text"


class NormalForm(StrEnum):
    """Unicode normal forms."""

    none = "none"
    nfc = "NFC"
    nfkc = "NFKC"


class Duplicates(StrEnum):
    """What becomes of duplicate documents."""

    keep = "keep"
    exact = "exact"
    near = "near"


Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="`sample` (the embedded one), a directory in the Pile's layout, files or globs (.jsonl, .txt, also "
        "compressed, WikiText, .tar of documents), hf://OWNER/NAME, or the address of a file.",
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        help="bpe:SIZE (trained on the train split), bytes, llama3, llama3:PATH or file:PATH.",
        show_default="bpe:1024",
        rich_help_panel=_SHARDS,
    ),
]
Kind = Annotated[Shards, typer.Option(help="tokens, or text to be tokenised while training.", rich_help_panel=_SHARDS)]
ShardTokens = Annotated[
    int,
    typer.Option(min=1, help="Close a shard at the document that reaches this many tokens.", rich_help_panel=_SHARDS),
]
ShardMb = Annotated[
    float,
    typer.Option(help="Close a shard of text at the document that reaches this many MB.", rich_help_panel=_SHARDS),
]
ValFraction = Annotated[
    float, typer.Option(help="Share of documents held out as val, where sources are not laid out by split.")
]
TestFraction = Annotated[
    float, typer.Option(help="Share of documents held out as test, where sources are not laid out by split.")
]
MaxDocuments = Annotated[int | None, typer.Option(min=1, help="Keep at most this many documents of every split.")]
CleaningFile = Annotated[
    str | None,
    typer.Option(
        "--cleaning",
        help="The rules below as a YAML file, or as a preset (pile); options win over it.",
        rich_help_panel=_CLEANING,
    ),
]
MinChars = Annotated[
    int | None, typer.Option(help="Drop shorter texts, in characters.", show_default="1", rich_help_panel=_CLEANING)
]
MaxChars = Annotated[int | None, typer.Option(help="Drop longer texts, in characters.", rich_help_panel=_CLEANING)]
Normalise = Annotated[
    NormalForm | None,
    typer.Option(help="Unicode normal form of texts.", show_default="none", rich_help_panel=_CLEANING),
]
DuplicatesOption = Annotated[
    Duplicates | None,
    typer.Option(
        help="Drop exact or also near duplicates across all splits; held-out copies stay.",
        show_default="keep",
        rich_help_panel=_CLEANING,
    ),
]
NearThreshold = Annotated[
    float | None,
    typer.Option(
        help="Similarity from which documents are near duplicates.", show_default="0.8", rich_help_panel=_CLEANING
    ),
]
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Skip, count and log records that hold no document.", rich_help_panel=_CLEANING),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes.", show_default="one per core", rich_help_panel=_WORK)
]
PieceMb = Annotated[
    float, typer.Option(help="Text a process gets at a time, in MB; memory grows with it.", rich_help_panel=_WORK)
]
Force = Annotated[bool, typer.Option("--force", help="Replace another corpus at --out.")]


@app.command()
def prepare(
    sources: Sources,
    out: Annotated[Path, typer.Option(help="Corpus directory to make.")],
    tokenizer: Tokenizer = None,
    shards: Kind = Shards.tokens,
    shard_tokens: ShardTokens = 1 << 20,
    shard_mb: ShardMb = 32,
    val_fraction: ValFraction = 0.02,
    test_fraction: TestFraction = 0.02,
    max_documents: MaxDocuments = None,
    cleaning: CleaningFile = None,
    min_chars: MinChars = None,
    max_chars: MaxChars = None,
    normalise: Normalise = None,
    duplicates: DuplicatesOption = None,
    near_threshold: NearThreshold = None,
    skip_bad: SkipBad = False,
    workers: Workers = None,
    piece_mb: PieceMb = 4,
    force: Force = False,
) -> None:
    """Turn raw text into shards with a manifest.

    Documents go to the splits their files are laid out in (train.jsonl.zst or train/*.jsonl.zst, and likewise val and
    test), otherwise to one chosen by the hash of their text. The corpus appears at --out when it is whole. Interrupted
    or killed, the same command continues, with any number of workers; run on a finished corpus, it finds it finished.

    Example: calm data prepare sample --out corpora/sample-bpe --tokenizer bpe:1024
    """
    from calm_lightning.errors import DataError
    from data_pipelines.prepare import prepare as prepare_corpus
    from data_pipelines.writing.settings import DEFAULT_TOKENIZER, read_cleaning

    if tokenizer and shards is Shards.text:
        raise DataError("shards of text have no tokenizer: leave out --tokenizer, or use --shards tokens")
    rules: dict[str, object] = {"min_chars": min_chars, "max_chars": max_chars, "normalise": normalise}
    rules |= {"duplicates": duplicates, "near_threshold": near_threshold}
    with _ProgressBar() as bar:
        manifest = prepare_corpus(
            sources,
            out,
            tokenizer or DEFAULT_TOKENIZER,
            shard_tokens=shard_tokens,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            max_documents=max_documents,
            force=force,
            progress=bar.show,
            workers=workers,
            cleaning=read_cleaning(
                _cleaning_file(cleaning), {name: value for name, value in rules.items() if value is not None}
            ),
            shards=shards,
            shard_mb=shard_mb,
            skip_bad=skip_bad,
            piece_bytes=int(piece_mb * 1e6),
        )
    _print_summary(out, manifest, bar)


app.command()(inspect)
app.command()(verify)
app.command()(stats)
app.command()(index)
app.command()(mixture)


_LABELS = {
    "checking": "comparing sources",
    "duplicates": "looking for duplicates",
    "judging": "comparing documents",
    "tokenizer": "training the tokenizer",
    "shards": "writing shards",
}


class _ProgressBar:
    """A bar on stderr that vanishes at the end; Ctrl-C ends it with a sentence."""

    def __init__(self) -> None:
        import time

        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        console = Console(stderr=True)
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("reading sources", total=None, speed="", left="")
        self._clock = time.perf_counter
        self._first: Report | None = None
        self._latest: Report | None = None
        self._started = self._since = self._clock()

    def __enter__(self) -> _ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._bar.stop()
        if kind is KeyboardInterrupt:
            typer.echo("\ninterrupted: the same command continues", err=True)
            raise typer.Exit(INTERRUPTED)

    @property
    def worked(self) -> bool:
        """Whether there was anything to do."""
        return self._latest is not None and self._latest.phase != "checking"

    def said(self) -> str:
        """Return how long it took and how fast it was; work of earlier runs does not count."""
        seconds = self._clock() - self._started
        speed = f" ({self._speed(self._latest, seconds)})" if self._latest else ""
        return f"{seconds:.1f} s" + (speed if speed != " ()" else "")

    def _speed(self, report: Report, seconds: float) -> str:
        if self._first is None or seconds < 1e-3:
            return ""
        text = report.counts.text_bytes - self._first.counts.text_bytes
        tokens = report.counts.tokens - self._first.counts.tokens
        speeds = [f"{text / 1e6 / seconds:.1f} MB/s"] if text else []
        return ", ".join(speeds + ([f"{tokens / seconds:,.0f} tokens/s"] if tokens else []))

    def show(self, report: Report) -> None:
        """Move the bar."""
        self._latest = report
        if self._first is None or self._first.phase != report.phase:
            self._first, self._since = report, self._clock()
        seconds = max(self._clock() - self._since, 1e-3)
        done = report.bytes_read - report.bytes_resumed
        left = seconds * (report.bytes_total - report.bytes_read) / done if done and report.bytes_total else 0.0
        self._bar.update(
            self._task,
            description=_LABELS[report.phase],
            completed=report.bytes_read,
            total=report.bytes_total or None,
            speed=self._speed(report, seconds),
            left=f"{_duration(left)} left" if left else "",
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{rest:02d}"


def _cleaning_file(given: str | None) -> Path | None:
    """Return the file that --cleaning names, which may be a preset's name."""
    from calm_lightning.config import conf_dir

    if given is None:
        return None
    preset = conf_dir() / "cleaning" / f"{given}.yaml"
    return preset if preset.is_file() and not Path(given).is_file() else Path(given)


def _print_summary(out: Path, manifest: Manifest, bar: _ProgressBar) -> None:
    from rich.console import Console

    from calm_lightning.data.shards.manifest import Counts

    if not bar.worked:
        typer.echo(f"{out} is finished already: same sources and settings; nothing to do")
        return
    _print_splits(Console(), manifest)
    if manifest.provenance.dropped:
        typer.echo("left out: " + ", ".join(f"{n:,} {rule}" for rule, n in manifest.provenance.dropped.items()))
    totals = sum((split.totals for split in manifest.splits.values()), Counts())
    tokens = f", {totals.tokens:,} tokens" if totals.tokens else ""
    typer.echo(f"{out}: {totals.documents:,} documents{tokens} in {bar.said()}")


def _print_splits(console: Console, manifest: Manifest) -> None:
    from rich.table import Table

    table = Table(title="splits")
    table.add_column("split")
    for heading in ("shards", "documents", *(["tokens", "bytes/token"] if manifest.tokenizer else []), "text MB"):
        table.add_column(heading, justify="right")
    for name, record in manifest.splits.items():
        totals = record.totals
        cells = [f"{len(record.shards):,}", f"{totals.documents:,}"]
        if totals.tokens:
            cells += [f"{totals.tokens:,}", f"{totals.text_bytes / totals.tokens:.3f}"]
        table.add_row(name, *cells, f"{totals.text_bytes / 1e6:.2f}")
    console.print(table)

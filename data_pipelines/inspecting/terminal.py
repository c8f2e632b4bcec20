"""A corpus on a terminal: tables, bars and documents, as `calm data inspect` and `stats` print them.

Text of a corpus is other people's: control characters are shown as pictures of themselves, so that no terminal obeys
them; a text that means them looks different from what it is.
"""

from __future__ import annotations

import os

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from calm_lightning.data.shards.manifest import Counts, Manifest, SplitRecord
from data_pipelines.inspecting.look import Look
from data_pipelines.inspecting.stats import Statistics
from data_pipelines.inspecting.stats_report import headline, histogram, tables

_BAR = 18


def open_console() -> Console:
    """Return stdout as a console that folds no table when it goes to a file or a pipe."""
    console = Console(highlight=False)
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=160)


def visible(text: str) -> str:
    """Return a text whose control characters are pictures of themselves, so that no terminal obeys them."""
    shown = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
    return text.translate(shown | {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD))


def print_corpus(console: Console, manifest: Manifest, block_tokens: int) -> None:
    """Print what a corpus is, where it comes from, and its splits."""
    t, origin = manifest.tokenizer, manifest.provenance
    made = "text, tokenised when it is read"
    if t:
        made = f"tokenizer {t.kind}, V = {t.vocabulary:,}, separator {t.separator_id}, fingerprint {t.fingerprint[:12]}"
    lines = [f"corpus {manifest.corpus_hash[:12]}   {made}"]
    if origin.sources:
        names = [source.name for source in origin.sources[:4]] + ["..."] * (len(origin.sources) > 4)
        size = sum(source.bytes for source in origin.sources) / 1e6
        lines.append(f"sources: {len(origin.sources):,} of {size:,.1f} MB: {', '.join(names)}")
    for title, values in (("settings", origin.settings), ("dropped", origin.dropped), ("versions", origin.versions)):
        if values:
            lines.append(f"{title}: {', '.join(f'{name} {value}' for name, value in values.items())}")
    for line in lines:
        console.print(visible(line), markup=False, soft_wrap=True)
    rows = []
    for name, record in manifest.splits.items():
        row = [name, f"{len(record.shards):,}", *_counted(record.totals, tokens=t is not None)]
        if t:
            row += [f"{sum(record.blocks(block_tokens)):,}", f"{record.dropped_tokens(block_tokens):,}"]
        rows.append(row)
    head = ["split", "shards", *_count_names(t is not None)]
    _print_table(console, "splits", head + [f"blocks of {block_tokens:,}", "left over"] * (t is not None), rows)


def _count_names(tokens: bool) -> list[str]:
    return ["documents", "tokens", "bytes/token"] if tokens else ["documents", "text MB"]


def _counted(counts: Counts, tokens: bool) -> list[str]:
    if not tokens:
        return [f"{counts.documents:,}", f"{counts.text_bytes / 1e6:,.2f}"]
    density = f"{counts.text_bytes / counts.tokens:.3f}" if counts.tokens else "-"
    return [f"{counts.documents:,}", f"{counts.tokens:,}", density]


def print_domains(console: Console, name: str, record: SplitRecord, tokens: bool) -> None:
    """Print the domains of a split or of a part of it, the largest first.

    Args:
        console: Where to.
        name: What they are the domains of.
        record: The split.
        tokens: Whether it is made of tokens.
    """

    def size(counts: Counts) -> int:
        return counts.tokens if tokens else counts.text_bytes

    ordered = sorted(record.domains.items(), key=lambda item: (-size(item[1]), item[0]))
    whole = max(size(record.totals), 1)
    rows = [[domain, *_counted(counts, tokens), f"{100 * size(counts) / whole:.1f} %"] for domain, counts in ordered]
    _print_table(console, f"domains of {name}", ["domain", *_count_names(tokens), "share"], rows)


def print_document(console: Console, look: Look) -> None:
    """Print a document: its domain, where it is, its size and its text."""
    size = f"{look.tokens:,} tokens, {look.text_bytes:,} bytes" if look.tokens else f"{look.text_bytes:,} bytes"
    console.print(Text(f"\n{visible(look.domain)}", style="bold"), Text(f"{look.shard} document {look.number}, {size}"))
    console.print(visible(look.text), markup=False, soft_wrap=True)


def _print_table(console: Console, title: str, head: list[str], rows: list[list[str]]) -> None:
    """Print a table whose first column is names and the others numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, name in enumerate(head):
        table.add_column(Text(visible(name)), justify="right" if place else "left")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    console.print(table)


def print_stats(console: Console, found: Statistics) -> None:
    """Print all tables, and a histogram of lengths after the first."""
    console.print(headline(found), markup=False, soft_wrap=True)
    for place, table in enumerate(tables(found)):
        _print_table(console, table.title, list(table.head), [list(row) for row in table.rows])
        for note in table.notes:
            console.print(f"{note}\n", markup=False, soft_wrap=True)
        if place == 0:
            _print_histogram(console, f"documents by length in {found.unit}", *histogram(found))


def _print_histogram(console: Console, title: str, bins: list[tuple[int, int]], counts: dict[str, list[int]]) -> None:
    """Print one line per bin and one column of bars per split; a column's longest bar is its largest number."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("length", justify="right")
    for name in counts:
        table.add_column(Text(visible(name)))
    width = max(len(f"{value:,}") for own in counts.values() for value in own)
    for i, (low, high) in enumerate(bins):
        cells = [f"{own[i]:>{width},} {_bar(own[i] / max(*own, 1))}" for own in counts.values()]
        table.add_row(f"{low:,} to {high:,}", *(Text(cell) for cell in cells))
    console.print(table)


def _bar(share: float) -> str:
    """Return a bar of this share of the full length, in eighths of a cell."""
    eighths = round(8 * _BAR * share)
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]

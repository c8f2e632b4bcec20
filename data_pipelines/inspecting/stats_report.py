"""Statistics as tables for the terminal and the page, and the files of `calm data stats --out`.

Tables are cells of text, so that the terminal and the page show the same. The page holds its figures: one file to
send or keep, a third larger than the figures beside it.
"""

from __future__ import annotations

import base64
import html
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.inspecting.lengths import PERCENTILES, log_edges
from data_pipelines.inspecting.stats import Statistics

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_SHEET = f"""
body {{ margin: 0; background: #fff; color: #1f2430; font: 15px/1.5 {_FONT}; }}
main {{ max-width: 1280px; margin: 0 auto; padding: 28px 24px 40px; }}
h1 {{ font-size: 26px; line-height: 1.2; margin: 0 0 6px; }}
h2 {{ font-size: 17px; margin: 28px 0 8px; }}
p.note {{ color: #667085; margin: 4px 0 12px; }}
img {{ width: 100%; height: auto; margin: 12px 0; }}
div.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }}
th, td {{ padding: 5px 16px 5px 0; text-align: right; border-bottom: 1px solid #e4e7ec; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
th {{ color: #667085; font-weight: 600; }}
"""
_SHOWN_DOMAINS = 40


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: What it shows.
        head: Names of its columns.
        rows: Its cells.
        notes: Sentences below it.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def headline(stats: Statistics) -> str:
    """Return what the corpus is, in a line."""
    made = f"tokenizer {stats.tokenizer}" if stats.tokenizer else "text"
    return f"corpus {stats.corpus_hash[:12]} · {made}"


def tables(stats: Statistics) -> list[Table]:
    """Return all tables, in the order in which they are shown."""
    return [
        _splits(stats),
        *(_lengths(stats, unit) for unit in stats.units if unit != "bytes" or len(stats.units) < 3),
        *(_domains(stats, name) for name in stats.splits),
        _repeats(stats),
        *([_largest(stats)] if stats.repeats.largest else []),
        *([_near(stats)] if stats.near else []),
    ]


def histogram(stats: Statistics) -> tuple[list[tuple[int, int]], dict[str, list[int]]]:
    """Return bins of one doubling (shortest and longest length in each) and the documents in them, by split."""
    lengths = {name: split.lengths[stats.unit] for name, split in stats.splits.items()}
    edges = log_edges(max(one.largest for one in lengths.values()), per_doubling=1)
    counts = {name: one.histogram(edges)[0] for name, one in lengths.items()}
    used = [place for place in range(len(edges) - 1) if any(own[place] for own in counts.values())]
    shown = range(used[0], used[-1] + 1)
    return [(edges[i], edges[i + 1] - 1) for i in shown], {
        name: [own[i] for i in shown] for name, own in counts.items()
    }


def _splits(stats: Statistics) -> Table:
    tokens = stats.unit == "tokens"
    size = next((split.blocks.tokens for split in stats.splits.values() if split.blocks), 0)
    head = ["split", "shards", "documents", "text MB"]
    head += ["tokens", "bytes/token", f"blocks of {size:,}", "left over", "documents of a block or more"] * tokens
    rows = []
    for name, split in stats.splits.items():
        row = [name, f"{split.shards:,}", f"{split.counts.documents:,}", f"{split.counts.text_bytes / 1e6:,.2f}"]
        if split.blocks:
            row += [f"{split.counts.tokens:,}", _ratio(split.counts.text_bytes, split.counts.tokens)]
            row += [f"{split.blocks.blocks:,}", f"{split.blocks.left_over:,}"]
            row += [_percent(split.blocks.whole_documents, split.counts.documents)]
        rows.append(tuple(row))
    return Table("splits", tuple(head), tuple(rows))


def _lengths(stats: Statistics, unit: str) -> Table:
    rows = []
    for name, split in stats.splits.items():
        one = split.lengths[unit]
        numbers = (one.mean, one.smallest, *(one.percentile(p) for p in PERCENTILES), one.largest)
        rows.append((name, *(f"{number:,.0f}" for number in numbers)))
    head = ("split", "mean", "shortest", *(f"{p} %" if p != 50 else "median" for p in PERCENTILES), "longest")
    return Table(f"length of documents in {'bytes of UTF-8' if unit == 'bytes' else unit}", head, tuple(rows))


def _domains(stats: Statistics, split: str) -> Table:
    record, tokens = stats.splits[split], stats.unit == "tokens"
    whole = record.lengths[stats.unit].total
    ordered = sorted(record.domains.items(), key=lambda item: (-item[1].lengths.total, item[0]))
    rows = []
    for name, domain in ordered[:_SHOWN_DOMAINS]:
        row = [name, f"{domain.counts.documents:,}", f"{domain.lengths.total:,}"]
        row += [_percent(domain.lengths.total, whole), f"{domain.lengths.percentile(50):,}"]
        row += [_ratio(domain.counts.text_bytes, domain.lengths.total)]
        rows.append(tuple(row))
    head = ("domain", "documents", stats.unit, "share", "median length", f"bytes/{'token' if tokens else 'character'}")
    left = len(ordered) - _SHOWN_DOMAINS
    notes = (f"{left:,} smaller domains are in stats.json (--out DIR).",) if left > 0 else ()
    return Table(f"domains of {split}", head, tuple(rows), notes)


def _repeats(stats: Statistics) -> Table:
    repeats, names = stats.repeats, list(stats.splits)
    rows = []
    for name in names:
        documents = repeats.documents[name]
        copies = documents - repeats.distinct[name]
        cells = [name, f"{documents:,}", f"{copies:,} ({_percent(copies, documents)})"]
        for other in names:
            shared = repeats.also_in.get((name, other), 0)
            cells += [f"{shared:,} ({_percent(shared, documents)})" if other != name else "·"] * (len(names) > 1)
        rows.append(tuple(cells))
    head = ("split", "documents", "copies within the split", *(f"also in {o}" for o in names if len(names) > 1))
    extra = sum((copies - 1) * texts for copies, texts in repeats.groups.items())
    found = (
        f"{sum(repeats.groups.values()):,} texts are there more than once; without their copies the corpus would have "
        f"{extra:,} documents less."
        if extra
        else "No document is there twice."
    )
    return Table("exact duplicates", head, tuple(rows), (found,))


def _largest(stats: Statistics) -> Table:
    rows = tuple((f"{one.copies:,}", one.split, f"{one.document:,}") for one in stats.repeats.largest)
    note = "Look at one with `calm data inspect CORPUS --split SPLIT --document NUMBER`."
    return Table("most repeated documents", ("copies", "split of the first", "number"), rows, (note,))


def _near(stats: Statistics) -> Table:
    assert stats.near is not None
    rows = tuple(
        (name, f"{found:,}", _percent(found, stats.splits[name].counts.documents))
        for name, found in stats.near.documents.items()
    )
    note = (
        f"Documents that `calm data prepare --duplicates near` would drop: similar to an earlier one (Jaccard over "
        f"5-word shingles about {stats.near.threshold:g} or more), not equal; read in the order of the rows."
    )
    return Table("near duplicates", ("split", "documents", "share"), rows, (note,))


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _ratio(part: float, whole: float) -> str:
    return f"{part / whole:.3f}" if whole else "-"


def write_report(directory: Path, stats: Statistics) -> list[Path]:
    """Write stats.json, the figures where matplotlib is installed, and stats.html; each whole or not at all.

    Args:
        directory: Where; made if it is not there.
        stats: What to write.

    Returns:
        The files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(stats.to_dict(), indent=1, ensure_ascii=False) + "\n"
    written = [_write_whole(directory / "stats.json", lambda path: path.write_text(text, encoding="utf-8"))]
    figures = _draw(directory, stats) if can_draw() else []
    page = "".join(_page(stats, figures))
    written.append(_write_whole(directory / "stats.html", lambda path: path.write_text(page, encoding="utf-8")))
    return written + figures


def can_draw() -> bool:
    """Return whether figures can be drawn: whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _draw(directory: Path, stats: Statistics) -> list[Path]:
    """Draw the figures there are, and remove those of an earlier call that have no place beside these numbers."""
    from data_pipelines.inspecting.figures import ALL, figures_of

    drawn = figures_of(stats)
    for name in ALL:
        if name not in drawn:
            (directory / f"{name}.png").unlink(missing_ok=True)
    return [_write_whole(directory / f"{name}.png", draw) for name, draw in drawn.items()]


def _write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    scratch = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(scratch)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return path


def _page(stats: Statistics, figures: Sequence[Path]) -> Iterator[str]:
    title = html.escape(f"What is in {stats.name}")
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title><style>{_SHEET}</style></head><body><main>"
    yield f'<h1>{title}</h1><p class="note">{html.escape(headline(stats))}</p>'
    for path in figures:
        data = base64.b64encode(path.read_bytes()).decode()
        yield f'<img alt="{path.stem}" src="data:image/png;base64,{data}">'
    for table in tables(stats):
        head = "".join(f"<th>{html.escape(name)}</th>" for name in table.head)
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
        yield f'<h2>{html.escape(table.title)}</h2><div class="wide"><table><tr>{head}</tr>{rows}</table></div>'
        yield from (f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    yield "</main></body></html>\n"

"""Raw file formats: how the bytes of a file are cut into records, and how a record becomes a text and its domain.

Cutting is sequential and cheap, so one process can feed many; parsing is what those many do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from calm_lightning.errors import DataError
from data_pipelines.reading.compression import as_file

JSONL, TEXT, WIKITEXT, TAR = "jsonl", "text", "wikitext", "tar"
MAX_RECORD_BYTES = 1 << 30
_ENDS = ("", ".zst", ".gz")
SUFFIXES = tuple(f".jsonl{end}" for end in _ENDS)
_SUFFIXES = {
    JSONL: SUFFIXES,
    TEXT: tuple(f".txt{end}" for end in _ENDS),
    TAR: (*(f".tar{end}" for end in _ENDS), ".tgz"),
}
_WIKITEXT = re.compile(r"(wiki\.(?:train|valid|test))\.(?:raw|tokens)")
_TITLE = re.compile(rb" ?= (?!= ).*(?<! =) = ?\r?")

Records = Iterator[tuple[int, bytes]]


class Named(NamedTuple):
    """What a file's name says.

    Attributes:
        format: "jsonl", "text", "wikitext" or "tar".
        stem: The name without the suffix of its format.
    """

    format: str
    stem: str


def format_of(name: str) -> Named | None:
    """Return what the name of a file, folders left out, says of its format; None where that is none we read."""
    if match := _WIKITEXT.fullmatch(name):
        return Named(WIKITEXT, match[1].removeprefix("wiki."))
    for format_, suffixes in _SUFFIXES.items():
        for suffix in suffixes:
            if name.endswith(suffix) and name != suffix:
                return Named(format_, name.removesuffix(suffix))
    return None


def known_names() -> str:
    """Return the file names that can be read, as patterns for people."""
    return ", ".join([*(f"*{s}" for suffixes in _SUFFIXES.values() for s in suffixes), "wiki.{train,valid,test}.raw"])


def cut(format_: str, chunks: Iterator[bytes], where: str) -> Records:
    """Yield (number from 1, bytes) of every record of a file, in order. Blank lines are counted and passed over.

    Args:
        format_: See `Named.format`.
        chunks: The file's content, decompressed; that of a tar as it is stored.
        where: The file's address, for messages.

    Raises:
        DataError: A record is longer than `MAX_RECORD_BYTES`.
    """
    return _CUTTERS[format_](chunks, where)


def parse(format_: str, record: bytes, where: str) -> tuple[str, str]:
    """Return the text of a record and its domain, "" where it names none.

    Args:
        format_: See `Named.format`.
        record: What `cut` made.
        where: The file's address and the record's place in it, for messages.

    Raises:
        DataError: It is not UTF-8, not JSON, or holds no text.
    """
    if format_ in (JSONL, TAR):
        return _parse_json(record, where)
    try:
        return record.decode("utf-8"), ""
    except UnicodeDecodeError:
        raise DataError(f"{where} is not UTF-8 text") from None


def place(format_: str, number: int) -> str:
    """Return how messages call a record: ", line 3" or, where a file is one record, nothing."""
    return {JSONL: f", line {number}", WIKITEXT: f", article {number}", TAR: f", sample {number}"}.get(format_, "")


def _parse_json(record: bytes, where: str) -> tuple[str, str]:
    try:
        value = json.loads(record.decode("utf-8"))
    except UnicodeDecodeError:
        raise DataError(f"{where} is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error})") from None
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise DataError(f'{where} has no "text" string')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where} holds half of a surrogate pair, which is not valid Unicode text") from None
    meta = value.get("meta")
    domain = meta.get("pile_set_name") if isinstance(meta, dict) else None
    return text, domain if isinstance(domain, str) else ""


def _lines(chunks: Iterator[bytes], where: str) -> Iterator[bytes]:
    """Yield the lines of a file without their ends; a long one is in memory twice while it is put together."""
    rest: list[bytes] = []
    size = 0
    for data in chunks:
        first, *more = data.split(b"\n")
        rest.append(first)
        size += len(first)
        if size > MAX_RECORD_BYTES:
            raise DataError(f"source {where} has a line of more than {MAX_RECORD_BYTES >> 20} MiB: cut it up")
        if more:
            line = b"".join(rest)
            rest.clear()
            yield line
            del line
            yield from more[:-1]
            rest, size = [more[-1]], len(more[-1])
    yield b"".join(rest)


def _jsonl(chunks: Iterator[bytes], where: str) -> Records:
    for number, line in enumerate(_lines(chunks, where), start=1):
        if line.strip():
            yield number, line


def _text(chunks: Iterator[bytes], where: str) -> Records:
    parts: list[bytes] = []
    size = 0
    for data in chunks:
        parts.append(data)
        size += len(data)
        if size > MAX_RECORD_BYTES:
            raise DataError(f"source {where} is a text of more than {MAX_RECORD_BYTES >> 20} MiB: cut it up")
    yield 1, b"".join(parts)


def _wikitext(chunks: Iterator[bytes], where: str) -> Records:
    return enumerate((article for article in _articles(_lines(chunks, where)) if article.strip()), start=1)


def _articles(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Yield articles, title line included.

    A line "= Title =" starts one only between blank lines: articles hold formulas that look like titles.
    """
    article: list[bytes] = []
    blank, title = True, False
    for line in lines:
        was_blank, blank = blank, not line.strip()
        if title and blank:
            yield b"\n".join(article[:-1])
            del article[:-1]
        title = was_blank and _TITLE.fullmatch(line) is not None
        article.append(line)
    yield b"\n".join(article)


def _tar(chunks: Iterator[bytes], where: str) -> Records:
    # Here, as tars are one format of several and their reader brings modules that the others do without.
    from calm_lightning.data.shards.text import read_text_shard

    for number, document in enumerate(read_text_shard(as_file(chunks), where, max_bytes=MAX_RECORD_BYTES), start=1):
        value = {"text": document.text, "meta": {"pile_set_name": document.domain}}
        yield number, json.dumps(value, ensure_ascii=False).encode("utf-8")


_CUTTERS: dict[str, Callable[[Iterator[bytes], str], Records]] = {
    JSONL: _jsonl,
    TEXT: _text,
    WIKITEXT: _wikitext,
    TAR: _tar,
}

"""Raw corpora as an iterator of documents: Pile-format JSON lines, plain or compressed with zstd or gzip.

A line is {"text": ..., "meta": {"pile_set_name": ...}}. Files are read as streams, so their size does not
matter; the first bad line stops the run with its file and number, since a corpus with silent holes is worse.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import BinaryIO

import zstandard

from calm_lightning.data.shards import SPLITS
from calm_lightning.errors import DataError

SUFFIXES = (".jsonl.zst", ".jsonl.gz", ".jsonl")
SAMPLE = "sample"
UNLABELLED = "unlabelled"
_CHUNK = 1 << 20
_MAX_WINDOW = 1 << 31


@dataclass(frozen=True)
class Document:
    """One text of a corpus.

    Attributes:
        text: The text.
        domain: Its `meta.pile_set_name`, or "unlabelled".
        source: Name of the file it came from.
    """

    text: str
    domain: str
    source: str


@dataclass(frozen=True)
class Source:
    """One raw file.

    Attributes:
        path: Where it lies.
        name: Its name relative to the source the user named.
        split: The split it is laid out as, or "".
    """

    path: Path
    name: str
    split: str


def sample_dir() -> Path:
    """Return the directory of the embedded sample: train, val and test.jsonl.zst, public-domain text."""
    return Path(str(resources.files("calm_lightning.data") / SAMPLE))


def find_sources(arguments: Sequence[str | Path]) -> list[Source]:
    """Return the raw files that arguments name, in a fixed order.

    Args:
        arguments: Each the word "sample", a directory (in the Pile's layout, `train.jsonl.*` or
            `train/*.jsonl.*` and likewise val and test, or simply of files), a file, or a glob pattern.

    Returns:
        The files. A split is kept only where train and a held-out split are both laid out; otherwise every
        `split` is "" and documents are to be split by the hash of their text.

    Raises:
        DataError: Nothing is there, or a file has an unknown suffix.
    """
    if not arguments:
        raise DataError(f"no source was given: name files, directories or the word {SAMPLE}")
    found = {source.path.resolve(): source for argument in arguments for source in _expand(str(argument))}
    sources = list(found.values())
    laid_out = {source.split for source in sources}
    if not {"train"} < laid_out - {""}:
        return [Source(source.path, source.name, "") for source in sources]
    if "" in laid_out:
        stray = next(source for source in sources if not source.split)
        raise DataError(
            f"{stray.path} belongs to no split while other sources are laid out by split: "
            f"move it into train/, val/ or test/, or prepare it by itself"
        )
    return sorted(sources, key=lambda source: SPLITS.index(source.split))


def _expand(argument: str) -> list[Source]:
    if argument == SAMPLE:
        return _directory(sample_dir())
    path = Path(argument)
    if path.is_dir():
        return _directory(path)
    if path.is_file():
        return [_file(path, path.name)]
    matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True)) if Path(match).is_file()]
    if matches:
        return [_file(match, match.name) for match in matches]
    raise DataError(f"source {argument} does not exist")


def _stem(name: str) -> str:
    """Return a file name without its corpus suffix, or "" where it has none."""
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), "")


def _file(path: Path, name: str) -> Source:
    stem = _stem(path.name)
    if not stem:
        raise DataError(f"source {path} is not one of {', '.join('*' + suffix for suffix in SUFFIXES)}")
    parent = name.split("/")[0] if "/" in name else ""
    return Source(path, name, next((split for split in SPLITS if split in (stem, parent)), ""))


def _directory(directory: Path) -> list[Source]:
    folders = [directory, *(directory / split for split in SPLITS)]
    paths = sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir() if _stem(path.name))
    if not paths:
        raise DataError(f"source {directory} holds no {', '.join('*' + suffix for suffix in SUFFIXES)} file")
    return [_file(path, path.relative_to(directory).as_posix()) for path in paths]


def read_documents(source: Source, on_bytes: Callable[[int], None] | None = None) -> Iterator[Document]:
    """Yield the documents of one raw file, in order. Blank lines are passed over.

    Args:
        source: The file.
        on_bytes: Called with the number of stored (compressed) bytes just read.

    Raises:
        DataError: The file cannot be read, is truncated, or has a line that is not UTF-8, not JSON, or has no text.
    """
    for number, line in enumerate(_lines(source.path, on_bytes), start=1):
        if line.strip():
            yield _document(line, source, number)


def _document(line: bytes, source: Source, number: int) -> Document:
    where = f"{source.path}, line {number}"
    try:
        value = json.loads(line.decode("utf-8"))
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
    return Document(text, domain if isinstance(domain, str) and domain else UNLABELLED, source.name)


def _lines(path: Path, on_bytes: Callable[[int], None] | None) -> Iterator[bytes]:
    """Yield the lines of a file, decompressed, without their ends."""
    rest: list[bytes] = []
    try:
        with path.open("rb") as file:
            for data in _decompressed(file, path, on_bytes):
                first, *more = data.split(b"\n")
                rest.append(first)
                if more:
                    yield b"".join(rest)
                    yield from more[:-1]
                    rest = [more[-1]]
    except OSError as error:
        raise DataError(f"source {path} cannot be read: {error.strerror or error}") from None
    yield b"".join(rest)


def _decompressed(file: BinaryIO, path: Path, on_bytes: Callable[[int], None] | None) -> Iterator[bytes]:
    """Yield the decompressed content of an open file piece by piece."""
    counted = _counted(file, on_bytes)
    if path.name.endswith(".zst"):
        yield from _zstd(counted, path)
    elif path.name.endswith(".gz"):
        yield from _gzip(counted, path)
    else:
        yield from counted


def _counted(file: BinaryIO, on_bytes: Callable[[int], None] | None) -> Iterator[bytes]:
    while data := file.read(_CHUNK):
        if on_bytes:
            on_bytes(len(data))
        yield data


def _zstd(chunks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    # Frame by frame: zstandard's stream reader takes the end of a truncated file for the end of the text.
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    frame = decompressor.decompressobj()
    open_frame = False
    try:
        for data in chunks:
            while data:
                yield frame.decompress(data)
                open_frame, data = not frame.eof, frame.unused_data if frame.eof else b""
                if not open_frame:
                    frame = decompressor.decompressobj()
    except zstandard.ZstdError as error:
        raise DataError(f"source {path} is damaged ({error}): get the file again") from None
    if open_frame:
        raise DataError(f"source {path} is truncated (its last zstd frame is incomplete): get the file again")


class _ChunkFile(io.RawIOBase):
    """Chunks as a readable binary file, which is what the gzip module wants."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed: any writable buffer
        self._rest = self._rest or next(self._chunks, b"")
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _gzip(chunks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(io.BufferedReader(_ChunkFile(chunks)), "rb") as file:
            while data := file.read(_CHUNK):
                yield data
    except EOFError:
        raise DataError(f"source {path} is truncated (its gzip stream has no end): get the file again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"source {path} is damaged ({error}): get the file again") from None

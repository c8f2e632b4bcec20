"""Raw corpora as documents: Pile-format JSON lines, WikiText, plain text and tars of documents, here or elsewhere.

A line of JSON is {"text": ..., "meta": {"pile_set_name": ...}}. Reading is in two steps, so that many processes can
share the work: `raw_records` cuts a file in order and knows no JSON, `parse_record` makes a document of a record.
Files are read as streams, so their size does not matter; what is damaged is named by file and line.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from calm_lightning.data.files.remote import is_remote, local_path, shown
from calm_lightning.data.shards.manifest import SPLITS
from calm_lightning.errors import DataError
from data_pipelines.reading.compression import CHUNK, decompressed
from data_pipelines.reading.formats import SUFFIXES as SUFFIXES
from data_pipelines.reading.formats import TAR, TEXT, WIKITEXT, Records, cut, format_of, known_names, parse, place
from data_pipelines.reading.remote import RemoteFile, braces, list_files, read_chunks

SAMPLE = "sample"
UNLABELLED = "unlabelled"
WIKITEXT_DOMAIN = "WikiText-103"
_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SPLIT_STEM = re.compile(rf"({'|'.join(_SPLIT_NAMES)})(-\d.*)?")


@dataclass(frozen=True)
class Document:
    """One text of a corpus.

    Attributes:
        text: The text.
        domain: Its label, or "unlabelled".
        source: Name of the file it came from.
    """

    text: str
    domain: str
    source: str


@dataclass(frozen=True)
class Source:
    """One raw file.

    Attributes:
        url: Where it lies: a local path or an address.
        name: Its name relative to the source the user named.
        split: The split it is laid out as, or "".
        format: "jsonl", "text", "wikitext" or "tar".
        bytes: Its size as stored (compressed); 0 where a server does not tell.
        domain: Label of its documents that carry none themselves, or "".
    """

    url: str
    name: str
    split: str
    format: str
    bytes: int
    domain: str = ""

    @property
    def where(self) -> str:
        """Its place as messages may show it: without passwords and signatures."""
        return shown(self.url)


class Digest(Protocol):
    """A running checksum, such as `hashlib.sha256()`."""

    def update(self, data: bytes, /) -> Any:
        """Add bytes."""


def sample_dir() -> Path:
    """Return the directory of the embedded sample: train, val and test.jsonl.zst, public-domain text."""
    return Path(str(resources.files("calm_lightning.data") / SAMPLE))


def find_sources(arguments: Sequence[str | Path]) -> list[Source]:
    """Return the raw files that arguments name, in a fixed order.

    Args:
        arguments: Each the word "sample"; a file; a glob pattern; a directory in the Pile's layout
            (`train.jsonl.*` or `train/*.jsonl.*` and likewise val and test), of WikiText-103, or simply of files
            (`.txt` files and their folders only where there is nothing else); a data set of the Hugging Face hub,
            `hf://OWNER/NAME[@REVISION][/PATH]`; or any other address that fsspec can open.

    Returns:
        The files. A split is kept only where train and a held-out split are both laid out; otherwise every
        `split` is "" and documents are to be split by the hash of their text.

    Raises:
        DataError: Nothing is there, a server cannot be reached, or a file has an unknown suffix.
    """
    if not arguments:
        raise DataError(f"no source was given: name files, directories or the word {SAMPLE}")
    named = (one for argument in arguments for one in _without_braces(str(argument)))
    found = {_identity(source): source for one in named for source in _expand(one)}
    sources = list(found.values())
    laid_out = {source.split for source in sources}
    held_out = laid_out - {"train", ""}
    if not held_out or laid_out <= held_out:
        return [replace(source, split="") for source in sources]
    if "" in laid_out:
        stray = next(source for source in sources if not source.split)
        raise DataError(
            f"{stray.where} belongs to no split while other sources are laid out by split: "
            f"move it into train/, val/ or test/, or prepare it by itself"
        )
    return sorted(sources, key=lambda source: SPLITS.index(source.split))


def raw_records(source: Source, on_bytes: Callable[[int], None] | None = None, digest: Digest | None = None) -> Records:
    """Yield (number from 1, bytes) of every record of a raw file, in order, without parsing it.

    A record is a line (blank ones are counted and passed over), an article, a whole text file or a sample of a tar.

    Args:
        source: The file.
        on_bytes: Called with the number of stored (compressed) bytes just read.
        digest: Fed the stored bytes; it is the file's checksum once all records were taken.

    Raises:
        DataError: The file cannot be read, is truncated or damaged.
    """
    stored = _watched(_stored_chunks(source), on_bytes, digest)
    # The reader of tars decompresses by itself: it also checks how much.
    content = stored if source.format == TAR else decompressed(stored, source.name, source.where)
    yield from cut(source.format, content, source.where)
    for _ in stored:  # a format may end before its file does
        pass


def parse_record(source: Source, number: int, record: bytes) -> Document:
    """Return the document that a record holds.

    Args:
        source: The file it comes from.
        number: Its number there.
        record: Its bytes.

    Raises:
        DataError: It is not UTF-8, not JSON, or has no text.
    """
    text, domain = parse(source.format, record, f"{source.where}{place(source.format, number)}")
    return Document(text, domain or source.domain or UNLABELLED, source.name)


def read_documents(source: Source, on_bytes: Callable[[int], None] | None = None) -> Iterator[Document]:
    """Yield the documents of one raw file, in order.

    Args:
        source: The file.
        on_bytes: Called with the number of stored (compressed) bytes just read.

    Raises:
        DataError: The file or a record of it is damaged.
    """
    for number, record in raw_records(source, on_bytes):
        yield parse_record(source, number, record)


def _identity(source: Source) -> str:
    return source.url if is_remote(source.url) else str(Path(source.url).resolve())


def _without_braces(argument: str) -> list[str]:
    return [argument] if Path(argument).exists() else braces(argument)


def _in_split_folder(file: RemoteFile) -> RemoteFile:
    """Return a file under its folder's name where that is a split's, however the file itself was named."""
    folder = file.url.split("?")[0].rstrip("/").rpartition("/")[0].rpartition("/")[2]
    inside = "/" not in file.name and folder in _SPLIT_NAMES
    return file._replace(name=f"{folder}/{file.name}") if inside else file


def _expand(argument: str) -> list[Source]:
    if argument == SAMPLE:
        return _directory(sample_dir())
    argument = local_path(argument)
    if is_remote(argument):
        files = [_in_split_folder(file) for file in list_files(argument)]
        alone = len(files) == 1 and files[0].url.rstrip("/").endswith(argument.rstrip("/").rpartition("/")[2])
        return [_single(file) for file in files] if alone else _chosen(argument, files)
    path = Path(argument)
    if path.is_dir():
        return _directory(path)
    if path.is_file():
        return [_single(_in_split_folder(_local(path.absolute(), path.name)))]
    matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True)) if Path(match).is_file()]
    if matches:
        return [_single(_in_split_folder(_local(match.absolute(), match.name))) for match in matches]
    raise DataError(f"source {argument} does not exist")


def _local(path: Path, name: str) -> RemoteFile:
    return RemoteFile(name, str(path), path.stat().st_size)


def _directory(directory: Path) -> list[Source]:
    near = [*directory.glob("*"), *directory.glob("*/*")]
    if not any(path.is_file() and _is_laid_out(path.relative_to(directory).as_posix()) for path in near):
        near = list(directory.rglob("*"))
    directory = directory.absolute()
    paths = (path.absolute() for path in near if path.is_file())
    files = [_in_split_folder(_local(path, path.relative_to(directory).as_posix())) for path in paths]
    return _chosen(str(directory), files)


def _is_laid_out(name: str) -> bool:
    """Return whether a file of a directory is one of the formats that hold many documents, where those belong."""
    folder, _, base = name.rpartition("/")
    named = format_of(base)
    return named is not None and named.format != TEXT and folder in ("", *_SPLIT_NAMES)


def _chosen(where: str, files: Sequence[RemoteFile]) -> list[Source]:
    """Return the raw files of a directory: those of formats with many documents, or else all plain texts."""
    chosen = [file for file in files if _is_laid_out(file.name)]
    if not chosen:
        chosen = [file for file in files if (named := format_of(file.name.rpartition("/")[2])) and named.format == TEXT]
    if not chosen:
        raise DataError(f"source {where} holds no {known_names()} file")
    return [_single(file) for file in sorted(chosen, key=lambda file: file.name.split("/"))]


def _single(file: RemoteFile) -> Source:
    folder, _, base = file.name.rpartition("/")
    named = format_of(base)
    if named is None:
        raise DataError(f"source {shown(file.url)} is not one of {known_names()}")
    match = _SPLIT_STEM.fullmatch(named.stem)
    split = _SPLIT_NAMES[match[1]] if match else _SPLIT_NAMES.get(folder.split("/")[0], "")
    domain = {TEXT: _folder_domain(file), WIKITEXT: WIKITEXT_DOMAIN}.get(named.format, "")
    return Source(file.url, file.name, split, named.format, file.bytes, domain)


def _folder_domain(file: RemoteFile) -> str:
    """Return the name of the innermost folder of a file that is not a split's."""
    path = file.url if is_remote(file.url) else Path(file.url).absolute().as_posix()
    folders = path.partition("://")[2].split("/")[:-1] if is_remote(path) else path.split("/")[:-1]
    return next((folder for folder in reversed(folders) if folder and folder not in _SPLIT_NAMES), "")


def _stored_chunks(source: Source) -> Iterator[bytes]:
    if is_remote(source.url):
        yield from read_chunks(source.url, source.bytes)
        return
    try:
        with open(source.url, "rb") as file:
            while data := file.read(CHUNK):
                yield data
    except OSError as error:
        raise DataError(f"source {source.url} cannot be read: {error.strerror or error}") from None


def _watched(chunks: Iterator[bytes], on_bytes: Callable[[int], None] | None, digest: Digest | None) -> Iterator[bytes]:
    for data in chunks:
        if digest is not None:
            digest.update(data)
        if on_bytes is not None:
            on_bytes(len(data))
        yield data

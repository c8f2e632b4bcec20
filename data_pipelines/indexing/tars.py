"""Tars of text that others made: found by path or address, put into splits, and read.

A corpus names its shards by file name alone, so tars of one directory stay where they are, and local tars of several
directories are linked into one. The price: remote tars of several directories cannot be one corpus.
"""

from __future__ import annotations

import glob
import hashlib
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import unquote, urlsplit, urlunsplit

from calm_lightning.data.files.remote import PIPE, TransferError, is_remote, local_path, read_chunks, shown
from calm_lightning.data.shards.manifest import SPLITS, Counts
from calm_lightning.data.shards.text import TEXT_SUFFIXES, read_text_shard
from calm_lightning.errors import DataError, ShardError

_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_CHUNK = 1 << 20
_LONGEST_PAUSE = 30.0  # seconds


@dataclass(frozen=True)
class Tar:
    """One tar.

    Attributes:
        address: Its absolute path or its address.
        place: The directory it lies in, or that directory's address.
        name: Its file name.
        split: Its split, or "" before it has one.
    """

    address: str
    place: str
    name: str
    split: str = ""

    def state(self) -> tuple[int, int] | None:
        """Return size in bytes and time of change in ns of a local tar, None of a remote one."""
        if is_remote(self.address):
            return None
        status = os.stat(self.address)
        return status.st_size, status.st_mtime_ns


class TarContent(NamedTuple):
    """What is in a tar.

    Attributes:
        bytes: Size of the tar as stored.
        sha256: Its checksum.
        domains: Documents and bytes of text by domain.
        ignored: Members that are no documents, by extension or kind.
    """

    bytes: int
    sha256: str
    domains: Mapping[str, Counts]
    ignored: Mapping[str, int]


@dataclass(frozen=True)
class Link:
    """A symbolic link to be made: `place` shall lead to `target`."""

    place: Path
    target: str

    def make(self) -> None:
        """Make the link, in place of another link if need be.

        Raises:
            DataError: A file of its own is there.
        """
        if self.place.is_symlink() and os.readlink(self.place) == self.target:
            return
        if self.place.exists() and not self.place.is_symlink():
            raise DataError(
                f"{self.place} is in the way of a link to {self.target}: move it away, or use another --out"
            )
        temporary = self.place.with_name(f".{self.place.name}.partial")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(self.target)
        os.replace(temporary, self.place)


def find_tars(arguments: Sequence[str]) -> list[Tar]:
    """Return the tars that arguments name, in a fixed order, each once.

    Args:
        arguments: Files, globs, directories (with folders train, val and test, or simply of tars) or addresses, with
            braces to be expanded (`{000..009}`, `{a,b}`).

    Raises:
        DataError: Nothing is there, or it has none of the suffixes of a tar.
    """
    if not arguments:
        raise DataError("no tar was given: name files, directories or addresses")
    found: dict[str, Tar] = {}
    for argument in arguments:
        for tar in _expanded(argument):
            found.setdefault(tar.address, tar)
    return list(found.values())


def _expanded(argument: str) -> Iterator[Tar]:
    from braceexpand import braceexpand

    if argument.startswith(PIPE):
        raise DataError(f"{argument!r} is a command: name tars by path or address, and set data.shards_at to train")
    if not is_remote(argument) and Path(local_path(argument)).exists():
        yield from _local(local_path(argument))
        return
    try:
        names = list(braceexpand(argument))
    except ValueError:
        raise DataError(f"source {argument} has braces that do not close") from None
    for name in names:
        if is_remote(name):
            yield _remote(name)
        else:
            yield from _local(local_path(name))


def _local(argument: str) -> Iterator[Tar]:
    path = Path(argument)
    if path.is_dir():
        folders = [folder for folder in (path, *(path / word for word in _WORDS)) if folder.is_dir()]
        files = [file for folder in folders for file in sorted(folder.iterdir()) if _is_tar(file.name)]
        if not files:
            raise DataError(f"source {argument} holds no {', '.join('*' + suffix for suffix in TEXT_SUFFIXES)} file")
    else:
        files = [path] if path.is_file() else [Path(match) for match in sorted(glob.glob(argument, recursive=True))]
        if not files:
            raise DataError(f"source {argument} does not exist")
        _check_suffix(next((file.name for file in files if not _is_tar(file.name)), ""), argument)
    for file in files:
        # Not resolved further than its directory: a link keeps the name it has here.
        place = file.parent.resolve()
        yield Tar(str(place / file.name), str(place), file.name)


def _remote(address: str) -> Tar:
    parts = urlsplit(address)
    if parts.scheme in ("http", "https"):
        folder, _, name = parts.path.rpartition("/")
        place, name = urlunsplit(parts._replace(path=folder)), unquote(name)
    else:
        place, _, name = address.rpartition("/")
    _check_suffix("" if _is_tar(name) else name or address, shown(address))
    return Tar(address, place, name)


def _is_tar(name: str) -> bool:
    return name.endswith(TEXT_SUFFIXES) and not name.startswith(".")


def _check_suffix(stranger: str, argument: str) -> None:
    if stranger:
        kinds = ", ".join("*" + suffix for suffix in TEXT_SUFFIXES)
        raise DataError(f"source {argument}: {stranger} is not one of {kinds}")


def assign_splits(tars: Sequence[Tar], val_shards: int | None, test_shards: int | None) -> list[Tar]:
    """Return tars with their splits: by folder or name where they are laid out so, else by position.

    Args:
        tars: The tars. They are laid out by split if train and a held-out split are found among their folders
            (train/, val/, valid/, validation/, test/) or the first words of their names (train-000.tar).
        val_shards: Tars of "val", in front of those of "test", by position; None means 1, or 0 of a single tar.
        test_shards: Tars of "test", the last ones, by position; None means 0.

    Raises:
        DataError: Some tars are laid out by split and others are not, or numbers do not fit.
    """
    laid_out = [_laid_out_as(tar) for tar in tars]
    if {"train"} < {*laid_out} - {""}:
        if "" in laid_out:
            stray = tars[laid_out.index("")]
            raise DataError(
                f"tar {stray.address} belongs to no split while others do (train, val, test): name it like them, or "
                f"index it by itself"
            )
        if val_shards is not None or test_shards is not None:
            raise DataError("--val-shards and --test-shards are for tars that are not laid out by split; these are")
        splits = laid_out
    else:
        held_out = int(len(tars) > 1) if val_shards is None else val_shards
        train = len(tars) - held_out - (test_shards or 0)
        if train < 1 or held_out < 0 or (test_shards or 0) < 0:
            raise DataError(
                f"--val-shards {held_out} and --test-shards {test_shards or 0} of {len(tars)} tars must not "
                f"be negative and must leave one to train on"
            )
        splits = ["train"] * train + ["val"] * held_out + ["test"] * (test_shards or 0)
    pairs = [replace(tar, split=split) for tar, split in zip(tars, splits, strict=True)]
    return sorted(pairs, key=lambda tar: SPLITS.index(tar.split))


def _laid_out_as(tar: Tar) -> str:
    """Return the split that a tar's folder or the first word of its name names, or ""."""
    folder = unquote(urlsplit(tar.place).path).rpartition("/")[2]
    return _WORDS.get(folder) or _WORDS.get(_first_word(tar), "")


def _with_split(tar: Tar) -> str:
    """Return a tar's name with its split in front, unless it says so already."""
    return tar.name if _first_word(tar) in _WORDS else f"{tar.split}-{tar.name}"


def _first_word(tar: Tar) -> str:
    return re.split(r"[-_.]", tar.name, maxsplit=1)[0]


def place_tars(tars: Sequence[Tar], out: Path) -> tuple[str, list[Link], list[str]]:
    """Return where the shards of a corpus of tars are to be read, and under which names.

    Args:
        tars: The tars.
        out: The corpus directory, an absolute path.

    Returns:
        The value of data.shards_at ("" for beside the manifest), links to make for that, and every tar's name.

    Raises:
        DataError: Remote tars lie in several places, or two tars would have one name.
    """
    places = list(dict.fromkeys(tar.place for tar in tars))
    names = [tar.name for tar in tars]
    links: list[Link] = []
    shards_at = places[0] if places != [str(out)] else ""
    if len(places) > 1:
        far = next((place for place in places if is_remote(place)), None)
        if far is not None:
            near = next(place for place in places if place != far)
            raise DataError(f"tars lie in {shown(far)} and in {shown(near)}: a corpus reads its shards from one place")
        if len({*names}) < len(names):
            names = [_with_split(tar) for tar in tars]
        shards_at = ""
        pairs = zip((out / name for name in names), (tar.address for tar in tars), strict=True)
        links = [Link(place, address) for place, address in pairs if str(place) != address]
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise DataError(f"two tars would both be {twice} in the corpus: rename one of them")
    return shards_at, links, names


class _Passing:
    """Chunks as a file to read once; their checksum and size are taken as they pass."""

    def __init__(self, chunks: Iterator[bytes], on_bytes: Callable[[int], None]) -> None:
        self._chunks, self._on_bytes = chunks, on_bytes
        self.digest, self.size = hashlib.sha256(), 0

    def read(self, _: int = -1) -> bytes:
        """Return the next chunk, whatever its size; nothing at the end."""
        chunk = next(self._chunks, b"")
        self.digest.update(chunk)
        self.size += len(chunk)
        self._on_bytes(len(chunk))
        return chunk


def read_tar(
    tar: Tar, on_bytes: Callable[[int], None], *, retries: int = 5, timeout: float = 60.0, pause: float = 0.5
) -> TarContent:
    """Read a tar from begin to end and return what is in it.

    Args:
        tar: The tar.
        on_bytes: Called with the number of bytes just read; a negative number takes back those of a failed attempt.
        retries: Further attempts at a remote tar.
        timeout: Seconds without a byte after which an attempt has failed.
        pause: Seconds before the second attempt; doubled for each further one, up to 30.

    Raises:
        ShardError: It cannot be had, is damaged, or holds no document.
    """
    if not is_remote(tar.address):
        try:
            with Path(tar.address).open("rb") as file:
                return _content(tar, _Passing(iter(lambda: file.read(_CHUNK), b""), on_bytes))
        except OSError as error:
            raise ShardError(f"tar {tar.address} cannot be read: {error.strerror or error}") from None
    for attempt in range(retries + 1):
        passing = _Passing(iter(read_chunks(tar.address, timeout)), on_bytes)
        try:
            return _content(tar, passing)
        except TransferError as error:
            if attempt == retries or error.lasting:
                raise ShardError(
                    f"tar {shown(tar.address)} cannot be had: {error} (after {attempt + 1} attempts); check it "
                    f"and run the same command again to continue"
                ) from None
            on_bytes(-passing.size)
            time.sleep(min(_LONGEST_PAUSE, pause * 2.0**attempt) * random.uniform(0.5, 1.0))
    raise AssertionError("the last attempt returns or raises")


def _content(tar: Tar, passing: _Passing) -> TarContent:
    domains: dict[str, Counts] = {}
    ignored: Counter[str] = Counter()
    for document in read_text_shard(cast(Any, passing), tar.name, ignored=ignored):
        one = Counts(1, 0, len(document.text.encode()))
        domains[document.domain] = domains.get(document.domain, Counts()) + one
    if not domains:
        raise ShardError(f"tar {shown(tar.address)} holds no document: leave it out, or put it right")
    return TarContent(passing.size, passing.digest.hexdigest(), domains, ignored)

"""Token shards, the format training reads: a tar in WebDataset layout that is one sample of plain arrays.

A shard holds its documents' tokens end to end, so a block is a slice of a memory map and nothing is decoded or copied
until a batch is made. Members, in this order: `NAME.tokens.npy` (ids, little-endian `uint16` or `uint32`, each
document with its separator in front), `NAME.lengths.npy`, `NAME.domains.npy` and `NAME.text_bytes.npy` (`int64`, one
entry per document) and `NAME.json` ({"domains": names that the second array numbers}). The price of one sample per
shard: documents cannot be streamed one by one by other programs, they get arrays.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

TOKENS_FIELD = "tokens.npy"
LENGTHS_FIELD = "lengths.npy"
DOMAINS_FIELD = "domains.npy"
TEXT_BYTES_FIELD = "text_bytes.npy"
NAMES_FIELD = "json"

TokenArray = NDArray[np.unsignedinteger[Any]]
Numbers = NDArray[np.int64]


class TokenShard(NamedTuple):
    """An open shard.

    Attributes:
        tokens: All its tokens, document after document, read-only and mapped from the file, (tokens,).
        ends: Index behind the last token of every document, (documents,).
        domains: Number of every document's domain, (documents,).
        text_bytes: UTF-8 bytes of every document's text, (documents,).
        names: Names of the domains.
    """

    tokens: TokenArray
    ends: Numbers
    domains: Numbers
    text_bytes: Numbers
    names: tuple[str, ...]


def token_dtype(vocabulary: int) -> str:
    """Return the narrowest dtype that holds every id below `vocabulary`."""
    return "uint16" if vocabulary <= 1 << 16 else "uint32"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as lower-case hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a file to a tar; owner, mode and time are fixed, so equal content gives equal bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(content), 0o644, 0
    archive.addfile(member, io.BytesIO(content))


def write_token_shard(
    file: BinaryIO,
    name: str,
    *,
    tokens: TokenArray,
    lengths: Iterable[int] | Numbers,
    domains: Iterable[int] | Numbers,
    text_bytes: Iterable[int] | Numbers,
    names: Sequence[str],
) -> None:
    """Write a shard; its bytes depend on nothing but the arguments.

    Args:
        file: Where to.
        name: Key of the shard's one sample.
        tokens: All tokens, document after document, separators included, (tokens,).
        lengths: Tokens of every document, separator included.
        domains: Number of every document's domain, its place in `names`.
        text_bytes: UTF-8 bytes of every document's text.
        names: Names of the domains.
    """
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        add_member(archive, f"{name}.{TOKENS_FIELD}", _npy(tokens))
        for field, values in ((LENGTHS_FIELD, lengths), (DOMAINS_FIELD, domains), (TEXT_BYTES_FIELD, text_bytes)):
            column = values if isinstance(values, np.ndarray) else np.fromiter(values, dtype=np.int64)
            add_member(archive, f"{name}.{field}", _npy(column.astype(np.int64, copy=False)))
        add_member(archive, f"{name}.{NAMES_FIELD}", json.dumps({"domains": list(names)}, ensure_ascii=False).encode())


def _npy(array: NDArray[np.integer[Any]]) -> bytes:
    """Return an array as the bytes of a .npy file, little-endian on every machine."""
    buffer = io.BytesIO()
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    np.lib.format.write_array(buffer, little, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def open_token_shard(path: Path, dtype: str) -> TokenShard:
    """Map a shard into memory; only its headers and per-document columns are read.

    Args:
        path: The shard.
        dtype: Type of its ids.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a token shard of `dtype`, or it contradicts itself.
    """
    with path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                members = {member.name.partition(".")[2]: member for member in archive}
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"it is not a tar file: {error}") from None
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    missing = {TOKENS_FIELD, LENGTHS_FIELD, DOMAINS_FIELD, TEXT_BYTES_FIELD, NAMES_FIELD} - members.keys()
    if missing:
        raise ValueError(f"it has no {sorted(missing)[0]}")
    tokens: TokenArray = _map(mapped, members[TOKENS_FIELD], dtype)
    columns = (_map(mapped, members[f], "int64") for f in (LENGTHS_FIELD, DOMAINS_FIELD, TEXT_BYTES_FIELD))
    lengths, domains, text_bytes = (np.array(column, dtype=np.int64) for column in columns)
    names_at = members[NAMES_FIELD].offset_data
    value = json.loads(mapped[names_at : names_at + members[NAMES_FIELD].size])
    names = tuple(str(name) for name in value["domains"]) if isinstance(value, dict) and "domains" in value else ()
    ends = np.cumsum(lengths)
    if not len(lengths) == len(domains) == len(text_bytes):
        raise ValueError("its columns are of different lengths")
    if len(lengths) and (lengths.min() < 1 or domains.min() < 0 or domains.max() >= len(names)):
        raise ValueError("a document's length or domain is impossible")
    if (int(ends[-1]) if len(ends) else 0) != len(tokens):
        raise ValueError("its documents do not add up to its tokens")
    return TokenShard(tokens, ends, domains, text_bytes, names)


def _map(mapped: mmap.mmap, member: tarfile.TarInfo, dtype: str) -> NDArray[Any]:
    """Return a .npy member as a view of the mapped file, (entries,)."""
    begin, end = member.offset_data, member.offset_data + member.size
    if end > len(mapped):
        raise ValueError(f"it ends within {member.name}")
    header = io.BytesIO(mapped[begin : min(end, begin + 4096)])
    if np.lib.format.read_magic(header) != (1, 0):
        raise ValueError(f"{member.name} is no .npy array of version 1.0")
    shape, _, stored = np.lib.format.read_array_header_1_0(header)
    if len(shape) != 1 or stored != np.dtype(dtype).newbyteorder("<"):
        raise ValueError(f"{member.name} is an array of {stored} and shape {shape} where a row of {dtype} belongs")
    if header.tell() + shape[0] * stored.itemsize != member.size:
        raise ValueError(f"{member.name} is not as long as it says")
    return np.frombuffer(mapped, dtype=stored, count=shape[0], offset=begin + header.tell())

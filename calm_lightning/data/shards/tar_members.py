"""The members of a tar that nobody vouches for: a walk that touches no disk and leaves nothing out in silence.

Plain tars, gzip and zstd are told apart by their first bytes. Links and devices are never followed, no member is kept,
and claims (sizes, long names, ratios of compression) are checked before they cost memory. A shard that was cut short is
noticed wherever the cut is. The price: one bad member stops its whole shard.

The walk is our own, on `tarfile`'s header parser. `tarfile`'s walk takes a file cut between two members for a whole
one, reads extended headers of any claimed size and keeps every member it has seen; webdataset's reader stands on it,
passes over members without a key in silence, and loads torch.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO, NamedTuple

import zstandard

from calm_lightning.errors import ShardError

_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)
"""webdataset's `base_plus_ext`: everything up to the first dot of the file name is the key."""
_META = re.compile(r"__[^/]*__($|/)")
"""webdataset's `skip_meta`: members that describe the shard."""
_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_MAX_NAME = 4096
_MAX_HEADER = 1 << 20
_MAX_RATIO = 500
_FREE_BYTES = 64 << 20
"""A compressed shard may grow to this size at any ratio, beyond it by `_MAX_RATIO`; text shrinks 3 to 20 times."""
_EMPTY = bytes(_BLOCK)
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_GZIP_STEP = 1 << 16
_ZSTD_STEP = 1 << 12
"""Stored bytes decompressed at once: at the formats' largest ratios (1,032 and 32,768) they become 64 and 128 MiB."""
_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_GLOBAL = tarfile.XGLTYPE
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_NO_CONTENT = {
    tarfile.LNKTYPE: "link",
    tarfile.SYMTYPE: "link",
    tarfile.DIRTYPE: "directory",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "device",
}


class Member(NamedTuple):
    """A regular file that is part of a sample.

    Attributes:
        name: Its name in the tar.
        key: Key of its sample.
        extension: What follows the key, in lower case, without the dot.
        content: Its bytes; empty where its extension was not asked for.
    """

    name: str
    key: str
    extension: str
    content: bytes


def read_members(
    file: BinaryIO, name: str, extensions: Collection[str], max_bytes: int, ignored: Counter[str]
) -> Iterator[Member]:
    """Yield the members of samples, in order, reading the file from where it stands to its very end.

    Args:
        file: The tar, plain or compressed; it need not be seekable.
        name: What to call it in messages.
        extensions: What to read; the content of others is passed over.
        max_bytes: Largest member read, in bytes.
        ignored: Told what was passed over: a number by extension, or by "link", "directory", "device", "without key",
            "meta".

    Raises:
        ShardError: It is no whole tar, or holds something that could hide a document.
    """
    stream = _Stream(file, name)
    for header, member, size in _headers(stream, name):
        if header.type in _NO_CONTENT:
            ignored[_NO_CONTENT[header.type]] += 1
            continue
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise damaged(name, member, "it is stored as a sparse file, which is not read")
        _check_name(member, name)
        key, extension = _key_of(member)
        wanted = header.type in _PLAIN and bool(key) and extension in extensions
        if wanted and size > max_bytes:
            raise damaged(name, member, f"it claims {size:,} bytes, a document may have {max_bytes:,}")
        content = stream.read(size) if wanted else b""
        if (wanted and len(content) < size) or not stream.skip(_padded(size) - len(content)):
            raise damaged(name, member, "the shard is truncated within it")
        if not wanted:
            kind = extension if key else "meta" if _META.match(member) else "without key"
            ignored[kind if header.type in _PLAIN else f"type {header.type!r}"] += 1
        if header.type in _PLAIN and key:
            yield Member(member, key, extension, content)


def damaged(name: str, member: str | None, what: str) -> ShardError:
    """Return the error for a shard, or for a member of it; names are shown so that no terminal obeys them."""
    shown = "" if member is None else f", member {member[:120]!a}"
    return ShardError(f"shard {name}{shown}: {what}; get the shard again or mend it where it was made")


class _Stream:
    """The decompressed bytes of a shard, to be read forward."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        chunks = iter(lambda: file.read(_CHUNK), b"")
        first = next(chunks, b"")
        while 0 < len(first) < len(_ZSTD) and (more := next(chunks, b"")):
            first += more
        self._at, self._buffer, self._chunks = 0, b"", _with_first(first, chunks)
        if first.startswith(_GZIP):
            self._chunks = _decompressed(self._chunks, lambda: zlib.decompressobj(31), _GZIP_STEP, name)
        elif first.startswith(_ZSTD):
            make = zstandard.ZstdDecompressor().decompressobj
            self._chunks = _decompressed(self._chunks, make, _ZSTD_STEP, name)

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer only at the end."""
        data = self._buffer[self._at : self._at + size]
        self._at += len(data)
        if len(data) == size:
            return data
        return b"".join((data, *self._pieces(size - len(data))))

    def skip(self, size: int) -> bool:
        """Pass over `size` bytes; False if the end comes first."""
        size -= (ready := min(size, len(self._buffer) - self._at))
        self._at += ready
        return size == sum(len(piece) for piece in self._pieces(size))

    def _pieces(self, size: int) -> Iterator[bytes]:
        """Yield the next `size` bytes chunk by chunk, given that the buffer is used up."""
        while size > 0 and (chunk := next(self._chunks, b"")):
            self._buffer, self._at = chunk, min(size, len(chunk))
            size -= self._at
            yield chunk[: self._at]


def _with_first(first: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from chunks


def _decompressed(chunks: Iterator[bytes], make: Callable[[], Any], step: int, name: str) -> Iterator[bytes]:
    """Yield the content of gzip members or zstd frames, one after the other, in pieces of bounded size.

    Args:
        chunks: The stored bytes.
        make: Makes a decompressor of one member or frame.
        step: Stored bytes to decompress at once.
        name: The shard, for messages.
    """
    stored, grown, part, begun = 0, 0, make(), False
    try:
        for chunk in chunks:
            for start in range(0, len(chunk), step):
                rest = chunk[start : start + step]
                stored += len(rest)
                while rest:
                    content = part.decompress(rest)
                    grown, begun, rest = grown + len(content), True, b""
                    if part.eof:
                        part, begun, rest = make(), False, part.unused_data
                    if grown > _FREE_BYTES and grown > _MAX_RATIO * stored:
                        raise damaged(name, None, f"it unpacks to more than {_MAX_RATIO} times its size")
                    if content:
                        yield content
    except (zlib.error, zstandard.ZstdError) as error:
        raise damaged(name, None, f"it cannot be decompressed ({error})") from None
    if begun:
        raise damaged(name, None, "it is truncated (its compressed stream has no end)")


def _headers(stream: _Stream, name: str) -> Iterator[tuple[tarfile.TarInfo, str, int]]:
    """Yield header, name and size of every member; the caller reads or skips its content, padding included."""
    long_name: str | None = None
    size_of_next: int | None = None
    while (header := _header(stream, name)) is not None:
        if header.type in (_LONG_NAME, _LONG_LINK, _GLOBAL, *_EXTENDED):
            content = _extension(stream, header, name)
            if header.type == _LONG_NAME:
                long_name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif header.type != _LONG_LINK:
                long_name, size_of_next = _attributes(content, header, name, long_name, size_of_next)
            continue
        member = header.name if long_name is None else long_name
        size = header.size if size_of_next is None else size_of_next
        long_name, size_of_next = None, None
        yield header, member, size
    if long_name is not None or size_of_next is not None:
        raise damaged(name, long_name, "it is truncated (a long name with no member behind it)")


def _header(stream: _Stream, name: str) -> tarfile.TarInfo | None:
    """Return the next header, or None behind the last one, having read the shard to its end."""
    block = stream.read(_BLOCK)
    if block == _EMPTY:
        if stream.read(_BLOCK) != _EMPTY:
            raise damaged(name, None, "it is truncated (a tar ends with two empty blocks)")
        while rest := stream.read(_CHUNK):
            if rest.strip(b"\0"):
                raise damaged(name, None, "more follows behind the end of the tar, as when tars are joined by `cat`")
        return None
    if len(block) < _BLOCK:
        raise damaged(name, None, "it is truncated (a tar ends with two empty blocks)")
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise damaged(name, None, f"it is not a tar or is damaged ({error})") from None
    if header.size < 0:
        raise damaged(name, header.name, f"it claims a size of {header.size} bytes")
    return header


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _extension(stream: _Stream, header: tarfile.TarInfo, name: str) -> bytes:
    """Return the content of a header that extends the next one."""
    if header.size > _MAX_HEADER:
        raise damaged(name, header.name, f"it is an extended header of {header.size:,} bytes")
    content = stream.read(_padded(header.size))
    if len(content) < _padded(header.size):
        raise damaged(name, header.name, "it is truncated within an extended header")
    return content[: header.size]


def _attributes(
    content: bytes, header: tarfile.TarInfo, name: str, long_name: str | None, size: int | None
) -> tuple[str | None, int | None]:
    """Return the name and size that a pax header gives the next member, those it had where it gives none."""
    try:
        records = dict(_pax_records(content))
        if any(key.startswith(b"GNU.sparse.") for key in records):
            raise damaged(name, header.name, "it is stored as a sparse file, which is not read")
        if header.type == _GLOBAL:
            if {b"path", b"size"} & records.keys():
                raise damaged(name, header.name, "it gives all members one name or size")
            return long_name, size
        if b"path" in records:
            long_name = records[b"path"].decode("utf-8", "surrogateescape")
        if b"size" in records and (size := int(records[b"size"])) < 0:
            raise ValueError(f"size {size}")
    except ValueError as error:
        raise damaged(name, header.name, f"its extended header is damaged ({error})") from None
    return long_name, size


def _pax_records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (key, value) pairs of a pax header: "LENGTH KEY=VALUE" and a newline, one behind the other."""
    at = 0
    while at < len(content):
        space = content.index(b" ", at, at + 16)
        end = at + int(content[at:space])
        key, equals, value = content[space + 1 : end - 1].partition(b"=")
        if end > len(content) or not equals or content[end - 1 : end] != b"\n":
            raise ValueError(f"record at byte {at}")
        yield key, value
        at = end


def _key_of(member: str) -> tuple[str, str]:
    """Return key and extension (lower case) of a member, two empty strings where it belongs to no sample."""
    match = _KEY.match(member)
    return (match.group(1), match.group(2).lower()) if match and not _META.match(member) else ("", "")


def _check_name(member: str, name: str) -> None:
    """Check that a member has a name that a shard has reason to hold."""
    if len(member) > _MAX_NAME:
        raise damaged(name, member, f"its name has {len(member):,} characters")
    if member.startswith("/") or ".." in member.split("/") or "\0" in member:
        raise damaged(name, member, "its name is no relative path within the shard")
    try:
        member.encode()
    except UnicodeEncodeError:
        raise damaged(name, member, "its name is not UTF-8") from None

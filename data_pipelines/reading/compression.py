"""Compressed streams as pieces of their content: zstd, gzip or none, told by the file's name.

A stream that is cut off or damaged is an error, never the end of the text; that takes more care than the libraries'
own readers do, and a few lines more.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

import zstandard

from calm_lightning.errors import DataError

CHUNK = 1 << 20
_MAX_WINDOW = 1 << 31
_ZSTD_INPUT = 1 << 14  # all that comes out of one call is in memory: little goes in, as repetitive text grows a lot


def decompressed(chunks: Iterator[bytes], name: str, where: str) -> Iterator[bytes]:
    """Yield the content of a stored file piece by piece.

    Args:
        chunks: The stored bytes.
        name: The file's name, whose suffix tells the compression.
        where: Its address, for messages.

    Raises:
        DataError: It is truncated or damaged.
    """
    if name.endswith(".zst"):
        return _zstd(chunks, where)
    return _gzip(chunks, where) if name.endswith(".gz") else chunks


def as_file(chunks: Iterator[bytes]) -> BinaryIO:
    """Return pieces of bytes as a readable binary file without seeking."""
    return cast(BinaryIO, io.BufferedReader(_ChunkFile(chunks), CHUNK))


def _zstd(chunks: Iterator[bytes], where: str) -> Iterator[bytes]:
    # Frame by frame: zstandard's stream reader takes the end of a truncated file for the end of the text.
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    frame = decompressor.decompressobj()
    open_frame = False
    try:
        for chunk in chunks:
            for start in range(0, len(chunk), _ZSTD_INPUT):
                data = chunk[start : start + _ZSTD_INPUT]
                while data:
                    yield frame.decompress(data)
                    open_frame, data = not frame.eof, frame.unused_data if frame.eof else b""
                    if not open_frame:
                        frame = decompressor.decompressobj()
    except zstandard.ZstdError as error:
        raise DataError(f"source {where} is damaged ({error}): get the file again") from None
    if open_frame:
        raise DataError(f"source {where} is truncated (its last zstd frame is incomplete): get the file again")


def _gzip(chunks: Iterator[bytes], where: str) -> Iterator[bytes]:
    try:
        with gzip.open(as_file(chunks), "rb") as file:
            while data := file.read(CHUNK):
                yield data
    except EOFError:
        raise DataError(f"source {where} is truncated (its gzip stream has no end): get the file again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"source {where} is damaged ({error}): get the file again") from None


class _ChunkFile(io.RawIOBase):
    """Pieces of bytes as a raw file, which is what the gzip module wants."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed: any writable buffer
        while not self._rest:
            piece = next(self._chunks, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

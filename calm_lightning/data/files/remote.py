"""Bytes from addresses: http(s), s3 and whatever else fsspec knows, and `pipe:COMMAND` as in WebDataset.

One attempt at a time, in pieces, never a whole file in memory; trying again is the caller's. Every failure is a
`TransferError` in words. http(s) and s3 give up after `timeout` seconds without a byte; other protocols keep the
time limits of their own packages. WebDataset's own pipe reader is not used: it waits for a silent command for ever,
and importing it would load torch into every worker.
"""

from __future__ import annotations

import os
import selectors
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import suppress
from typing import IO, Any
from urllib.parse import quote, urlsplit, urlunsplit

from calm_lightning.errors import DataError

PIPE = "pipe:"
CHUNK = 1 << 20  # bytes per read
BLOCK = 16 << 20  # bytes per request, where a protocol reads by ranges

_LOCAL = ("file://", "local://")
_HTTP, _S3 = ("http", "https"), ("s3", "s3a")
_LASTING = (400, 401, 403, 404, 405, 410, 451)  # HTTP answers that asking again does not change
_NOT_RUN = (126, 127)  # a shell's exit status for a command that cannot be run or found


class TransferError(Exception):
    """One attempt at reading an address failed.

    Args:
        reason: Why, in words.
        lasting: Whether another attempt would fail in the same way.
    """

    def __init__(self, reason: str, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting


def is_remote(address: str) -> bool:
    """Return whether an address is anything but a path of this machine."""
    return address.startswith(PIPE) or ("://" in address and not address.startswith(_LOCAL))


def local_path(address: str) -> str:
    """Return the path that a local address is."""
    for prefix in _LOCAL:
        address = address.removeprefix(prefix)
    return address


def join(base: str, name: str) -> str:
    """Return the address of a file.

    Args:
        base: Address of its directory, or `pipe:COMMAND` with `{}` for the file's name.
        name: The file's name.

    Raises:
        DataError: The command has no `{}`.
    """
    if base.startswith(PIPE):
        if "{}" not in base:
            raise DataError(f"{base!r} does not say where the shard's file name goes: put {{}} in the command")
        return base.replace("{}", shlex.quote(name))
    if not base.startswith(("http://", "https://")):
        return f"{base.rstrip('/')}/{name}"
    parts = urlsplit(base)  # a signed address goes on behind the path
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}", fragment=""))


def shown(address: str) -> str:
    """Return an address as messages may show it: without a password or a signature."""
    if address.startswith(PIPE):  # its further words may hold secrets
        return " ".join([*address.split()[:1], *(["..."] if len(address.split()) > 1 else [])])
    if "://" not in address:
        return address
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def read_chunks(address: str, timeout: float) -> Generator[bytes, None, None]:
    """Read an address from begin to end; closing the iterator early ends the transfer.

    Args:
        address: Where to read.
        timeout: Seconds without a byte after which to give up.

    Yields:
        The content in pieces.

    Raises:
        TransferError: It cannot be read, or not to the end.
        DataError: The protocol is unknown, or its package is not installed.
    """
    return _read_command(address, timeout) if address.startswith(PIPE) else _read_address(address, timeout)


def _read_address(address: str, timeout: float) -> Generator[bytes, None, None]:
    filesystem, path, options = _filesystem(address, timeout)
    try:
        with filesystem.open(path, "rb", **options) as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except Exception as error:  # aiohttp, botocore and others have trees of their own
        raise _in_words(error, address, timeout) from error


def _filesystem(address: str, timeout: float) -> tuple[Any, str, dict[str, int]]:
    """Return the file system of an address, the path in it and the options of `open`; one per process and settings."""
    from fsspec.config import conf  # here: a local corpus needs none of it
    from fsspec.core import url_to_fs

    protocol = address.partition("://")[0]
    options: dict[str, int] = {"block_size": BLOCK}
    settings: dict[str, Any] = {}
    try:
        if protocol in _HTTP:
            import aiohttp

            limits = aiohttp.ClientTimeout(total=None, connect=timeout, sock_connect=timeout, sock_read=timeout)
            # "identity": tokens hardly compress, so a server that tries only takes longer.
            client: dict[str, Any] = {
                "trust_env": True,
                "read_bufsize": CHUNK,
                "headers": {"Accept-Encoding": "identity"},
            }
            client |= conf.get("http", {}).get("client_kwargs", {}) | conf.get("https", {}).get("client_kwargs", {})
            settings["client_kwargs"] = client | {"timeout": limits}
            options = {"block_size": 0, "size": 1}  # one streamed GET; a known size spares the HEAD before it
        elif protocol in _S3:
            limit = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"total_max_attempts": 1}}
            settings["config_kwargs"] = conf.get("s3", {}).get("config_kwargs", {}) | limit
        filesystem, path = url_to_fs(address, **settings)
    except ImportError as error:
        hint = "pip install 'calm-lightning[remote]'" if protocol in _HTTP + _S3 else str(error)
        raise DataError(f"{shown(address)}: reading {protocol}:// needs a package that is missing: {hint}") from None
    except ValueError as error:
        raise DataError(f"{shown(address)} is no address that can be read: {error}") from None
    except Exception as error:  # credentials, mostly
        raise _in_words(error, address, timeout) from error
    if protocol in _S3:
        filesystem.retries = 1  # s3fs repeats its own calls in two nested loops, each a timeout long
    return filesystem, path, options


def _in_words(error: Exception, address: str, timeout: float) -> TransferError:
    if isinstance(error, FileNotFoundError):
        return TransferError("it does not exist", lasting=True)
    if isinstance(error, PermissionError):
        return TransferError(f"access is refused ({error})".replace(address, shown(address)), lasting=True)
    status = getattr(error, "status", None)
    if isinstance(status, int) and status >= 300:
        message = getattr(error, "message", "")
        return TransferError(f"HTTP status {status} {message}".rstrip(), lasting=status in _LASTING)
    if isinstance(error, TimeoutError):
        return TransferError(f"nothing came for {timeout:g} s")
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return TransferError(text.replace(address, shown(address)))


def _read_command(address: str, timeout: float) -> Generator[bytes, None, None]:
    with tempfile.TemporaryFile() as complaints:
        # A session of its own, so that everything the command started can be ended with it.
        process = subprocess.Popen(
            address.removeprefix(PIPE),
            shell=True,
            bufsize=0,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            with process.stdout as stream, selectors.DefaultSelector() as selector:
                selector.register(stream, selectors.EVENT_READ)
                while True:
                    if not selector.select(timeout):
                        raise TransferError(f"nothing came for {timeout:g} s")
                    chunk = os.read(stream.fileno(), CHUNK)
                    if not chunk:
                        break
                    yield chunk
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TransferError(f"the command did not end within {timeout:g} s of its output's end") from None
        finally:
            _end(process)
        if status:
            reason = f"the command ended with status {status}{_last_line(complaints)}"
            raise TransferError(reason, lasting=status in _NOT_RUN)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a command that has not been seen to end, and what it started."""
    if process.returncode is None:  # not waited for yet: its number cannot be another process's by now
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(file: IO[bytes]) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - 400))
    lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return f" ({lines[-1].strip()})" if lines else ""

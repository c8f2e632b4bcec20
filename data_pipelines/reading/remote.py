"""Raw files that lie elsewhere: any address fsspec knows, and data sets of the Hugging Face hub.

Files are read as one stream of ranges, so nothing is stored here; a broken connection is taken up again where it
broke. A preparation that is repeated downloads again: where that matters, download first and name the files.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from calm_lightning.data.files.remote import shown
from calm_lightning.errors import DataError
from data_pipelines.reading.compression import CHUNK

HUB = "hf://"
TRIES = 5
FIRST_WAIT = 0.5
"""Seconds before the second try; each further wait is twice as long, times a random factor of 0.5 to 1."""
_SILENCE = 60.0  # seconds without a byte after which a connection is given up
_CONNECT = 15.0
_BLOCK = 8 * CHUNK
_DEPTH = 3
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError)


class RemoteFile(NamedTuple):
    """A file that lies elsewhere.

    Attributes:
        name: Its path below the address that was listed.
        url: Its own address.
        bytes: Size as stored; 0 where the server does not tell.
    """

    name: str
    url: str
    bytes: int


def list_files(address: str) -> list[RemoteFile]:
    """Return the file at an address, those that match it as a pattern, or those in the folder at it, by name.

    Web servers do not list folders: over http(s) an address is a file, or several written with braces (`{00..29}`).

    Raises:
        DataError: Nothing is there, or it cannot be reached.
    """
    try:
        if address.startswith(("http://", "https://")):
            return [_web_file(one) for one in braces(address)]
        system, path = _filesystem(address)
        return _listed(system, path, address.split("://")[0] + "://")
    except DataError:
        raise
    except Exception as error:  # every file system has exceptions of its own
        raise _unreachable(address, error) from None


def read_chunks(url: str, size: int) -> Iterator[bytes]:
    """Yield the stored bytes of a file, trying again after a failure, at the place where it happened.

    Args:
        url: Its address.
        size: Its size as listed; 0 where unknown.

    Raises:
        DataError: It cannot be read, or ends before its size.
    """
    done, tries, file = 0, 0, None
    try:
        while True:
            try:
                file = file or _opened(url, done, size)
                data = file.read(_BLOCK)
            except DataError:
                raise
            except Exception as error:  # every file system has exceptions of its own
                tries += 1
                if tries >= TRIES or _is_final(_cause(error)):
                    raise _unreachable(url, error) from None
                time.sleep(FIRST_WAIT * 2 ** (tries - 1) * random.uniform(0.5, 1.0))
                _close(file)
                file = None
                continue
            if not data:
                break
            tries, done = 0, done + len(data)
            yield data
    finally:
        _close(file)
    if done < size:
        raise DataError(f"source {shown(url)} ended after {done} of {size} bytes: run the same command again")


def _listed(system: Any, path: str, protocol: str) -> list[RemoteFile]:
    def file(info: dict[str, Any], root: str) -> RemoteFile:
        name = str(info["name"])
        return RemoteFile(
            name.removeprefix(root).lstrip("/") or name.rsplit("/")[-1], protocol + name, info["size"] or 0
        )

    if any(letter in path for letter in "*?["):
        found = system.glob(path, detail=True)
    else:
        info = system.info(path)
        if info["type"] == "file":
            return [file(info, info["name"])]
        found = system.find(path, maxdepth=_DEPTH, detail=True)
    files = sorted((info for info in found.values() if info["type"] == "file"), key=lambda info: str(info["name"]))
    if not files:
        raise FileNotFoundError(path)
    root = os.path.commonpath([str(info["name"]).rsplit("/", 1)[0] for info in files]) if found else path
    return [file(info, root) for info in files]


def _web_file(url: str) -> RemoteFile:
    system, path = _filesystem(url)
    size = system.info(path).get("size")
    return RemoteFile(url.split("?")[0].rsplit("/", 1)[-1], url, size or 0)


def braces(address: str) -> list[str]:
    """Return the addresses that one with braces (`{00..29}`, `{a,b}`) stands for; without any, itself."""
    from braceexpand import braceexpand

    return list(braceexpand(address)) if "{" in address else [address]


def _filesystem(address: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address and the path in it."""
    if address.startswith(HUB):
        from huggingface_hub import HfFileSystem

        return HfFileSystem(endpoint=os.environ.get("HF_ENDPOINT") or None), _hub_path(address)
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {}
    if address.startswith(("http://", "https://")):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_SILENCE)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
    elif address.startswith(("s3://", "s3a://")):
        limits = {"connect_timeout": _CONNECT, "read_timeout": _SILENCE, "retries": {"total_max_attempts": 1}}
        options["config_kwargs"] = limits
    system, path = url_to_fs(address, **options)
    return system, path


def _hub_path(address: str) -> str:
    """Return the hub's path of a data set's address, in its long or short form."""
    path = address.removeprefix(HUB).removeprefix("datasets/").strip("/")
    if path.count("/") < 1:
        raise DataError(f"{address} names no data set: write hf://OWNER/NAME, or hf://datasets/OWNER/NAME/PATH")
    return f"datasets/{path}"


def _opened(url: str, start: int, size: int) -> Any:
    """Return a file opened at byte `start`; it must still have its size."""
    system, path = _filesystem(url)
    file = system.open(path, "rb", block_size=_BLOCK, cache_type="none")
    if size and (now := getattr(file, "size", None)) not in (None, size):
        file.close()
        raise DataError(f"source {shown(url)} changed from {size} to {now} bytes: run the same command again")
    if start:
        if file.seekable():
            file.seek(start)
        else:
            while start:
                skipped = len(file.read(min(start, _BLOCK)))
                if not skipped:
                    raise EOFError("the file is shorter than before")
                start -= skipped
    return file


def _close(file: Any) -> None:
    if file is not None:
        file.close()


def _cause(error: Exception) -> Exception:
    """Return what is behind an error: fsspec calls any failed question for a web file's size a missing file."""
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) else error


def _status(error: Exception) -> int | None:
    """Return the HTTP status that an error of aiohttp or of the hub's client carries, if it does."""
    response = getattr(error, "response", None)
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def _is_final(error: Exception) -> bool:
    """Return whether trying again is pointless."""
    status = _status(error)
    return isinstance(error, _FINAL) or (status is not None and 400 <= status < 500 and status not in (408, 429))


def _unreachable(address: str, error: Exception) -> DataError:
    error, where = _cause(error), f"source {shown(address)}"
    if address.startswith(HUB) and _status(error) in (401, 403):
        return DataError(f"{where} does not exist or is not public: check the name, or set HF_TOKEN")
    if isinstance(error, FileNotFoundError) or _status(error) in (404, 410):
        return DataError(f"{where} does not exist: check the address")
    if isinstance(error, ImportError):
        return DataError(f"{where} needs a package that is not installed ({error}): install it")
    if isinstance(error, ValueError) and str(error).startswith("Protocol not known"):
        return DataError(f"{where} is of a kind that is not known ({error})")
    reason = (str(error).strip().split("\n")[0] or type(error).__name__).replace(address, shown(address))
    return DataError(f"{where} cannot be reached ({reason}): check the address and the network, then run again")

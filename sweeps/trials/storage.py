"""The Optuna storage of a sweep: where it is, how it is opened, and patience with one that is away.

A database that is killed and comes back must cost a sweep nothing but time, so every access goes through `patiently`:
it repeats what failed for want of a connection, and what it repeats must therefore be harmless to do twice.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from calm_lightning.errors import SweepError

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")
DATABASE, JOURNAL = "study.db", "study.journal"
PATIENCE_SECONDS, OPENING_SECONDS = 900.0, 30.0
"""Seconds after which a storage that was there, and one that is opened, counts as gone."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
_SQLITE_BUSY_SECONDS = 60
_LONGEST_LINE = 2**22
_LASTING = (
    *("no such table", "unable to open database", "readonly", "does not exist", "authentication", "pg_hba"),
    *("could not translate", "name or service"),
)
"""What time does not cure."""


class StorageAwayError(SweepError):
    """The storage has not answered for too long."""


def storage_address(storage: str, directory: Path) -> str:
    """Return the address of a sweep's storage.

    Args:
        storage: `SweepConfig.storage`: "sqlite", "journal", or an address.
        directory: The sweep's directory.
    """
    if storage == "sqlite":
        return f"sqlite:///{(directory.resolve() / DATABASE).as_posix()}"
    if storage == "journal":
        return f"journal:{(directory.resolve() / JOURNAL).as_posix()}"
    return storage


def shown(address: str) -> str:
    """Return an address for readers, without its password, wherever in it that is."""
    if address.startswith("journal:"):
        return address
    url = make_url(address)
    query = {key: "***" if "pass" in key.lower() else value for key, value in url.query.items()}
    return url.set(query=query).render_as_string(hide_password=True)


def without_password(storage: str) -> str:
    """Return `SweepConfig.storage` for files that others may read."""
    return shown(storage) if "://" in storage else storage


def open_storage(address: str) -> BaseStorage:
    """Open a storage, making its tables the first time.

    Args:
        address: As `storage_address` returns it.

    Raises:
        SweepError: It cannot be opened: wrong address, no driver, no permission, or it does not answer.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        if address.startswith("journal:"):
            return _open_journal(Path(address.removeprefix("journal:")))
        url = make_url(address)
        if url.drivername in ("postgresql", "postgres"):
            _require_driver()
            # A database in SQL_ASCII would answer in bytes.
            query = {"client_encoding": "utf8", **url.query}
            url = url.set(drivername="postgresql+psycopg", query=query)
        engine: dict[str, Any] = {"pool_pre_ping": True}
        if url.drivername.startswith("sqlite"):
            engine = {"connect_args": {"timeout": _SQLITE_BUSY_SECONDS}}
        complete = url.render_as_string(hide_password=False)
        database = patiently(lambda: RDBStorage(complete, engine_kwargs=engine), OPENING_SECONDS)
        return get_storage(database)  # behind Optuna's cache: what has ended is read once
    except SweepError:
        raise
    except (SQLAlchemyError, StorageInternalError, OSError, ImportError, RuntimeError, ValueError) as error:
        place = address.split("@")[-1] if isinstance(error, ArgumentError) else shown(address)
        raise SweepError(
            f"the study's storage {place} cannot be opened ({_sentence(error)}): check `storage`, or mend or delete it"
        ) from None


def _open_journal(path: Path) -> JournalStorage:
    """Open a journal, its torn last line, left by a full disk or a power cut, cut off."""
    if path.is_file():
        lock = JournalFileSymlinkLock(str(path))
        lock.acquire()
        try:
            with path.open("rb+") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _LONGEST_LINE))
                tail = file.read()
                if tail and not tail.endswith(b"\n"):
                    file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
        finally:
            lock.release()
    return JournalStorage(JournalFileBackend(str(path)))


def _require_driver() -> None:
    if importlib.util.find_spec("psycopg") is None:
        raise SweepError("PostgreSQL needs its driver: run pip install 'calm-lightning[postgres]'")


def patiently(action: Callable[[], _Result], patience: float = PATIENCE_SECONDS) -> _Result:
    """Do something with the storage, and again while the storage is away.

    Args:
        action: Must be harmless to repeat: it may have succeeded although no answer came.
        patience: Seconds after which a storage that is away is an error.

    Raises:
        StorageAwayError: The storage stayed away.
    """
    begun, pause, told = time.monotonic(), _FIRST_PAUSE, False
    while True:
        try:
            return action()
        except (StorageInternalError, DBAPIError) as error:
            if not is_away(error):
                raise
            if time.monotonic() - begun > patience:
                raise StorageAwayError(
                    f"the study's storage has not answered for {patience:.0f} s ({_sentence(error)}): "
                    "start it and run the same command again to continue"
                ) from None
            if not told and time.monotonic() - begun > 1.0:
                told = True
                _LOG.warning("the study's storage does not answer (%s); waiting for it", _sentence(error))
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def is_away(error: BaseException) -> bool:
    """Return whether an error is one of a connection, a lock or a starting server, which time may cure."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DBAPIError) and type(cause).__name__ in ("OperationalError", "InterfaceError"):
            text = str(cause.orig).lower()
            return not any(words in text for words in _LASTING)
        cause = cause.__cause__ or cause.__context__
    return False


def _sentence(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    return " ".join(str(getattr(cause, "orig", None) or cause).split())[:200]

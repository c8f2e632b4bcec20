"""Why a trial failed, in one sentence for the record; the traceback goes to a file."""

from __future__ import annotations

import errno
import shutil
import traceback
from pathlib import Path

from calm_lightning.errors import CalmError, DivergenceError
from sweeps import artifacts
from sweeps.directory import FAILURES

_LONGEST = 500
_LEAST_ROOM = 2**24
"""Bytes of a disk below which it is full."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def reason(error: BaseException) -> str:
    """Return why a trial failed, in one sentence."""
    text = " ".join(str(error).split())
    if isinstance(error, DivergenceError):
        kind = "diverged"
    elif isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text.lower():
        kind = "out of memory"
    elif isinstance(error, CalmError):
        return text[:_LONGEST]
    else:
        kind = type(error).__name__
    return f"{kind}: {text}"[:_LONGEST] if text else kind


def of_the_machine(error: BaseException, work_dir: Path) -> bool:
    """Return whether the next trial here would fail alike: there is no room on the disk, or none to write to.

    Args:
        error: What a trial raised. PyTorch tells of a full disk without its error number, hence the look at the disk.
        work_dir: Directory that holds run directories.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
            return True
        cause = cause.__cause__ or cause.__context__
    return isinstance(error, (CalmError, OSError, RuntimeError)) and shutil.disk_usage(work_dir).free < _LEAST_ROOM


def keep_traceback(directory: Path, number: int, error: BaseException) -> None:
    """Write the traceback of a failed trial into the sweep's directory."""
    text = "".join(traceback.format_exception(error))
    artifacts.write_text(directory / FAILURES / f"trial-{number:06d}.txt", text)

"""One sweep at a time in a work directory.

The lock is the kernel's (`flock`), not the file's existence: it ends with its process, however that ends, so a
killed sweep never has to be unlocked by hand.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calm_lightning.errors import SweepError


@contextmanager
def only_sweep(work_dir: Path) -> Iterator[None]:
    """Hold the work directory's sweep lock.

    Args:
        work_dir: Directory that holds run directories; made if it is missing.

    Raises:
        SweepError: Another process holds it, or the directory cannot be written to.
    """
    path = work_dir / "sweeps" / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise SweepError(f"{path} cannot be made: {error.strerror}; choose another --work-dir") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SweepError(
                f"another sweep is running in {work_dir}: wait for it, stop it, or choose another --work-dir"
            ) from None
        yield

"""Whether another process is still there: known at once within one host, and not at all between hosts.

A process is told from a later one with the same number by the moment it was started. Numbers of processes mean the
same only to processes of one boot of one kernel in one PID namespace, so all three are part of a process' address;
two containers of one machine that share a disk count as two hosts.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class ProcessAddress:
    """Which process, on which host.

    Attributes:
        host: Name of the host.
        boot: What tells this boot of its kernel from all others, and its PID namespace; "" where that is not known.
        pid: Number of the process.
        started: When it was started, in clock ticks since the boot; 0 where that is not known.
    """

    host: str
    boot: str
    pid: int
    started: int

    @classmethod
    def own(cls) -> ProcessAddress:
        """Return the address of this process."""
        pid = os.getpid()
        return cls(socket.gethostname(), _boot(), pid, _started(pid))

    def is_gone(self) -> bool:
        """Return whether the process is known not to exist any more; False where it cannot be known from here."""
        if not self.boot or self.boot != _boot() or self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it exists and belongs to somebody else
        started = _started(self.pid)
        return started == _ENDED or (started != 0 and self.started != 0 and started != self.started)


_ENDED = -1
"""In place of a start: the process has ended, though nobody has asked for its exit status yet."""


def _started(pid: int) -> int:
    """Return when a process was started, `_ENDED` for one that is dead but still listed, 0 where /proc hides it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()  # the name before may hold anything, spaces and brackets too
    return _ENDED if fields[0] in "ZX" else int(fields[19])


@cache
def _boot() -> str:
    """Return what tells this boot and PID namespace from all others, "" where the kernel does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""

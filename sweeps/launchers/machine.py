"""CPU cores and GPUs of this machine, and how workers share them.

Every worker gets the same number of cores, whatever is left over: how many threads add up a sum decides its last bits
and how long it takes, and trials are compared.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calm_lightning.errors import SweepError

CUDA_DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Share:
    """What one worker gets.

    Attributes:
        cores: The cores it may run on.
        threads: How many threads it should start for its arithmetic.
        gpus: Its GPUs as `CUDA_VISIBLE_DEVICES` names them; None leaves that variable alone.
    """

    cores: frozenset[int]
    threads: int
    gpus: str | None = None


@dataclass(frozen=True)
class Machine:
    """What this process may use.

    Attributes:
        cores: CPU cores that it may run on, in an order that keeps those of one chip and of one core together.
        limit: How many of them it may use at once.
        gpus: GPUs, as `CUDA_VISIBLE_DEVICES` names them.
    """

    cores: tuple[int, ...]
    limit: int
    gpus: tuple[str, ...] = ()

    @classmethod
    def this(cls) -> Machine:
        """Return what this process may use of its machine: its affinity, its cgroup's quota, its visible GPUs."""
        cores = tuple(sorted(os.sched_getaffinity(0), key=_position))
        quota = cpu_quota()
        limit = len(cores) if quota is None else max(1, min(len(cores), int(quota)))
        return cls(cores, limit, tuple(visible_gpus()))

    def share_out(self, count: int, cores: int | None = None, gpus: float | None = None) -> list[Share]:
        """Return what each of several workers gets.

        Args:
            count: Workers.
            cores: Cores of each; None shares out all. Where they are more than there are, workers share cores.
            gpus: GPUs of each; a fraction lets several workers share one, None shares out all: whole ones, or one to
                several workers where there are fewer than workers.

        Raises:
            SweepError: There is not enough.
        """
        parts = self._cores_of(count, cores)
        devices = self._gpus_of(count, gpus)
        return [Share(part, threads, device) for (part, threads), device in zip(parts, devices, strict=True)]

    def _cores_of(self, count: int, cores: int | None) -> list[tuple[frozenset[int], int]]:
        """Return the cores of each worker, and its threads."""
        here = len(self.cores)
        if cores is None:
            if count > self.limit:
                raise SweepError(
                    f"launch.workers={count} is more than this machine's {_counted(self.limit, 'core')}: ask for "
                    f"{self.limit}, or say launch.cores=1 to have workers share cores"
                )
            each, threads = here // count, self.limit // count  # a quota is not bound to particular cores
        elif cores > self.limit:
            raise SweepError(
                f"launch.cores={cores} is more than this machine has: {_counted(self.limit, 'core')}; ask for fewer"
            )
        else:
            each = threads = cores
            if count * cores <= self.limit:
                each = max(each, cores * here // self.limit)
        return [
            (frozenset(self.cores[(number * each + place) % here] for place in range(each)), threads)
            for number in range(count)
        ]

    def _gpus_of(self, count: int, gpus: float | None) -> Sequence[str | None]:
        """Return the GPUs of each worker."""
        here = len(self.gpus)
        if gpus is None:
            if not here:
                return [None] * count
            gpus = here // count if here >= count else 0.0
            if not gpus:
                return [self.gpus[number % here] for number in range(count)]
        if gpus == 0:
            return [""] * count
        if gpus < 1:
            on_each = int(1 / gpus + 1e-9)
            wanted = [range(number // on_each, number // on_each + 1) for number in range(count)]
        else:
            each = int(gpus)
            wanted = [range(number * each, (number + 1) * each) for number in range(count)]
        if max(max(part) for part in wanted) >= here:
            raise SweepError(
                f"launch.workers={count} with launch.gpus={gpus:g} need more than this machine's "
                f"{_counted(here, 'GPU')}: lower either of them"
            )
        return [",".join(self.gpus[number] for number in part) for part in wanted]


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them, without loading CUDA."""
    named = os.environ.get(CUDA_DEVICES)
    if named is not None:
        devices = [device.strip() for device in named.split(",")]
        ends = [number for number, device in enumerate(devices) if device in ("", "-1")]  # CUDA stops reading there
        return devices[: ends[0]] if ends else devices
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        listed = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(number) for number, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


def cpu_quota(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return how many CPU cores the control groups of this process allow at once; None where they set no limit.

    Args:
        proc: The list of its groups.
        root: Where the groups are mounted.
    """
    try:
        entries = [line.split(":", 2) for line in proc.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    found = []
    for _, controllers, group in entries:
        if controllers == "":
            found += [_ratio(place / "cpu.max") for place in _upwards(root, group)]
        elif "cpu" in controllers.split(","):
            for place in _upwards(root / "cpu", group):
                found.append(_ratio(place / "cpu.cfs_quota_us", place / "cpu.cfs_period_us"))
    limits = [limit for limit in found if limit is not None]
    return min(limits) if limits else None


def _upwards(root: Path, group: str) -> list[Path]:
    """Return the directories of a group and of all groups around it; in a container the path may not lead anywhere."""
    place = root / group.lstrip("/")
    return [place, *(parent for parent in place.parents if parent == root or root in parent.parents)]


def _ratio(*files: Path) -> float | None:
    """Return quota over period, both in microseconds, as the files hold them; None where there is no quota."""
    try:
        quota, period = " ".join(file.read_text(encoding="ascii") for file in files).split()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _position(core: int) -> tuple[int, int, int]:
    """Return the chip and the core that a logical core is part of, and its number."""
    topology = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
    try:
        chip, body = (int((topology / name).read_text()) for name in ("physical_package_id", "core_id"))
    except (OSError, ValueError):
        return 0, 0, core
    return chip, body, core


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

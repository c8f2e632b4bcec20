"""What autoencoders a work directory holds, in which state, and which language models use them. Nothing is changed."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calm_lightning.errors import SweepError, TrackingError
from calm_lightning.metrics import names
from calm_lightning.tracking.entries import JOURNAL_NAME, by_step, read_journal
from sweeps.cache.records import (
    CONFIG,
    RESULT,
    STAGE,
    USED,
    bytes_on_disk,
    identity_in,
    is_busy,
    lease_name,
    read_config,
    read_result,
    run_directories,
)
from sweeps.trials.leases import Leases

FINISHED, TRAINING, INTERRUPTED, DAMAGED = "finished", "training", "interrupted", "damaged"
_USERS = ("calm", "imported")
"""Stages whose runs may use an autoencoder."""


@dataclass(frozen=True)
class Entry:
    """One autoencoder.

    Attributes:
        run_dir: Its run directory.
        identity: Its identity; of an unfinished one, the part that its directory's name tells, or "".
        K: Tokens per chunk, None where the configuration cannot be read; likewise l and d.
        l: Latent dimension.
        d: Width.
        corpus: Hash of the corpus it was trained on, "" where it is not recorded.
        accuracy: Fraction of tokens restored from sampled latents at the last evaluation, None before the first.
        train_flops: FLOPs of its training so far.
        bytes: Size on disk.
        users: Names of the language models' runs that use it, finished or not.
        state: FINISHED, TRAINING, INTERRUPTED or DAMAGED (its result cannot be read).
        worker: Who trains it, "" where nobody does or it is not known.
        step: Last optimiser step in its journal, None where there is none.
        last_used: When it was last trained or used, unix seconds.
    """

    run_dir: Path
    identity: str
    K: int | None
    l: int | None
    d: int | None
    corpus: str
    accuracy: float | None
    train_flops: float
    bytes: int
    users: tuple[str, ...]
    state: str
    worker: str
    step: int | None
    last_used: float

    def state_in_words(self) -> str:
        """Return the state with what is known of it."""
        if self.state == TRAINING:
            return f"training by {self.worker or 'another command'}"
        if self.state == INTERRUPTED:
            return "interrupted" + ("" if self.step is None else f" at step {self.step}")
        return self.state

    def to_json(self) -> dict[str, Any]:
        """Return the entry as plain JSON values."""
        return {**vars(self), "run_dir": str(self.run_dir), "users": list(self.users)}


@dataclass(frozen=True)
class _Use:
    """Which autoencoder one language model's run names, by path and by identity, as far as either is known."""

    run_dir: Path
    path: str
    identity: str


class Uses:
    """Which language models use which autoencoder.

    Attributes:
        unknown: Runs whose files do not say which autoencoder they use.
    """

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir
        self._known: dict[Path, _Use] = {}
        self.unknown: list[Path] = []
        self.refresh()

    def refresh(self) -> None:
        """Read the runs that were not there before."""
        self.unknown = []
        for run_dir in (path for stage in _USERS for path in run_directories(self._work_dir, stage)):
            if run_dir not in self._known:
                use = _read_use(run_dir)
                if use is not None:
                    self._known[run_dir] = use
                elif (run_dir / CONFIG).exists() or (run_dir / RESULT).exists() or is_busy(run_dir):
                    self.unknown.append(run_dir)

    def of(self, run_dir: Path, identity: str) -> tuple[Path, ...]:
        """Return the runs that use an autoencoder.

        One is meant where its identity is recorded, or where its directory is named: there, or (runs are moved
        together) elsewhere under the same name.

        Args:
            run_dir: The autoencoder's run directory.
            identity: Its identity, or the beginning of it; "" where it is not known.
        """
        found = []
        for use in self._known.values():
            same = bool(identity) and use.identity.startswith(identity)
            if same or (use.path and (Path(use.path).name == run_dir.name or _is_same(Path(use.path), run_dir))):
                found.append(use.run_dir)
        return tuple(found)


def entries(work_dir: Path, leases: Leases, uses: Uses | None = None) -> list[Entry]:
    """Return all autoencoders of a work directory, by name.

    Args:
        work_dir: Directory that holds run directories.
        leases: Leases of `leases_directory(work_dir)`.
        uses: Who uses them; None reads it.

    Raises:
        SweepError: There is no such directory.
    """
    if not work_dir.is_dir():
        raise SweepError(f"{work_dir} is no directory: name the one that holds the runs (--work-dir DIR)")
    uses = uses or Uses(work_dir)
    return [_entry(run_dir, leases, uses) for run_dir in run_directories(work_dir, STAGE)]


def _entry(run_dir: Path, leases: Leases, uses: Uses) -> Entry:
    state, result = FINISHED, None
    try:
        result = read_result(run_dir)
    except (ValueError, OSError):
        state = DAMAGED
    identity = result["identity"] if result else identity_in(run_dir.name)
    worker = ""
    if result is None and state != DAMAGED:
        holder = leases.holder(lease_name(identity)) if identity else None
        worker = holder.owner if holder is not None and holder.alive else ""
        state = TRAINING if worker or is_busy(run_dir) else INTERRUPTED
    step, last = _last_values(run_dir)
    users = uses.of(run_dir, identity)
    K, l, d = _shape(run_dir)
    return Entry(
        run_dir=run_dir,
        identity=identity,
        K=K,
        l=l,
        d=d,
        corpus=_text(result, "protocol", "corpus"),
        accuracy=last.get(names.VAL_ACCURACY_SAMPLED),
        train_flops=float((result or {}).get("train_flops", last.get(names.TRAIN_FLOPS, 0.0))),
        bytes=bytes_on_disk(run_dir),
        users=tuple(sorted(path.name for path in users)),
        state=state,
        worker=worker,
        step=step,
        last_used=_latest([run_dir, *(run_dir / name for name in (USED, RESULT, JOURNAL_NAME))], users),
    )


def _read_use(run_dir: Path) -> _Use | None:
    """Return what a language model's run says of its autoencoder; None where it cannot be read (yet)."""
    try:
        path = str(read_config(run_dir).get("autoencoder_run") or "")
        return _Use(run_dir, path, _text(read_result(run_dir), "protocol", "model", "autoencoder"))
    except (ValueError, OSError):
        return None


def _text(value: Any, *keys: str) -> str:
    """Return the text below some keys, "" where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ""


def _shape(run_dir: Path) -> tuple[int | None, int | None, int | None]:
    """Return K, l and d, None where the configuration cannot be read."""
    try:
        config = read_config(run_dir)
        return config["model"]["K"], config["model"]["l"], config["autoencoder"]["d"]
    except (ValueError, OSError, KeyError, TypeError):
        return None, None, None


def _last_values(run_dir: Path) -> tuple[int | None, dict[str, float]]:
    """Return the last step of the journal and the last value of everything in it."""
    values: dict[str, float] = {}
    try:
        steps = by_step(read_journal(run_dir))
    except TrackingError:
        return None, values
    for at in steps.values():
        values |= at
    return (max(steps) if steps else None), values


def _latest(own: Iterable[Path], users: Iterable[Path]) -> float:
    """Return the latest time of an autoencoder's own files and of its users', unix seconds."""
    times = [0.0]
    for path in (*own, *(user / name for user in users for name in (CONFIG, RESULT, JOURNAL_NAME))):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False

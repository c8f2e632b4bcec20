"""The file of one lease, on disk: whole or absent.

It stays when the lease is released, so that its owners go on being counted.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from calm_lightning.errors import SweepError
from sweeps.trials.processes import ProcessAddress


@dataclass(frozen=True)
class Record:
    """What a lease's file holds.

    Attributes:
        owner: Name of the owner, for people.
        address: Its process.
        token: What tells this owner from all others that were or will be.
        beats: Signs of life since the lease was made.
        attempts: How many processes have held the lease.
        takeovers: How many of them took it over from one that had died.
        held: Whether it is held; False after it was released.
    """

    owner: str
    address: ProcessAddress
    token: str
    beats: int
    attempts: int
    takeovers: int
    held: bool


def read_record(path: Path) -> Record | None:
    """Return what a lease's file holds; None where there is none, or where a power cut left an empty one.

    Raises:
        SweepError: The disk refuses.
    """
    try:
        value = json.loads(path.read_bytes())
        return Record(**{**value, "address": ProcessAddress(**value["address"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        return None
    except OSError as error:
        raise SweepError(f"the lease {path} cannot be read: {error.strerror}; make it readable") from None


def write_record(path: Path, record: Record) -> None:
    """Write a lease's file. Only under the directory's guard: its temporary name is the same for everybody."""
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(json.dumps(asdict(record)), encoding="utf-8")
    os.replace(scratch, path)

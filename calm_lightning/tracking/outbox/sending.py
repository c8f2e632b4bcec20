"""Outboxes that were left behind (a store that was away, a process that was killed) are sent by whoever comes next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from calm_lightning.tracking.entries import read_journal
from calm_lightning.tracking.outbox.mirror import Mirror, in_one_line
from calm_lightning.tracking.outbox.outbox import KILLED, RUNNING, OutboxPlace, unsent
from calm_lightning.tracking.store import require_mlflow


@dataclass(frozen=True)
class Sent:
    """What became of one outbox.

    Attributes:
        place: Where it lies.
        name: Name of the run.
        problem: Why it could not be sent; "" where it was.
        busy: Whether a running process is sending it.
    """

    place: OutboxPlace
    name: str
    problem: str = ""
    busy: bool = False


def send(place: OutboxPlace) -> Sent:
    """Send one outbox whole, unless a running process has it.

    A run whose process has gone without saying how it ended counts as killed; continuing it opens it again.
    """
    name = place.directory.name
    try:
        with place.held() as held:
            if not held:
                return Sent(place, name, busy=True)
            outbox = place.read()
            if outbox is None:
                place.sent()
                return Sent(place, name)
            if outbox.status == RUNNING:
                entries = read_journal(place.directory)
                outbox.status, outbox.ended = KILLED, entries[-1].time if entries else outbox.started
            mirror = Mirror(place, outbox)
            mirror.close()
            place.write(outbox)
            if mirror.complete:
                place.sent()
            return Sent(place, outbox.name)
    except Exception as error:  # a store may raise anything
        return Sent(place, name, problem=in_one_line(error))


def send_all(work_dir: Path) -> Iterator[Sent]:
    """Send every outbox below a work directory, parents first; yields what became of each.

    Raises:
        TrackingError: MLflow is not installed.
    """
    require_mlflow()
    for place in unsent(work_dir):
        yield send(place)

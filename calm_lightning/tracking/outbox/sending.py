"""Outboxes that were left behind (a store that was away, a process that was killed) are sent by whoever comes next."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from calm_lightning.errors import TrackingError
from calm_lightning.tracking.entries import read_journal
from calm_lightning.tracking.outbox.mirror import Mirror, in_one_line
from calm_lightning.tracking.outbox.outbox import KILLED, RUNNING, Outbox, OutboxPlace, unsent

_BETWEEN_ROUNDS_SECONDS = 60.0


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
            read = place.read()
            if read is None:
                place.sent()
                return Sent(place, name)
            outbox = copy.deepcopy(read)
            if outbox.status == RUNNING:
                entries = read_journal(place.directory)
                outbox.status, outbox.ended = KILLED, entries[-1].time if entries else outbox.started
            mirror = Mirror(place, outbox)
            mirror.close()
            if _keep(place, read, outbox) and mirror.complete:
                place.sent()
            return Sent(place, outbox.name)
    except Exception as error:  # a store may raise anything
        return Sent(place, name, problem=in_one_line(error))


def send_all(places: Sequence[OutboxPlace]) -> Iterator[Sent]:
    """Send outboxes, yielding what became of each.

    Args:
        places: Where they lie, parents first, since children are put below them. A parent whose children were not in
            the store then is sent once more at the end, for their tags and its links to them.
    """
    for place in places:
        yield send(place)
    again = [place for place in places if not place.parent and place.marker.exists() and not place.busy()]
    for place in again:
        if (outbox := place.read()) is not None and outbox.children:
            send(place)


def _keep(place: OutboxPlace, read: Outbox, sent: Outbox) -> bool:
    """Write down what was sent, and return whether that is all: the run may have gone on in the meantime."""
    now = place.read()
    if now == read:
        place.write(sent)
        return True
    if now is not None:
        now.run_id, now.sent_files = sent.run_id, sent.sent_files
        place.write(now)
    return False


def send_others(work_dir: Path, uri: str, stop: threading.Event) -> None:
    """Send what earlier runs left behind for the same store, until told to stop; what fails is for another time.

    Args:
        work_dir: The work directory.
        uri: The store, as outboxes name it.
        stop: Ends it.
    """
    while not stop.is_set():
        for place in unsent(work_dir):
            try:
                outbox = place.read()
            except TrackingError:
                continue  # `calm runs unsent` tells of it
            if stop.is_set() or (outbox is not None and outbox.uri == uri and send(place).problem):
                break
        stop.wait(_BETWEEN_ROUNDS_SECONDS)

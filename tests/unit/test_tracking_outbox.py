"""The outbox on disk: whole, found again, held by one process at a time; and the links in descriptions."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calm_lightning.errors import TrackingError
from calm_lightning.tracking.entries import JournalEntry, append_entries, read_journal
from calm_lightning.tracking.outbox.links import resolve_links
from calm_lightning.tracking.outbox.outbox import FINISHED, Outbox, OutboxPlace, unsent
from calm_lightning.tracking.outbox.sending import send
from calm_lightning.tracking.outbox.tail import Tail


def place_in(work: Path, name: str = "a", stage: str = "calm", parent: str = "") -> OutboxPlace:
    directory = work / stage / name
    directory.mkdir(parents=True, exist_ok=True)
    return OutboxPlace(directory, parent)


def test_outbox_reads_back_as_it_was_written(tmp_path: Path) -> None:
    place = place_in(tmp_path, parent="p" * 64)
    outbox = Outbox(
        identity="i",
        name="n",
        parent="p" * 64,
        tags={"K": "4"},
        params={"model": {"K": 4, "l": None}},
        children={"3": {"directory": "x", "tags": {"pareto": "front"}}},
        model="",
    )
    assert place.read() is None
    place.write(outbox)
    assert place.read() == outbox
    assert [path.name for path in place.directory.iterdir()] == [f"mlflow-{'p' * 12}.json"]


def test_damaged_outbox_is_one_sentence(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    place.file.write_text('{"identity": "i"')
    with pytest.raises(TrackingError, match=r"mlflow\.json cannot be read .*: delete it"):
        place.read()


def test_unsent_finds_marked_outboxes_parents_first(tmp_path: Path) -> None:
    places = [place_in(tmp_path, "b"), place_in(tmp_path, "a", "autoencoder"), place_in(tmp_path, "s", "sweeps")]
    for place in [*places, place_in(tmp_path, "sent")]:
        place.write(Outbox(identity="i", name="n"))
    for place in places:
        place.marker.touch()
    place_in(tmp_path, "empty").marker.touch()  # killed before the outbox was written: there is nothing to send
    assert [one.directory.parent.name for one in unsent(tmp_path)] == ["sweeps", "autoencoder", "calm"]


def _hold(directory: Path, held: multiprocessing.synchronize.Event, leave: multiprocessing.synchronize.Event) -> None:
    with OutboxPlace(directory).held() as mine:
        assert mine
        held.set()
        leave.wait(30)


def test_an_outbox_is_held_by_one_process_until_it_dies(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    place.write(Outbox(identity="i", name="n"))
    context = multiprocessing.get_context("spawn")
    held, leave = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(place.directory, held, leave))
    process.start()
    assert held.wait(30)
    assert place.busy()
    with place.held() as mine:
        assert not mine
    process.kill()
    process.join()
    assert not place.busy()
    assert place.marker.exists()
    with place.held() as mine:
        assert mine
        place.sent()
    assert not place.marker.exists()


def test_told_needs_a_finished_run_with_the_same_tags(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    wanted = Outbox(identity="i", name="n", tags={"trial": "1", "hardware": "another"})
    assert not place.told(wanted)
    place.write(Outbox(identity="i", name="n", status=FINISHED, tags={"trial": "1", "hardware": "this"}))
    assert place.told(wanted)
    wanted.tags["trial"] = "2"
    assert not place.told(wanted)
    wanted.tags["trial"] = "1"
    place.marker.touch()
    assert not place.told(wanted)


def test_links_become_addresses_or_stay_text() -> None:
    known = {("run", "abc"): "r1", ("trial", "7"): "r7", ("view", "front"): "/#/experiments/5/runs?x=1"}
    text = "[a](run:abc) [b](trial:7) [gone](trial:8) [v](view:front) ![f](artifact:my front.png) [web](https://example.org)"
    shown = resolve_links(text.replace("my front", "front"), "5", "me", lambda kind, target: known.get((kind, target)))
    assert shown == (
        "[a](#/experiments/5/runs/r1) [b](#/experiments/5/runs/r7) gone [v](#/experiments/5/runs?x=1) "
        '<img src="get-artifact?path=front.png&run_uuid=me" alt="f" width="860"> [web](https://example.org)'
    )


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6))
def test_tail_reads_every_entry_once_however_it_is_written(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("tail")
    path, seen = folder / "metrics.jsonl", list[int]()
    tail = Tail(path)
    for batch in batches:
        append_entries(path, [JournalEntry(value, time.time(), {"a": 1.0}) for value in batch])
        with path.open("ab") as file:
            file.write(b'{"step": 1, "ti')  # a line that is being written, or was torn by a kill
        entries, place = tail.read()
        seen += [entry.step for entry in entries]
        tail.advance(place)
    assert seen == [value for batch in batches for value in batch]
    assert [entry.step for entry in read_journal(folder)] == seen


def test_damaged_outbox_is_shown_and_not_called_sent(tmp_path: Path) -> None:
    place = place_in(tmp_path, parent="p" * 64)
    place.marker.touch()
    place.file.write_text("garbage")
    (found,) = unsent(tmp_path)
    assert found.file == place.file
    sent = send(found)
    assert "delete it" in sent.problem
    assert place.marker.exists()


def test_another_store_has_not_been_told(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    place.write(Outbox(identity="i", name="n", status=FINISHED))
    assert place.told(Outbox(identity="i", name="n"))
    assert not place.told(Outbox(identity="i", name="n", uri="http://127.0.0.1:5000"))
    assert not place.told(Outbox(identity="i", name="n", experiment="another"))

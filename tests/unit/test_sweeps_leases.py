"""Leases within one process: who holds what, who is counted, what others see; kills are in tests/faults."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_lightning.errors import SweepError
from sweeps.trials.clock import AwakeClock
from sweeps.trials.guard import Guard
from sweeps.trials.lease_file import Record, read_record, write_record
from sweeps.trials.leases import Lease, Leases
from sweeps.trials.processes import ProcessAddress

BEAT, DEAD = 0.05, 0.6
NAME = "trial-000012"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Leases, Leases]]:
    """Return two owners of one directory, which lies somewhere that does not exist yet."""
    both = tuple(Leases(tmp_path / "sweep" / "leases", owner, BEAT, DEAD) for owner in ("a", "b"))
    yield both[0], both[1]
    for leases in both:
        leases.close()


def taken(leases: Leases, name: str = NAME) -> Lease:
    lease = leases.acquire(name)
    assert lease is not None
    return lease


def gone_process() -> ProcessAddress:
    """Return the address of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    own = ProcessAddress.own()
    address = replace(own, pid=process.pid, started=own.started + 1)
    process.wait()
    return address


def claim_from(directory: Path, address: ProcessAddress, beats: int = 7) -> None:
    """Make it look as if a process had taken the lease and never beat again."""
    directory.mkdir(parents=True, exist_ok=True)
    write_record(directory / f"{NAME}.lease", Record("other", address, "token", beats, 1, 0, held=True))


def test_one_holds_it_and_the_other_gets_it_when_it_is_released(pair: tuple[Leases, Leases]) -> None:
    a, b = pair
    assert a.holder(NAME) is None and a.attempts(NAME) == 0
    with taken(a) as lease:
        assert lease.attempts == 1 and lease.takeovers == 0
        assert b.acquire(NAME) is None
        assert a.acquire(NAME) is None, "the holder itself does not get it twice"
        holder = b.holder(NAME)
        assert holder is not None and holder.alive
        assert (holder.owner, holder.pid, holder.attempts) == ("a", os.getpid(), 1)
        assert list(b.holders()) == [NAME]
        assert taken(b, "another").attempts == 1
    assert b.holder(NAME) is None and b.attempts(NAME) == 1
    assert taken(b).attempts == 2
    assert not lease.lost.is_set()


def test_a_process_that_gets_back_what_it_released_does_not_count_again(pair: tuple[Leases, Leases]) -> None:
    a, b = pair
    counts = []
    for leases in (a, a, b, b, a):
        with taken(leases) as lease:
            counts.append((lease.attempts, lease.takeovers))
    assert counts == [(1, 0), (1, 0), (2, 0), (2, 0), (3, 0)]


def test_beats_go_on_while_it_is_held(pair: tuple[Leases, Leases]) -> None:
    a, b = pair
    lease = taken(a)
    first = b.holder(NAME)
    time.sleep(2 * DEAD)
    second = b.holder(NAME)
    assert first is not None and second is not None
    assert second.beats - first.beats >= DEAD / BEAT, "about two beats a beat_seconds are due"
    assert second.alive and b.acquire(NAME) is None and not lease.lost.is_set()


def test_a_name_that_is_no_file_name_is_a_bug(pair: tuple[Leases, Leases]) -> None:
    for name in ("", "../x", "a/b", ".guard", "a b"):
        with pytest.raises(ValueError, match="no name of a lease"):
            pair[0].acquire(name)
    with pytest.raises(ValueError, match="more than two beats"):
        Leases(Path(), "a", beat_seconds=30.0)


def test_a_process_that_is_gone_is_replaced_at_once(pair: tuple[Leases, Leases]) -> None:
    a, _ = pair
    claim_from(a.directory, gone_process())
    holder = a.holder(NAME)
    assert holder is not None and not holder.alive and holder.silent_seconds == 0
    lease = taken(a)
    assert (lease.attempts, lease.takeovers) == (2, 1)


def test_a_later_process_with_the_same_number_is_not_the_owner(pair: tuple[Leases, Leases]) -> None:
    a, _ = pair
    own = ProcessAddress.own()
    claim_from(a.directory, replace(own, started=own.started - 1))
    assert a.acquire(NAME) is not None


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"boot": "another boot"}, {"boot": ""}])
def test_an_owner_elsewhere_is_dead_when_it_was_watched_for_long_enough(
    pair: tuple[Leases, Leases], change: dict[str, str]
) -> None:
    a, b = pair
    claim_from(a.directory, replace(gone_process(), **change))  # type: ignore[arg-type]
    time.sleep(2 * DEAD)
    began = time.monotonic()
    assert a.acquire(NAME) is None, "how long it was silent before anybody looked, nobody knows"
    while (lease := a.acquire(NAME)) is None:
        time.sleep(0.01)
    assert time.monotonic() - began >= DEAD
    assert lease.takeovers == 1
    assert b.acquire(NAME) is None, "the new owner is alive"


def test_an_owner_elsewhere_that_beats_stays(pair: tuple[Leases, Leases]) -> None:
    a, _ = pair
    away = replace(gone_process(), host="elsewhere")
    for beats in range(12):
        claim_from(a.directory, away, beats)
        assert a.acquire(NAME) is None
        time.sleep(DEAD / 6)


def test_who_was_replaced_notices_and_writes_nothing(pair: tuple[Leases, Leases]) -> None:
    a, b = pair
    lease = taken(a)
    path = a.directory / f"{NAME}.lease"
    record = read_record(path)
    assert record is not None
    with a.alone():
        write_record(path, replace(record, address=gone_process(), token="as if killed"))
    theirs = taken(b)
    assert lease.lost.wait(20 * BEAT)
    assert not lease.confirm()
    lease.release()
    assert theirs.confirm()
    holder = a.holder(NAME)
    assert holder is not None and holder.owner == "b" and holder.alive


def test_confirm_tells_before_the_next_beat(tmp_path: Path) -> None:
    a = Leases(tmp_path, "a", beat_seconds=100, dead_after_seconds=1000)
    lease = taken(a)
    assert lease.confirm() and not lease.lost.is_set()
    (tmp_path / f"{NAME}.lease").unlink()
    assert not lease.confirm() and lease.lost.is_set()
    a.close()


def test_what_a_power_cut_left_is_taken_as_nothing(pair: tuple[Leases, Leases]) -> None:
    a, _ = pair
    for garbage in (b"", b"{", b"[]", b'{"owner": 1}', b'{"address": 3}'):
        with taken(a):
            pass
        (a.directory / f"{NAME}.lease").write_bytes(garbage)
        assert a.holder(NAME) is None
    assert taken(a).attempts == 1


def test_a_directory_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        leases = Leases(directory, "a", BEAT, DEAD)
        with pytest.raises(SweepError, match="make"):
            leases.acquire(NAME)
        leases.close()


def test_a_guard_that_somebody_keeps_is_one_sentence_with_a_name(tmp_path: Path) -> None:
    with (
        Guard(tmp_path, "local-0 (host:12)").held(),
        pytest.raises(SweepError, match=r"locked for 0 s by local-0 \(host:12\)"),
        Guard(tmp_path, "local-1", patience_seconds=0.1).held(),
    ):
        pytest.fail("two hold it")
    with Guard(tmp_path, "local-1").held():
        pass


def test_threads_of_one_owner_and_of_several_exclude_each_other(pair: tuple[Leases, Leases]) -> None:
    together, most, total, lock = 0, 0, 0, threading.Lock()
    until = time.monotonic() + 1.0

    def work(leases: Leases) -> None:
        nonlocal together, most, total
        while time.monotonic() < until:
            lease = leases.acquire(NAME)
            if lease is None:
                time.sleep(0.0005)
                continue
            with lease:
                with lock:
                    together, total = together + 1, total + 1
                    most = max(most, together)
                time.sleep(0.001)
                with lock:
                    together -= 1

    threads = [threading.Thread(target=work, args=(leases,)) for leases in pair for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and total > 20


def test_a_forked_child_has_no_leases_and_leaves_its_parents_alone(pair: tuple[Leases, Leases], tmp_path: Path) -> None:
    a, b = pair
    lease = taken(a)
    with a.alone():  # the worst moment: the child has the guard's lock, too
        child = os.fork()
        if not child:
            failed = not lease.lost.is_set()
            lease.release()
            failed = failed or lease.confirm() or a.acquire(NAME) is not None
            own = a.acquire("of-the-child")
            failed = failed or own is None or own.attempts != 1
            time.sleep(4 * BEAT)
            holder = a.holder("of-the-child")
            os._exit(failed or holder is None or holder.beats < 2 or holder.pid != os.getpid())
    assert os.waitpid(child, 0)[1] == 0
    assert not lease.lost.is_set() and lease.confirm()
    holder = b.holder(NAME)
    assert holder is not None and holder.pid == os.getpid()
    assert taken(b, "of-the-child").takeovers == 1, "the child is dead, and it was the child's"


Step = tuple[int, str]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["take", "give", "die"])), max_size=30))
def test_any_order_of_taking_giving_and_dying(tmp_path_factory: pytest.TempPathFactory, steps: list[Step]) -> None:
    directory = tmp_path_factory.mktemp("leases")
    dead = ProcessAddress("", "", 0, 0)
    owners = [Leases(directory, str(index), 10, 100) for index in range(3)]
    holding: int | None = None  # the model: who holds it, who was last, how often it changed hands
    last, attempts, takeovers, orphaned = "", 0, 0, False
    lease: Lease | None = None
    for who, what in steps:
        if what == "take":
            got = owners[who].acquire(NAME)
            assert (got is not None) == (holding is None)
            if got is not None:
                attempts += last != str(who)
                takeovers += orphaned
                holding, last, lease, orphaned = who, str(who), got, False
                assert (got.attempts, got.takeovers) == (attempts, takeovers)
        elif what == "give" and holding == who:
            assert lease is not None
            lease.release()
            holding = None
        elif what == "die" and holding == who:
            path = directory / f"{NAME}.lease"
            record = read_record(path)
            assert record is not None
            dead = dead if dead.pid else gone_process()
            write_record(path, replace(record, address=dead, token="dead"))
            holding, last, orphaned = None, "dead", True
            owners[who].close()
    for owner in owners:
        owner.close()
    assert owners[0].holder(NAME) is None or orphaned


@given(st.lists(st.floats(0, 100), max_size=30), st.floats(0.1, 10))
def test_the_clock_counts_every_gap_up_to_a_length(gaps: list[float], longest: float) -> None:
    now = 5.0
    clock = AwakeClock(longest, lambda: now)
    total = clock.now()
    for gap in gaps:
        now += gap
        before, total = total, clock.now()
        assert total - before == pytest.approx(min(gap, longest), abs=1e-9)

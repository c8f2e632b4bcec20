"""Leases whose owners are killed (SIGKILL) or stopped (SIGSTOP) at any moment: one holder, and always a next one."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import psutil
import pytest

from sweeps.trials.leases import Lease, Leases

BEAT, DEAD = 0.05, 0.8
NAME = "trial-000012"
Start = Callable[..., BaseProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a process of its own; none of them outlives the test."""
    started: list[BaseProcess] = []

    def begin(target: Callable[..., None], *arguments: object) -> BaseProcess:
        process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.is_alive():
            process.kill()
        process.join()


def until(happened: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def until_status(process: BaseProcess, status: str) -> None:
    until(lambda: psutil.Process(process.pid).status() == status)


def beats(leases: Leases) -> int:
    holder = leases.holder(NAME)
    assert holder is not None
    return holder.beats


def taken(leases: Leases) -> Lease:
    lease = leases.acquire(NAME)
    assert lease is not None
    return lease


def pause(leases: Leases, process: BaseProcess) -> None:
    """Stop a process at a moment when it does not hold the guard."""
    assert process.pid is not None
    with leases.alone():
        os.kill(process.pid, signal.SIGSTOP)
        until_status(process, psutil.STATUS_STOPPED)


def hold(directory: Path, holding: Event, lost: Event) -> None:
    """Take the lease and hold it until it is lost."""
    lease = taken(Leases(directory, "held", BEAT, DEAD))
    holding.set()
    lease.lost.wait()
    lost.set()


def test_killed_its_lease_is_free_at_once(tmp_path: Path, start: Start) -> None:
    holding, lost = (multiprocessing.get_context("spawn").Event() for _ in range(2))
    patient = Leases(tmp_path, "next", beat_seconds=5, dead_after_seconds=3600)
    for attempt in range(1, 4):
        holding.clear()
        process = start(hold, tmp_path, holding, lost)
        assert holding.wait(30)
        assert patient.acquire(NAME) is None
        process.kill()
        until_status(process, psutil.STATUS_ZOMBIE)
        began = time.monotonic()
        with taken(patient) as lease:
            assert time.monotonic() - began < 0.5
            assert (lease.attempts, lease.takeovers) == (2 * attempt, attempt)
    patient.close()


def test_stopped_it_is_replaced_and_knows_when_it_wakes(tmp_path: Path, start: Start) -> None:
    holding, lost = (multiprocessing.get_context("spawn").Event() for _ in range(2))
    other = Leases(tmp_path, "next", BEAT, DEAD)
    process = start(hold, tmp_path, holding, lost)
    assert holding.wait(30)
    assert other.acquire(NAME) is None
    pause(other, process)
    began = time.monotonic()
    while (lease := other.acquire(NAME)) is None:
        time.sleep(0.01)
    assert DEAD - 2 * BEAT < time.monotonic() - began < 10 * DEAD
    assert lease.takeovers == 1
    assert process.pid is not None
    os.kill(process.pid, signal.SIGCONT)
    assert lost.wait(30), "it goes on as if nothing had happened"
    process.join(30)
    assert lease.confirm() and not lease.lost.is_set()
    holder = other.holder(NAME)
    assert holder is not None and holder.owner == "next"
    other.close()


def test_stopped_for_a_moment_it_keeps_its_lease(tmp_path: Path, start: Start) -> None:
    holding, lost = (multiprocessing.get_context("spawn").Event() for _ in range(2))
    other = Leases(tmp_path, "next", BEAT, DEAD)
    process = start(hold, tmp_path, holding, lost)
    assert holding.wait(30) and process.pid is not None
    for _ in range(4):
        pause(other, process)
        assert other.acquire(NAME) is None
        time.sleep(DEAD / 2)
        assert other.acquire(NAME) is None
        os.kill(process.pid, signal.SIGCONT)
        before = beats(other)
        until(partial(lambda so_far: beats(other) > so_far, before))
    assert not lost.is_set()
    other.close()


def watch(directory: Path, watching: Event, took: Event) -> None:
    """Try to take the lease all the time."""
    leases = Leases(directory, "watcher", BEAT, DEAD)
    while leases.acquire(NAME) is None:
        watching.set()
        time.sleep(BEAT / 5)
    took.set()


def test_stopped_together_nobody_is_taken_for_dead(tmp_path: Path, start: Start) -> None:
    holding, lost, watching, took = (multiprocessing.get_context("spawn").Event() for _ in range(4))
    here = Leases(tmp_path, "test", BEAT, DEAD)
    owner = start(hold, tmp_path, holding, lost)
    assert holding.wait(30)
    watcher = start(watch, tmp_path, watching, took)
    assert watching.wait(30)
    pause(here, owner)
    pause(here, watcher)
    time.sleep(2 * DEAD)
    for process in (watcher, owner):  # who wanted the lease wakes first
        assert process.pid is not None
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(2 * BEAT)
    time.sleep(DEAD)
    assert not took.is_set() and not lost.is_set()
    owner.kill()
    assert took.wait(30), "dead in earnest, it is replaced"


def is_alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def claim(witness: Path) -> None:
    """Make the witness file, which only one process can; that of a killed one is put away first."""
    own = witness.with_name(f"witness-{os.getpid()}")
    own.write_text(str(os.getpid()))
    while True:
        try:
            os.link(own, witness)
            return
        except FileExistsError:
            pid = int(witness.read_text())
            assert not is_alive(pid), f"{pid} and {os.getpid()} hold it both"
            witness.unlink()


def hammer(directory: Path, seed: int, seconds: float, broken: Event) -> None:
    """Take and give back the lease as often as possible, holding the witness file meanwhile."""
    chance, log = random.Random(seed), directory / f"log-{os.getpid()}"
    leases = Leases(directory / "leases", f"hammer-{seed}", BEAT, DEAD)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        lease = leases.acquire(NAME)
        if lease is None:
            time.sleep(chance.uniform(0, 0.002))
            continue
        with lease, log.open("a") as file:
            try:
                claim(directory / "witness")
                file.write(f"{lease.attempts} {lease.takeovers}\n")
                file.flush()
                time.sleep(chance.uniform(0, 0.003))
                (directory / "witness").unlink()
            except BaseException:
                broken.set()
                raise
            assert not lease.lost.is_set()


def test_many_processes_hammering_one_lease_while_some_are_killed(tmp_path: Path) -> None:
    context, seconds, chance, seeds = multiprocessing.get_context("fork"), 6.0, random.Random(0), count()
    broken, here = context.Event(), Leases(tmp_path / "leases", "test", BEAT, DEAD)
    began = time.monotonic()

    def begin() -> BaseProcess:
        left = began + seconds - time.monotonic()
        process = context.Process(target=hammer, args=(tmp_path, next(seeds), left, broken))
        process.start()
        return process

    crowd = [begin() for _ in range(6)]
    killed = 0
    while time.monotonic() < began + seconds - 1:
        time.sleep(chance.uniform(0, 0.1))
        holder = here.holder(NAME)
        holding = [process for process in crowd if holder is not None and process.pid == holder.pid]
        victim = holding[0] if holding and chance.random() < 0.7 else chance.choice(crowd)
        victim.kill()
        victim.join()
        killed += 1
        crowd[crowd.index(victim)] = begin()
    for process in crowd:
        process.join(60)
        assert process.exitcode == 0
    assert not broken.is_set(), "two held it at the same time"
    lines = [tuple(map(int, line.split())) for log in tmp_path.glob("log-*") for line in log.read_text().splitlines()]
    assert killed > 20 and len(lines) > 100
    counted = dict(sorted(lines))
    assert list(counted.values()) == sorted(counted.values()), "a count went backwards"
    assert max(counted.values()) > 5, "it was hardly ever the holder that died"
    here.close()


def killed_at(moment: int, directory: Path, before: bool) -> None:
    """Take, beat and release in a process that is killed before or after its n-th renaming of a file."""
    child = os.fork()
    if not child:
        rename, calls = os.replace, count(1)

        def counted(old: Path, new: Path) -> None:
            now = next(calls) == moment
            if now and before:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(old, new)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = counted  # type: ignore[assignment]
        with taken(Leases(directory, "killed", 100, 1000)) as lease:
            lease.confirm()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) == (moment <= 3)


@pytest.mark.parametrize("before", [True, False])
def test_killed_at_every_file_it_writes_the_next_one_gets_it(tmp_path: Path, before: bool) -> None:
    other = Leases(tmp_path, "next", 100, 1000)
    for round_number, moment in enumerate((1, 2, 3, 4) * 3):
        killed_at(moment, tmp_path, before)
        with taken(other) as lease:
            assert lease.attempts >= round_number
            assert lease.confirm()
    assert {path.suffix for path in tmp_path.iterdir() if path.name != ".guard"} <= {".lease", ".tmp"}
    assert len(list(tmp_path.iterdir())) <= 3, "what killed processes leave behind does not add up"
    other.close()

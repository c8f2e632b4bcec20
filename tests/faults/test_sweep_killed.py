"""Sweeps with real workers, a real storage and a formula for what is trained, killed with -9 again and again.

Whatever is killed, the study ends as the undisturbed one: the same trials under the same numbers, each complete once,
with the same values; and no step of any run is taken twice.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, TrialState

from sweeps.directory import find_sweeps
from sweeps.trials.reading import open_trials, read_sweep
from sweeps.trials.record import DEATHS, KEY, REASON
from sweeps.work.progress import read_progress

TRADE = Path(__file__).parents[1] / "tiny_trade.py"
SWEEP = """
name: tiny
tracking: {mlflow: false}
all:
  data: {block_tokens: 96, batch_tokens: 384, eval_batch_tokens: 384, eval_max_blocks: 4}
  model: {d: 16, intermediate: 32, layers: 1, heads: 2, N: 2, M: 2}
autoencoder: {autoencoder: {d: 16, intermediate: 32}, trainer: {max_steps: 3}}
calm: {trainer: {max_steps: 6}, evaluation: {every_steps: 2}}
baseline: {trainer: {max_steps: 6}, evaluation: {every_steps: 2}}
space: {model.K: [2, 4], model.N: [2, 4]}
seeds: [0, 1]
retries: 1000
launch: {workers: 2, beat_seconds: 0.2, dead_after_seconds: 1.0}
"""
TRIALS = 10


def start(folder: Path, *overrides: str, seconds: float = 0.02, **variables: str) -> subprocess.Popen[bytes]:
    sweep = folder / "sweep.yaml"
    if not sweep.is_file():
        sweep.write_text(SWEEP)
    environment = {**os.environ, "TINY_SECONDS": str(seconds), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, str(TRADE), "run", *overrides[:0], str(sweep), str(folder / "runs"), *overrides]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def finish(process: subprocess.Popen[bytes], folder: Path, seconds: float = 120) -> None:
    assert process.wait(seconds) == 0, (folder / "log").read_text()


def trials_of(folder: Path) -> list[FrozenTrial]:
    (directory,) = find_sweeps(folder / "runs")
    return open_trials(directory).trials()


def outcome(folder: Path) -> dict[int, tuple[str, TrialState, list[float] | None, list[float]]]:
    """What a study says of its trials, times and workers left out."""
    (directory,) = find_sweeps(folder / "runs")
    curves = {one.trial: [point.brier_lm for point in one.points] for one in read_sweep(directory).series}
    return {
        trial.number: (trial.user_attrs[KEY], trial.state, trial.values, curves.get(trial.number, []))
        for trial in trials_of(folder)
    }


def steps_taken(folder: Path) -> Counter[str]:
    return Counter((folder / "runs" / "steps.log").read_text().splitlines())


def worker_pids(folder: Path) -> list[int]:
    found = [int(one.place.split(":")[1]) for sweep in find_sweeps(folder / "runs") for one in read_progress(sweep)]
    return [pid for pid in found if _is_worker(pid)]


def _is_worker(pid: int) -> bool:
    try:
        return b"tiny_trade" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(start(folder, seconds=0.0), folder)
    return folder


def test_an_undisturbed_sweep_is_complete_and_shares_autoencoders(undisturbed: Path) -> None:
    found = outcome(undisturbed)
    assert len(found) == TRIALS
    assert all(state == TrialState.COMPLETE for _, state, _, _ in found.values())
    taken = steps_taken(undisturbed)
    assert max(taken.values()) == 1
    assert len({line.split()[1] for line in taken if line.startswith("autoencoder")}) == 4, "one for each K and seed"


def chaos(folder: Path, kills: int, seed: int, *overrides: str, coordinator: bool = True) -> int:
    """Run a sweep and kill its processes at random until it has ended; return how many were killed."""
    chance, killed = random.Random(seed), 0
    process = start(folder, *overrides)
    until = time.monotonic() + 20 * kills + 120
    while time.monotonic() < until:
        try:
            status = process.wait(chance.uniform(0.05, 1.2))
        except subprocess.TimeoutExpired:
            status = None
        if status == 0:
            return killed
        if status is not None:
            assert status < 0, (folder / "log").read_text()
            process = start(folder, *overrides)
        elif killed < kills:
            victims = worker_pids(folder) + [process.pid] * coordinator
            if victims:
                killed += 1
                with suppress(ProcessLookupError):
                    os.kill(chance.choice(victims), signal.SIGKILL)
    process.kill()
    raise AssertionError((folder / "log").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_killed_workers_and_coordinators_change_nothing(tmp_path: Path, undisturbed: Path, storage: str) -> None:
    kills = int(os.environ.get("CALM_TEST_KILLS", "12"))
    killed = chaos(tmp_path, kills, 1, f"storage={storage}")
    assert killed > 3
    assert outcome(tmp_path) == outcome(undisturbed)
    assert max(steps_taken(tmp_path).values()) == 1, "a step was taken twice"
    assert set(steps_taken(tmp_path)) <= set(steps_taken(undisturbed))
    assert not list((tmp_path / "runs").rglob("*.partial*"))


def wait_for(condition: object, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.02)


def test_a_trial_is_resumed_by_another_worker_and_given_up_when_it_kills_them_all(tmp_path: Path) -> None:
    """A trial that kills whoever has it is given up after `retries`; the sweep goes on without it."""
    process = start(tmp_path, "retries=1", "space={model: {K: [4]}}", "space.model.N=null", "seeds=[0]", seconds=0.3)

    def has_trial() -> bool:
        return any(one.trial == 1 for sweep in find_sweeps(tmp_path / "runs") for one in read_progress(sweep))

    for _ in range(2):
        wait_for(has_trial)
        sweep = find_sweeps(tmp_path / "runs")[0]
        (holder,) = [one for one in read_progress(sweep) if one.trial == 1]
        os.kill(int(holder.place.split(":")[1]), signal.SIGKILL)
        gone = holder.place
        wait_for(lambda gone=gone, sweep=sweep: gone not in [one.place for one in read_progress(sweep)])
    finish(process, tmp_path)
    trial = trials_of(tmp_path)[1]
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs[DEATHS] == 2
    assert "its worker died 2 times" in trial.user_attrs[REASON]
    assert trials_of(tmp_path)[0].state == TrialState.COMPLETE


def test_failing_trials_are_recorded_with_their_reason_and_stop_nothing(tmp_path: Path) -> None:
    finish(start(tmp_path, seconds=0.0, TINY_FAIL="K4-N2"), tmp_path)
    found = outcome(tmp_path)
    failed = [number for number, (_, state, _, _) in found.items() if state == TrialState.FAIL]
    assert [found[number][0] for number in failed] == ["K4-N2-s0", "K4-N2-s1"]
    (directory,) = find_sweeps(tmp_path / "runs")
    reasons = [failure.reason for failure in read_sweep(directory).failures]
    assert reasons == ["diverged: training diverged after 0 steps of calm-K4-N2"] * 2
    assert "DivergenceError" in (directory / "failures" / f"trial-{failed[0]:06d}.txt").read_text()
    before = steps_taken(tmp_path)
    again = start(tmp_path, "--retry-failed", seconds=0.0)
    finish(again, tmp_path)
    assert not read_sweep(directory).failures
    assert len(read_sweep(directory).series) == TRIALS
    assert all(steps_taken(tmp_path)[line] == count for line, count in before.items()), "what is done is not repeated"


def test_a_sweep_whose_trials_all_fail_gives_up_and_says_why(tmp_path: Path) -> None:
    process = start(tmp_path, "stop_after_failures=3", seconds=0.0, TINY_FAIL="calm|baseline")
    assert process.wait(60) == 2
    text = (tmp_path / "log").read_text()
    assert "error: the last 3 trials failed, the last one because of this: diverged" in text
    assert "calm sweep resume" in text


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_sweep_leaves_its_trials_in_good_order(tmp_path: Path, undisturbed: Path, sign: int) -> None:
    process = start(tmp_path, seconds=0.1)
    wait_for(lambda: len(worker_pids(tmp_path)) == 2 and (tmp_path / "runs" / "steps.log").is_file())
    time.sleep(0.5)
    process.send_signal(sign)
    assert process.wait(60) == 130
    assert not worker_pids(tmp_path)
    assert not any(trial.user_attrs.get("worker") for trial in trials_of(tmp_path) if not trial.state.is_finished())
    finish(start(tmp_path, seconds=0.0), tmp_path)
    assert not any(trial.user_attrs.get(DEATHS) for trial in trials_of(tmp_path))
    assert outcome(tmp_path) == outcome(undisturbed)
    assert max(steps_taken(tmp_path).values()) == 1


def test_a_second_coordinator_is_refused(tmp_path: Path) -> None:
    process = start(tmp_path, seconds=0.1)
    try:
        wait_for(lambda: bool(worker_pids(tmp_path)))
        second = start(tmp_path)
        assert second.wait(60) == 2
        assert "is being run by process" in (tmp_path / "log").read_text()
    finally:
        process.terminate()
        process.wait(60)


def test_workers_do_not_outlive_a_killed_coordinator(tmp_path: Path) -> None:
    process = start(tmp_path, seconds=0.2)
    wait_for(lambda: len(worker_pids(tmp_path)) == 2)
    process.kill()
    process.wait()
    wait_for(lambda: not worker_pids(tmp_path), 30)


def test_two_sweeps_share_a_work_directory_and_its_autoencoders(tmp_path: Path) -> None:
    one = start(tmp_path, seconds=0.01)
    other = start(tmp_path, "name=other", "calm.optim.lr=0.5", seconds=0.01)
    finish(one, tmp_path)
    finish(other, tmp_path)
    taken = steps_taken(tmp_path)
    assert max(taken.values()) == 1
    assert len({line.split()[1] for line in taken if line.startswith("autoencoder")}) == 4
    assert len(find_sweeps(tmp_path / "runs")) == 2


@pytest.fixture
def stopped() -> Iterator[list[int]]:
    pids: list[int] = []
    yield pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_a_worker_that_was_suspended_finds_its_trial_given_to_another(tmp_path: Path, stopped: list[int]) -> None:
    """It is taken for dead after a second of silence, as one on another host would be."""
    process = start(tmp_path, "space={model: {K: [4]}}", "space.model.N=null", "seeds=[0]", seconds=0.15)
    wait_for(lambda: bool(find_sweeps(tmp_path / "runs")))
    (directory,) = find_sweeps(tmp_path / "runs")
    wait_for(lambda: any(one.trial == 1 and one.doing == "calm" for one in read_progress(directory)))
    (holder,) = [one for one in read_progress(directory) if one.trial == 1]
    pid = int(holder.place.split(":")[1])
    stopped.append(pid)
    os.kill(pid, signal.SIGSTOP)
    lease = directory / "leases" / "trial-000001.lease"
    value = json.loads(lease.read_text())
    value["address"]["host"] = "elsewhere"
    lease.write_text(json.dumps(value))
    wait_for(lambda: any(one.trial == 1 and one.name != holder.name for one in read_progress(directory)), 30)
    os.kill(pid, signal.SIGCONT)
    finish(process, tmp_path)
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.COMPLETE] * 2
    assert max(steps_taken(tmp_path).values()) <= 2, "at most the step in the midst of which it was suspended"

"""The stage cache with light trainers: trained once, found by identity, waited for, tried again after a failure."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from calm_lightning.config import RunConfig
from sweeps.cache.records import FinishedRun, lease_name, leases_directory, mark_used, read_finished
from sweeps.cache.stage_cache import CacheUse, Interrupted, StageCache
from sweeps.trials.leases import Lease, Leases

CONFIG = RunConfig(stage="autoencoder")
FLOPS = 3e9


@dataclass(frozen=True)
class Where:
    run_dir: Path
    identity: str


class Shop:
    """A work directory with its light way of locating and training."""

    def __init__(self, work_dir: Path) -> None:
        self.work_dir, self.trained, self.said = work_dir, list[str](), list[str]()
        self.opened: list[Leases] = []

    def locate(self, config: RunConfig) -> Where:
        identity = hashlib.sha256(str(config.seed).encode()).hexdigest()
        name = config.name or f"autoencoder-s{config.seed}"
        return Where(self.work_dir / "autoencoder" / f"{name}-{identity[:10]}", identity)

    def train(self, config: RunConfig) -> FinishedRun:
        place = self.locate(config)
        self.trained.append(place.run_dir.name)
        return self.finish(place)

    def finish(self, place: Where) -> FinishedRun:
        place.run_dir.mkdir(parents=True, exist_ok=True)
        result = {"identity": place.identity, "train_flops": FLOPS, "mlflow_run_id": "m1"}
        (place.run_dir / "result.json").write_text(json.dumps(result))
        found = read_finished(place.run_dir, place.identity)
        assert found is not None
        return found

    def leases(self, owner: str) -> Leases:
        self.opened.append(Leases(leases_directory(self.work_dir), owner, 0.05, 0.5))
        return self.opened[-1]

    def cache(self, owner: str, should_stop: Callable[[], bool] = lambda: False) -> StageCache:
        return StageCache(self.work_dir, self.leases(owner), self.said.append, self.locate, should_stop)


@pytest.fixture
def shop(tmp_path: Path) -> object:
    made = Shop(tmp_path / "runs")
    yield made
    for leases in made.opened:
        leases.close()


def test_it_is_trained_the_first_time_and_found_the_second(shop: Shop) -> None:
    cache = shop.cache("a")
    outcome, use = cache.obtain(CONFIG, shop.train)
    place = shop.locate(CONFIG)
    assert outcome.run_dir == place.run_dir
    assert replace(use, waited_seconds=0) == CacheUse(place.identity, place.run_dir, True, 0, FLOPS)
    found, use = shop.cache("b").obtain(CONFIG, shop.train)
    assert replace(use, waited_seconds=0) == CacheUse(place.identity, place.run_dir, False, 0, FLOPS)
    assert (found.run_dir, found.train_flops, found.mlflow_run_id) == (place.run_dir, FLOPS, "m1")
    assert len(shop.trained) == 1 and shop.said == []
    assert shop.opened[0].holder(lease_name(place.identity)) is None, "the lease was given back"


def test_the_same_under_another_name_is_found_and_used_where_it_is(shop: Shop) -> None:
    named, _ = shop.cache("a").obtain(replace(CONFIG, name="mine"), shop.train)
    found, use = shop.cache("a").obtain(CONFIG, shop.train)
    assert found.run_dir == use.run_dir == named.run_dir
    assert not use.trained and len(shop.trained) == 1


def test_a_directory_that_only_looks_like_it_is_passed_over(shop: Shop) -> None:
    place = shop.locate(CONFIG)
    stranger = Where(place.run_dir.with_name(f"stranger-{place.identity[:10]}"), place.identity[:10] + "0" * 54)
    shop.finish(stranger)
    damaged = place.run_dir.with_name(f"damaged-{place.identity[:10]}")
    damaged.mkdir()
    (damaged / "result.json").write_text("{")
    removed = place.run_dir.parent / ".pruned" / place.run_dir.name
    shop.finish(Where(removed, place.identity))
    outcome, use = shop.cache("a").obtain(CONFIG, shop.train)
    assert use.trained and outcome.run_dir == place.run_dir


def test_many_that_start_together_train_it_once(shop: Shop) -> None:
    gate = threading.Barrier(6)

    def slowly(config: RunConfig) -> FinishedRun:
        time.sleep(0.4)
        return shop.train(config)

    def want(owner: str) -> CacheUse:
        cache = shop.cache(owner)
        gate.wait()
        return cache.obtain(CONFIG, slowly)[1]

    with ThreadPoolExecutor(6) as pool:
        uses = list(pool.map(want, "abcdef"))
    assert len(shop.trained) == 1
    assert [use.trained for use in uses].count(True) == 1
    assert all(use.waited_seconds > 0.2 for use in uses if not use.trained)
    assert len(shop.said) == 5 and all("waiting for it" in said for said in shop.said), "each says so once"


def test_different_ones_do_not_wait_for_each_other(shop: Shop) -> None:
    gate = threading.Barrier(3)

    def together(config: RunConfig) -> FinishedRun:
        gate.wait(10)  # breaks unless all three train at the same time
        return shop.train(config)

    with ThreadPoolExecutor(3) as pool:
        wanted = [replace(CONFIG, seed=seed) for seed in range(3)]
        uses = list(pool.map(lambda config: shop.cache(str(config.seed)).obtain(config, together)[1], wanted))
    assert all(use.trained for use in uses)


def test_a_failure_is_passed_on_and_the_next_one_tries_again(shop: Shop) -> None:
    def fail(config: RunConfig) -> FinishedRun:
        raise ArithmeticError("it diverged")

    for owner in "ab":
        with pytest.raises(ArithmeticError):
            shop.cache(owner).obtain(CONFIG, fail)
    assert shop.cache("c").obtain(CONFIG, shop.train)[1].trained


def test_waiting_can_be_interrupted_and_is_no_failure(shop: Shop) -> None:
    held = shop.leases("local-7").acquire(lease_name(shop.locate(CONFIG).identity))
    assert held is not None
    began = time.monotonic()
    with pytest.raises(Interrupted, match="stopped while waiting for autoencoder-s0"):
        shop.cache("b", lambda: time.monotonic() > began + 0.5).obtain(CONFIG, shop.train)
    assert not issubclass(Interrupted, Exception), "who records failures does not record this"
    assert len(shop.said) == 1 and "is being trained by local-7 (" in shop.said[0]
    assert shop.trained == []


def test_who_stops_giving_signs_of_life_is_replaced(shop: Shop) -> None:
    dead = shop.leases("local-7")
    assert dead.acquire(lease_name(shop.locate(CONFIG).identity)) is not None
    dead._stop.set()  # as if it were stopped: the process is there, the beats are not
    _, use = shop.cache("b").obtain(CONFIG, shop.train)
    assert use.trained and use.waited_seconds > 0.4
    assert "waiting for it" in shop.said[0] and "local-7" in shop.said[1] and "continued here" in shop.said[1]


def test_what_somebody_else_finished_while_it_was_waited_for_inside_training_is_not_claimed(shop: Shop) -> None:
    @dataclass(frozen=True)
    class Reused(FinishedRun):
        reused: bool = True

    def find(config: RunConfig) -> FinishedRun:
        return Reused(**{**vars(shop.train(config))})

    assert not shop.cache("a").obtain(CONFIG, find)[1].trained


def test_one_that_is_removed_at_that_moment_is_trained_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.cache("a").obtain(CONFIG, shop.train)

    def removed_first(run_dir: Path) -> bool:
        if len(shop.trained) == 1:
            (run_dir / "result.json").unlink()
        return mark_used(run_dir)

    monkeypatch.setattr("sweeps.cache.stage_cache.mark_used", removed_first)
    assert shop.cache("b").obtain(CONFIG, shop.train)[1].trained
    assert len(shop.trained) == 2


def test_one_that_is_finished_between_looking_and_getting_the_lease_is_not_trained_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire = Leases.acquire

    def late(leases: Leases, name: str) -> Lease | None:
        shop.finish(shop.locate(CONFIG))
        return acquire(leases, name)

    monkeypatch.setattr(Leases, "acquire", late)
    assert not shop.cache("b").obtain(CONFIG, shop.train)[1].trained
    assert shop.trained == []
    assert shop.opened[0].holder(lease_name(shop.locate(CONFIG).identity)) is None

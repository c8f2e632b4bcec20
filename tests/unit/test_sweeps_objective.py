"""One trial with a small real trade in place of the large one: what is trained, what is told, what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_trade import TinyOutcome, execute, locate

from calm_lightning.config import RunConfig
from calm_lightning.errors import BusyError, SweepError
from calm_lightning.stages.watch import RunStopped
from sweeps.cache.records import leases_directory
from sweeps.cache.stage_cache import CacheUse, StageCache
from sweeps.config import find_sweep, load_sweep
from sweeps.space.points import Point, PointMaker, grid
from sweeps.trials.leases import Leases
from sweeps.work.objective import Objective

STEPS = ["all.trainer.max_steps=6", "all.evaluation.every_steps=2", "per_value=[]"]


class Notes:
    """A watcher that writes down what it is told."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.begun: list[str] = []
        self.evaluations: list[int] = []
        self.uses: list[CacheUse] = []
        self._left = stop_after

    def begins(self, config: RunConfig, run_dir: Path) -> None:
        self.begun.append(config.stage)

    def has_autoencoder(self, use: CacheUse) -> None:
        self.uses.append(use)

    def interrupted(self) -> bool:
        self._left -= 1
        return self._left < 0

    def evaluated(self, step: int) -> None:
        self.evaluations.append(step)


def objective(folder: Path, train: Any = execute) -> Objective:
    cache = StageCache(folder, Leases(leases_directory(folder), "test"), announce=print, locate=locate)
    return Objective(train, locate, cache, vocabulary=257, parent="parent", study="s")


def made(folder: Path, *overrides: str) -> list[Point]:
    sweep = load_sweep(find_sweep("k4-sweet-spot"), ["tracking.mlflow=false", *STEPS, *overrides])
    maker = PointMaker(sweep, Path("x"), folder, vocabulary=257)
    return [maker.baseline(), *(maker.make(values) for values in grid(maker))]


def test_a_trial_trains_the_autoencoder_first_and_keeps_every_evaluation(tmp_path: Path) -> None:
    notes, point = Notes(), made(tmp_path, "space.model.K=[2]")[1]
    series = objective(tmp_path)(point, 5, notes)
    assert notes.begun == ["autoencoder", "calm"]
    assert notes.evaluations == [2, 4]
    assert [point.step for point in series.points] == [0, 2, 4, 6]
    assert (series.K, series.seed, series.trial, series.slug) == (2, 0, 5, "K2")
    assert series.setting("model.l") == 64
    assert series.setting("autoencoder.beta") == 1e-3
    assert series.parameters > 1000
    assert notes.uses[0].trained
    assert notes.uses[0].train_flops == series.points[0].train_flops > 0
    tags = json.loads((Path(series.run_dir) / "result.json").read_text())["tags"]
    assert tags == {"study": "s", "trial": "5", "model": "CALM K=2", "slug": "K2"}


def test_the_second_trial_finds_the_autoencoder(tmp_path: Path) -> None:
    first, second = made(tmp_path, "space.model.K=[2]", "space.model.N=[2,4]")[1:]
    objective(tmp_path)(first, 0, Notes())
    notes = Notes()
    objective(tmp_path)(second, 1, notes)
    assert notes.begun == ["calm"]
    assert not notes.uses[0].trained


def test_the_baseline_has_no_autoencoder(tmp_path: Path) -> None:
    notes = Notes()
    series = objective(tmp_path)(made(tmp_path)[0], 0, notes)
    assert (series.autoencoder_dir, series.K, series.stage) == ("", None, "baseline")
    assert set(series.settings) == {"model.d", "model.layers", "optim.lr"}
    assert notes.begun == ["baseline"]


@pytest.mark.parametrize("after", [1, 3, 6, 8])
def test_a_stopped_trial_goes_on_where_it_was(tmp_path: Path, after: int) -> None:
    point = made(tmp_path, "space.model.K=[2]")[1]
    with pytest.raises(RunStopped):
        objective(tmp_path)(point, 0, Notes(stop_after=after))
    series = objective(tmp_path)(point, 0, Notes())
    taken = (tmp_path / "steps.log").read_text().splitlines()
    assert len(taken) == len(set(taken)) == 14, "two runs of seven steps, none of them twice"
    assert [point.step for point in series.points] == [0, 2, 4, 6]


def test_a_run_without_evaluations_is_refused(tmp_path: Path) -> None:
    def blind(config: RunConfig, **_: object) -> TinyOutcome:
        return TinyOutcome(tmp_path, (), 0.0)

    with pytest.raises(SweepError, match="baseline was never evaluated"):
        objective(tmp_path, blind)(made(tmp_path)[0], 0, Notes())


def test_a_run_that_somebody_else_trains_is_waited_for(tmp_path: Path) -> None:
    refused: list[str] = []

    def busy(config: RunConfig, **given: Any) -> TinyOutcome:
        if len(refused) < 2:
            refused.append(config.name)
            raise BusyError("another process is training it")
        return execute(config, **given)

    assert objective(tmp_path, busy)(made(tmp_path)[0], 0, Notes()).points
    assert refused == ["baseline", "baseline"]
    refused.clear()
    with pytest.raises(RunStopped):
        objective(tmp_path, busy)(made(tmp_path)[0], 0, Notes(stop_after=0))

"""Which trials a sweep has: real Optuna samplers and a real SQLite storage, with a formula for what is trained."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from scipy.stats.qmc import Sobol
from sqlalchemy.exc import OperationalError

from calm_lightning.errors import ConfigError
from calm_lightning.metrics.names import ScorePoint
from sweeps.config import SweepConfig, load_sweep
from sweeps.front.series import Series
from sweeps.report.plan import list_points
from sweeps.space.points import PointMaker
from sweeps.trials.planner import Planner, planned_trials, planning
from sweeps.trials.record import DEATHS, KEY, POINT, SEED, VALUES, TrialRecord, open_record, series_of

SPACE = "space:\n  model.K: [1, 2, 4, 8]\n  optim.lr: {float: [1.0e-4, 1.0e-1], log: true}\n"
GRID = "space: {model.K: [1, 2, 4]}\n"


def sweep_of(folder: Path, text: str) -> SweepConfig:
    path = folder / "sweep.yaml"
    path.write_text("name: s\nall: {trainer: {max_steps: 5}}\n" + text)
    return load_sweep(path)


def open_planner(folder: Path, sweep: SweepConfig) -> Planner:
    maker = PointMaker(sweep, Path("corpus"), folder, vocabulary=257)
    return Planner(maker, open_record(folder, sweep.storage, "study", sweep.objectives))


def finish(record: TrialRecord, trial: FrozenTrial, score: float, count: int) -> None:
    flops = 1e9 / trial.user_attrs[VALUES].get("model.K", 1)
    point = ScorePoint(5, flops, flops, 1.0, 1.0, 1.0, score, 0.1, 0.0, 1.0, (1.0,) * 4, (0.1,) * 4)
    series = Series("m", "calm", {}, 1, (point,), "run", "", None, "")
    if not record.trial(trial).state.is_finished():
        record.begin(trial, "w")
    record.complete(trial, series, [flops, score][-count:])


def score(trial: FrozenTrial) -> float:
    values = trial.user_attrs[VALUES]
    return 10 - abs(values.get("model.K", 1) - 4) - abs(values.get("optim.lr", 0.01) - 0.01) * 10


def run_all(folder: Path, sweep: SweepConfig, reopen: bool = False) -> list[FrozenTrial]:
    """Plan and finish until nothing is left; `reopen` does so with a new process' view before every step."""
    planner = open_planner(folder, sweep)
    for _ in range(200):
        if reopen:
            planner = open_planner(folder, sweep)
        with planning(folder):
            added = planner.plan(room=3)
        waiting = [trial for trial in planner.record.trials() if trial.state == TrialState.WAITING]
        if not added and not waiting:
            return planner.record.trials()
        if waiting:
            finish(planner.record, waiting[0], score(waiting[0]), len(sweep.objectives))
    raise AssertionError("it never ended")


def keys(trials: list[FrozenTrial]) -> list[str]:
    return [trial.user_attrs[KEY] for trial in trials]


def test_a_grid_is_the_baseline_and_every_point_with_every_seed(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, GRID + "seeds: [0, 5]\n")
    trials = run_all(tmp_path, sweep)
    expected = [f"{slug}-s{seed}" for slug in ("baseline", "K1", "K2", "K4") for seed in (0, 5)]
    assert keys(trials) == expected
    assert planned_trials(open_planner(tmp_path, sweep).maker) == 8
    assert [trial.params for trial in trials[:4]] == [{}, {}, {"model.K": 1}, {"model.K": 1}]
    assert [trial.user_attrs[POINT] for trial in trials] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_planner_that_dies_between_two_trials_is_continued(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, GRID + "seeds: [0, 5, 6]\n")
    whole = keys(run_all(tmp_path, sweep))
    (tmp_path / "other").mkdir()
    planner = open_planner(tmp_path / "other", sweep)
    planner.record.add(planner._next([])[0])
    assert keys(run_all(tmp_path / "other", sweep)) == whole


def test_a_trial_whose_answer_was_lost_is_not_added_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planner = open_planner(tmp_path, sweep_of(tmp_path, GRID))
    add, calls = planner.record.storage.create_new_trial, []

    def lossy(*arguments: object) -> int:
        calls.append(add(*arguments))  # type: ignore[arg-type]
        if len(calls) == 1:
            gone = OperationalError("", {}, Exception("server closed the connection unexpectedly"))
            raise StorageInternalError("away") from gone
        return calls[-1]

    monkeypatch.setattr(planner.record.storage, "create_new_trial", lossy)
    planner.plan(room=2)
    assert keys(planner.record.trials()) == ["baseline-s0", "K1-s0"]


def test_points_that_break_a_constraint_or_are_too_dear_are_left_out(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, GRID + "constraints: ['K != 2']\ninclude_baseline: false\n")
    assert keys(run_all(tmp_path, sweep)) == ["K1-s0", "K4-s0"]
    assert planned_trials(open_planner(tmp_path, sweep).maker) == 2


def test_enqueued_points_come_first_and_are_not_repeated_by_the_grid(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, GRID + "enqueue: [{model.K: 4}]\ninclude_baseline: false\n")
    assert keys(run_all(tmp_path, sweep)) == ["K4-s0", "K1-s0", "K2-s0"]
    (tmp_path / "twice").mkdir()
    twice = sweep_of(tmp_path, GRID + "enqueue: [{model.K: 4}, {model.K: 4}]\n")
    assert keys(run_all(tmp_path / "twice", twice)) == ["baseline-s0", "K4-s0", "K1-s0", "K2-s0"]
    for text, message in (
        ("enqueue: [{model.K: 5}]\n", "model.K=5 does not lie in space"),
        ("enqueue: [{model.K: 4.0}]\n", "model.K=4.0 does not lie in space"),
        ("enqueue: [{model.N: 5}]\n", "lacks a value of model.K"),
        ("enqueue: [{model.K: 2, model.N: 5}]\n", "model.N is not swept here"),
    ):
        (tmp_path / message[:12]).mkdir()
        with pytest.raises(ConfigError, match=message):
            open_planner(tmp_path / message[:12], sweep_of(tmp_path, GRID + text)).plan(room=1)


@pytest.mark.parametrize("name", ["random", "qmc", "tpe", "nsga2", "gp"])
def test_samplers_draw_the_same_whatever_process_asks(tmp_path: Path, name: str) -> None:
    options = "{population_size: 4}" if name == "nsga2" else "{n_startup_trials: 4}" if name in ("tpe", "gp") else "{}"
    text = SPACE + f"include_baseline: false\nsampler: {{name: {name}, points: 7, seed: 1, options: {options}}}\n"
    drawn = []
    for reopen in (False, True):
        folder = tmp_path / str(reopen)
        folder.mkdir()
        trials = run_all(folder, sweep_of(tmp_path, text), reopen)
        drawn.append([trial.params for trial in trials])
    assert len(drawn[0]) == 7
    assert drawn[0] == drawn[1]
    assert len({str(params) for params in drawn[0]}) == 7
    (tmp_path / "other").mkdir()
    other = run_all(tmp_path / "other", sweep_of(tmp_path, text.replace("seed: 1", "seed: 2")))
    assert [trial.params for trial in other] != drawn[0]


def test_cmaes_searches_numbers_for_one_objective(tmp_path: Path) -> None:
    text = (
        "include_baseline: false\nobjectives: [brier_lm]\n"
        "space: {optim.lr: {float: [1.0e-4, 1.0e-1], log: true}, model.noise_size: {int: [4, 64]}}\n"
        "sampler: {name: cmaes, points: 12}\n"
    )
    first = [trial.params for trial in run_all(tmp_path, sweep_of(tmp_path, text), reopen=True)]
    assert len(first) == 12
    assert all(1e-4 <= params["optim.lr"] <= 1e-1 and 4 <= params["model.noise_size"] <= 64 for params in first)


def test_batches_do_not_depend_on_the_order_in_which_trials_end(tmp_path: Path) -> None:
    text = SPACE + (
        "include_baseline: false\nseeds: [0, 1]\n"
        "sampler: {name: tpe, points: 9, batch: 3, options: {n_startup_trials: 3}}\n"
    )
    drawn = []
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        planner, order = open_planner(folder, sweep_of(tmp_path, text)), random.Random(seed)
        while planner.plan(room=4) or any(not trial.state.is_finished() for trial in planner.record.trials()):
            waiting = [trial for trial in planner.record.trials() if trial.state == TrialState.WAITING]
            if waiting and order.random() < 0.7:
                chosen = order.choice(waiting)
                finish(planner.record, chosen, score(chosen), 2)
        drawn.append({trial.user_attrs[KEY] for trial in planner.record.trials()})
    assert len(drawn[0]) == 18
    assert drawn[0] == drawn[1] == drawn[2]


def test_a_small_space_ends_when_it_is_exhausted(tmp_path: Path) -> None:
    text = GRID + "include_baseline: false\nsampler: {name: random, points: 50}\n"
    assert sorted(keys(run_all(tmp_path, sweep_of(tmp_path, text)))) == ["K1-s0", "K2-s0", "K4-s0"]


def test_the_end_of_a_space_is_remembered(tmp_path: Path) -> None:
    text = GRID + "include_baseline: false\nsampler: {name: tpe, points: 50}\n"
    sweep = sweep_of(tmp_path, text)
    run_all(tmp_path, sweep)
    record = open_record(tmp_path, "sqlite", "study", sweep.objectives)
    assert record.exhausted == 3
    assert record.expected(50) == 3
    assert open_planner(tmp_path, sweep).plan(room=9) == 0


def test_a_sampler_that_repeats_itself_is_helped_by_chance(tmp_path: Path) -> None:
    """Optuna's GP proposes the best point of a small space again and again."""
    text = "include_baseline: false\nspace: {model.K: [1, 2, 4], model.N: [2, 4]}\n"
    trials = run_all(tmp_path, sweep_of(tmp_path, text + "sampler: {name: gp, points: 6}\n"))
    assert len(set(keys(trials))) == 6


def test_draws_that_contradict_themselves_are_drawn_anew(tmp_path: Path) -> None:
    text = "include_baseline: false\nspace: {model.d: {int: [16, 64], step: 8}, model.heads: [2, 3, 4]}\n"
    trials = run_all(tmp_path, sweep_of(tmp_path, text + "sampler: {name: random, points: 8}\n"))
    assert len(trials) == 8
    assert all(values["model.d"] % (2 * values["model.heads"]) == 0 for values in (t.params for t in trials))
    with pytest.raises(ConfigError, match=r"must divide model\.d.*leave it out with `constraints`"):
        planned_trials(open_planner(tmp_path, sweep_of(tmp_path, text)).maker)
    sound = sweep_of(tmp_path, text + "constraints: [model.d % (2 * model.heads) == 0]\n")
    assert planned_trials(open_planner(tmp_path, sound).maker) == 16


def test_a_space_of_which_nothing_may_be_trained_says_why(tmp_path: Path) -> None:
    text = SPACE + "include_baseline: false\nsampler: {name: random, points: 3}\n"
    for more, message in (
        ("constraints: [K > 100]\n", "may be trained, the last one because: K > 100 does not hold"),
        ("calm: {model: {heads: 3}}\n", "may be trained, the last one because: .*must divide"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_planner(tmp_path, sweep_of(tmp_path, text + more)).plan(room=1)
    unfair = sweep_of(tmp_path, SPACE + "sampler: {name: random, points: 3}\ncalm: {data: {block_tokens: 384}}\n")
    planner = open_planner(tmp_path, unfair)
    with pytest.raises(ConfigError, match="so the two would not compare"):
        planner.plan(room=3)


def test_qmc_is_a_sobol_sequence_in_dry_run_and_run_alike(tmp_path: Path) -> None:
    text = SPACE + "include_baseline: false\nsampler: {name: qmc, points: 8, seed: 4}\n"
    sweep = sweep_of(tmp_path, text)
    drawn = [trial.user_attrs[VALUES] for trial in run_all(tmp_path, sweep, reopen=True)]
    expected = Sobol(2, scramble=True, rng=4).random(8)
    assert [values["model.K"] for values in drawn] == [[1, 2, 4, 8][int(4 * u)] for u, _ in expected]
    assert [values["optim.lr"] for values in drawn] == pytest.approx([1e-4 * 1e3**v for _, v in expected])
    assert [point.values for point in list_points(open_planner(tmp_path, sweep).maker)] == drawn
    assert sorted(values["model.K"] for values in drawn) == [1, 1, 2, 2, 4, 4, 8, 8], "evenly spread"


def test_other_seeds_are_trained_too(tmp_path: Path) -> None:
    text = GRID + "include_baseline: false\n"
    run_all(tmp_path, sweep_of(tmp_path, text + "seeds: [0]\n"))
    trials = run_all(tmp_path, sweep_of(tmp_path, text + "seeds: [1]\n"))
    assert sorted(keys(trials)) == sorted(f"K{K}-s{seed}" for K in (1, 2, 4) for seed in (0, 1))


def test_texts_that_look_alike_as_file_names_are_told_apart(tmp_path: Path) -> None:
    text = "include_baseline: false\nspace: {data.train_split: ['a b', 'a_b', c]}\n"
    sweep = sweep_of(tmp_path, text)
    assert len(set(keys(run_all(tmp_path, sweep)))) == 3


def test_more_seeds_and_points_extend_a_sweep(tmp_path: Path) -> None:
    text = SPACE + "include_baseline: false\nsampler: {name: random, points: 2}\n"
    first = run_all(tmp_path, sweep_of(tmp_path, text))
    more = run_all(tmp_path, sweep_of(tmp_path, text.replace("points: 2", "points: 4") + "seeds: [0, 1]\n"))
    assert keys(more)[:2] == keys(first)
    assert len(more) == 8
    assert sorted(trial.user_attrs[SEED] for trial in more) == [0] * 4 + [1] * 4


def test_failed_trials_are_tried_again_as_trials_of_their_own(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, GRID + "include_baseline: false\n")
    planner = open_planner(tmp_path, sweep)
    planner.plan(room=9)
    record = planner.record
    for trial in record.trials():
        record.begin(trial, "w")
        record.fail(trial, "for the test")
    assert planner.plan(room=9) == 0
    assert record.retry_failed() == 3
    assert planner.plan(room=9) == 3
    trials = open_record(tmp_path, "sqlite", "study", sweep.objectives).trials()
    assert keys(trials) == ["K1-s0", "K2-s0", "K4-s0"] * 2
    assert [record.superseded(trial) for trial in trials] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_every_write_may_be_repeated(tmp_path: Path, storage: str) -> None:
    sweep = sweep_of(tmp_path, GRID + f"storage: '{storage}'\n")
    planner = open_planner(tmp_path, sweep)
    planner.plan(room=2)
    record = planner.record
    one, two = record.trials()
    assert record.begin(one, "w") == 0
    record.give_back(one)
    assert record.begin(one, "v") == 0, "the first one left in good order"
    assert record.begin(one, "u") == 1, "the second one did not"
    assert record.trial(one).user_attrs[DEATHS] == 1
    record.begin(two, "w")
    for _ in range(2):
        finish(record, one, 3.0, 2)
        record.fail(two, "reason")
        record.fail(one, "too late: it is complete")
    trials = open_record(tmp_path, storage, "study", sweep.objectives).trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.FAIL]
    found = series_of(trials[0])
    assert found is not None
    assert found.final.brier_lm == 3.0
    assert record.study().metric_names == ["train_flops", "brier_lm"]

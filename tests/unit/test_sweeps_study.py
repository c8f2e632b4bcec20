"""The study: what is done stays done, what was killed continues, two sweeps do not share a work directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from optuna.trial import TrialState
from test_sweeps_objective import STEPS, TinyExecute, tiny_sweep

from calm_lightning.errors import SweepError
from sweeps.front.series import Series
from sweeps.lock import only_sweep
from sweeps.space.points import Point, points
from sweeps.study import completed, enqueue_missing, open_study, recover, run_study
from sweeps.work.objective import Objective

KILLED = """
import sys
from pathlib import Path
from sweeps.lock import only_sweep
from sweeps.work.objective import Objective
from sweeps.space.points import points
from sweeps.study import open_study, run_study
from test_sweeps_objective import TinyExecute, tiny_sweep
work = Path(sys.argv[1])
objective = Objective(TinyExecute(float(sys.argv[2])), vocabulary=64, parent_run_id=None, study="s",
                      announce=lambda *what: None)
with only_sweep(work):
    series = run_study(open_study(work / "sweeps" / "s", "s"), points(tiny_sweep(), Path("x"), work), objective)
print(len(series))
"""


def run_all(work: Path, visit: bool = False) -> list[Series]:
    objective = Objective(TinyExecute(), vocabulary=64, parent_run_id=None, study="s", announce=lambda *what: None)
    study = open_study(work / "sweeps" / "s", "s")
    made = points(tiny_sweep(), Path("x"), work)
    return run_study(study, made, objective, visit=objective.quietly if visit else None)


def steps_taken(work: Path) -> Counter[str]:
    return Counter((work / "steps.log").read_text().splitlines())


def test_every_point_becomes_one_completed_trial_with_its_attributes(tmp_path: Path) -> None:
    series = run_all(tmp_path)
    study = open_study(tmp_path / "sweeps" / "s", "s")
    assert [one.label for one in series] == ["baseline", "CALM K=1", "CALM K=2", "CALM K=4", "CALM K=8"]
    done = completed(study)
    assert done["K4"].params == {"stage": "calm", "model.K": 4}
    assert done["K4"].values == [series[3].final.train_flops, series[3].final.brier_lm]
    assert done["K4"].user_attrs["run_dir"] == series[3].run_dir
    assert "mlflow_run_id" in done["K4"].user_attrs
    assert {trial.params["stage"] for trial in study.best_trials} <= {"calm", "baseline"}
    assert (tmp_path / "sweeps" / "s" / "study.db").is_file()


@pytest.mark.parametrize("visit", [False, True])
def test_a_finished_study_trains_nothing_and_gives_the_same_series(tmp_path: Path, visit: bool) -> None:
    first = run_all(tmp_path)
    before = steps_taken(tmp_path)
    assert run_all(tmp_path, visit) == first
    assert steps_taken(tmp_path) == before
    assert len(open_study(tmp_path / "sweeps" / "s", "s").trials) == len(first)


def test_a_trial_left_running_is_closed_and_its_point_queued_again(tmp_path: Path) -> None:
    study = open_study(tmp_path, "s")
    made = points(tiny_sweep("space.model.K=[4]"), Path("x"), tmp_path)
    assert enqueue_missing(study, made) == 2
    assert enqueue_missing(study, made) == 2
    lost = study.ask()
    assert recover(study) == 1
    assert study.trials[lost.number].state == TrialState.FAIL
    assert enqueue_missing(study, made) == 2


def test_an_error_closes_the_trial_and_the_next_run_continues(tmp_path: Path) -> None:
    def breaks(point: Point, trial: int) -> Series:
        if point.slug == "K2":
            raise KeyboardInterrupt
        return objective(point, trial)

    objective = Objective(TinyExecute(), vocabulary=64, parent_run_id=None, study="s", announce=lambda *what: None)
    made = points(tiny_sweep(), Path("x"), tmp_path)
    study = open_study(tmp_path / "sweeps" / "s", "s")
    with pytest.raises(KeyboardInterrupt):
        run_study(study, made, breaks)
    assert [trial.state for trial in study.trials].count(TrialState.RUNNING) == 0
    assert len(completed(study)) == 2
    assert len(run_all(tmp_path)) == 5
    assert max(steps_taken(tmp_path).values()) == 1


def test_killed_again_and_again_no_step_is_lost_or_repeated(tmp_path: Path) -> None:
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(tests)])}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    log = tmp_path / "steps.log"
    for seen in (3, 20):
        process = subprocess.Popen([*command, "0.05"], env=environment)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (not log.exists() or len(log.read_text().splitlines()) < seen):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run([*command, "0"], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "5"
    taken = steps_taken(tmp_path)
    assert len(taken) == (1 + 2 * 4) * (STEPS + 1)
    # A kill between the step's two files repeats that one step; nothing else may repeat.
    assert sum(taken.values()) - len(taken) <= 2
    states = Counter(trial.state for trial in open_study(tmp_path / "sweeps" / "s", "s").trials)
    assert states[TrialState.COMPLETE] == 5
    assert states[TrialState.FAIL] in (1, 2)
    assert states[TrialState.RUNNING] == states[TrialState.WAITING] == 0


def test_a_second_sweep_in_the_same_place_is_refused(tmp_path: Path) -> None:
    with only_sweep(tmp_path), pytest.raises(SweepError, match="another sweep is running in"), only_sweep(tmp_path):
        pass
    with only_sweep(tmp_path):
        pass


def test_a_damaged_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("this is not a database, and it is long enough to be looked at" * 50)
    with pytest.raises(SweepError, match=r"study\.db cannot be opened"):
        open_study(tmp_path, "s")

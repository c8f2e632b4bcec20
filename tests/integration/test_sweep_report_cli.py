"""`calm sweep report`, `export` and `best` on a study in a real storage: while it runs, and with nothing there yet."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from calm_lightning.cli.main import FrontDoor
from calm_lightning.cli.sweep_report import best, export, report
from sweeps.artifacts import CONFIG
from sweeps.config import SweepConfig, sweep_to_yaml
from sweeps.directory import Session, write_session
from sweeps.front.series import PRUNED, Series
from sweeps.trials.record import Planned, TrialRecord, open_record

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from synthetic_sweeps import grid

app = typer.Typer(cls=FrontDoor)
for command in (report, export, best):
    app.command()(command)


def planned(one: Series) -> Planned:
    return Planned(
        key=f"{one.slug}-{one.seed}",
        point=one.trial,
        slug=one.slug,
        label=one.label,
        seed=one.seed,
        stage=one.stage,
        values=one.values,
        params={},
        distributions={},
        autoencoder=one.autoencoder_dir,
        train_flops=one.final.train_flops,
        draw={},
    )


def end(record: TrialRecord, one: Series) -> None:
    trial = next(trial for trial in record.trials() if trial.user_attrs["key"] == f"{one.slug}-{one.seed}")
    record.begin(trial, "worker")
    values = [one.final.train_flops, one.final.brier_lm]
    if one.state == PRUNED:
        record.prune(trial, one, values, {})
    else:
        record.complete(trial, one, values)


def make_sweep(work_dir: Path, name: str, series: Sequence[Series], done: int) -> Path:
    """A sweep's directory as its coordinator and workers leave it, with the first `done` trials ended."""
    directory = work_dir / "sweeps" / name
    directory.mkdir(parents=True)
    sweep = SweepConfig(name=name, title="A synthetic sweep", space={"model": {"K": [1, 2, 4, 8], "N": [2, 8, 12]}})
    (directory / CONFIG).write_text(sweep_to_yaml(sweep))
    write_session(directory, Session(name, str(work_dir), "corpus", "hash", 1024, None, len(series), 0.0))
    record = open_record(directory, sweep.storage, name, sweep.objectives)
    for one in series:
        record.add(planned(one))
    for one in series[:done]:
        end(record, one)
    if done < len(series):
        trial = next(t for t in record.trials() if t.user_attrs["key"] == f"{series[-1].slug}-{series[-1].seed}")
        record.begin(trial, "worker")
        if done:
            record.fail(trial, "the loss became NaN at step 7")
    return directory


def calm(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "80"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_report_of_a_sweep_that_still_runs(tmp_path: Path) -> None:
    series = grid()
    directory = make_sweep(tmp_path, "some-sweep", series, done=len(series) - 3)
    code, output = calm("report", "some-sweep", "--work-dir", str(tmp_path))
    assert code == 0, output
    assert "2 trials are missing" in output
    assert "the loss became NaN at step 7" in output
    assert max(map(len, output.split(str(directory))[0].splitlines())) <= 80
    made = {path.name for path in (directory / "report").iterdir()}
    assert made == {
        *("report.html", "front.png", "history.png", "slices.png", "importance.png", "parallel.png"),
        *("evaluations.csv", "evaluations.parquet", "trials.csv", "trials.parquet"),
    }
    assert len(pd.read_parquet(directory / "report" / "trials.parquet")) == len(series) - 2


def test_two_sweeps_go_to_the_place_they_are_told(tmp_path: Path) -> None:
    places = [str(make_sweep(tmp_path, name, grid(Ns=(8,)), done=5)) for name in ("first", "second")]
    code, output = calm("report", *places)
    assert code == 2
    assert "add --out DIRECTORY" in output
    code, output = calm("report", *places, "--out", str(tmp_path / "both"))
    assert code == 0, output
    assert "A: " in output
    assert (tmp_path / "both" / "report.html").is_file()


def test_export_and_best(tmp_path: Path) -> None:
    series = grid()
    place = str(make_sweep(tmp_path, "some-sweep", series, done=len(series)))
    out = tmp_path / "evaluations.parquet"
    code, output = calm("export", place, "--out", str(out))
    assert code == 0, output
    assert len(pd.read_parquet(out)) == sum(len(one.points) for one in series)
    code, output = calm("export", place, "--out", str(tmp_path / "trials.csv"), "--trials")
    assert len(pd.read_csv(tmp_path / "trials.csv")) == len(series)
    code, output = calm("best", place, "--json")
    assert code == 0, output
    answer = json.loads(output)
    assert answer["best"]["values"] == {"model.K": 4, "model.N": 12}
    assert answer["commands"][-1].endswith("runs/K4-N12-0/config.yaml")
    code, output = calm("best", place, "--budget", "2e13")
    assert code == 0, output
    assert "To train it again:" in output


@pytest.mark.parametrize("arguments", [["report"], ["best"], ["export", "--out", "x.csv"]])
def test_nothing_finished_is_one_sentence(tmp_path: Path, arguments: list[str]) -> None:
    place = str(make_sweep(tmp_path, "empty", grid(), done=0))
    code, output = calm(arguments[0], place, *arguments[1:])
    assert code == 2
    assert "has a result yet (13 to come)" in " ".join(output.split())


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    place = str(make_sweep(tmp_path, "some-sweep", grid(Ns=(8,)), done=5))
    for arguments, part in (
        (["export", place, "--out", str(tmp_path / "x.xlsx")], "must end in one of"),
        (["best", place, "--budget", "-1"], "must be above 0"),
        (["best", place, "--budget", "1e6"], "the cheapest that does costs"),
        (["report", str(tmp_path / "nowhere")], "there is no sweep"),
    ):
        code, output = calm(*arguments)
        assert code == 2
        assert part in " ".join(output.split())

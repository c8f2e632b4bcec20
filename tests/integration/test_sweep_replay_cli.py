"""`calm sweep replay` on a real study: what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("optuna")

import typer
from typer.testing import CliRunner

from calm_lightning.cli.sweep_replay import replay
from calm_lightning.errors import CalmError, ConfigError, SweepError
from sweeps.artifacts import CONFIG
from sweeps.config import SweepConfig, sweep_to_yaml
from sweeps.directory import Session, write_session
from sweeps.front.series import Series
from sweeps.pruning.config import PruningConfig
from sweeps.pruning.synthetic import sweep
from sweeps.trials.record import Planned, open_record

app = typer.Typer()
app.command()(replay)


def write_sweep(directory: Path, series: list[Series]) -> Path:
    """Write the directory of a sweep that is complete."""
    directory.mkdir(parents=True)
    config = SweepConfig(name=directory.name, space={"model": {"K": [1, 2]}}, pruning=PruningConfig(min_finished=2))
    (directory / CONFIG).write_text(sweep_to_yaml(config))
    write_session(directory, Session(directory.name, "runs", "corpus", "hash", 256, None, len(series), 0.0))
    record = open_record(directory, config.storage, directory.name, config.objectives)
    for one in series:
        record.add(
            Planned(
                key=one.slug,
                point=one.trial,
                slug=one.slug,
                label=one.label,
                seed=0,
                stage=one.stage,
                values={},
                params={},
                distributions={},
                autoencoder="",
                train_flops=one.final.train_flops,
                draw={},
            )
        )
        trial = record.trials()[-1]
        record.begin(trial, "local-0")
        record.complete(trial, one, [one.final.train_flops, one.final.brier_lm])
    return directory


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    if isinstance(result.exception, CalmError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_replay_of_two_sweeps_in_tables_and_json(tmp_path: Path) -> None:
    places = [write_sweep(tmp_path / "sweeps" / f"power-{seed}", sweep(seed, "power", 12, 0.05)[0]) for seed in (0, 2)]
    text = call(str(places[0]), str(places[1]), "--replays", "5", "--sensitivity")
    assert "power-0, power-2" in text
    assert "every evaluation lies under the front" in " ".join(text.split())
    assert "warmup=0.1" in text

    named = ["power-0", "power-2", "--work-dir", str(tmp_path)]
    found = json.loads(call(*named, "--replays", "5", "--json", "--set", "warmup=0"))
    assert found["settings"]["min_finished"] == 2, "the sweep's own setting"
    assert found["settings"]["warmup"] == 0
    assert found["sweeps"] == 2
    assert len(found["outcomes"]) == found["trials"] == 24
    stopped = [one for one in found["outcomes"] if one["share"] > 0]
    assert stopped
    assert all(one["at"] < one["final"] and one["reason"] for one in stopped)
    assert found["stopped"]["events"] == pytest.approx(sum(one["share"] for one in stopped))


def test_what_cannot_be_replayed_is_said_in_one_sentence(tmp_path: Path) -> None:
    place = write_sweep(tmp_path / "short", sweep(0, "power", 1)[0])
    with pytest.raises(SweepError, match="short has 1 complete trials"):
        call(str(place))
    with pytest.raises(ConfigError, match="optimism"):
        call(str(write_sweep(tmp_path / "two", sweep(0, "power", 2)[0])), "--set", "optimism=0.1")
    with pytest.raises(SweepError, match="there is no sweep"):
        call(str(tmp_path / "nothing"))

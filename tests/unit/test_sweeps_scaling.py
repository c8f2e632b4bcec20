"""`calm sweep scaling` around the law: tables read, files written, the figure, what is printed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from calm_lightning.cli.sweep_scaling import scaling
from calm_lightning.errors import SweepError
from sweeps.front.series import Series
from sweeps.report.tables import write_points
from sweeps.scaling.advice import advise
from sweeps.scaling.fitting import fit
from sweeps.scaling.places import read_places, read_points
from sweeps.scaling.settings import FitSettings
from sweeps.scaling.synthetic import Truth, sweep, trial
from sweeps.scaling.tables import law_in_words, to_document

POWER = FitSettings(law="moving-optimum", draws=100)
FLAT = Truth(a=0.62, b=0.2, c=0.0, d=0.0, e=0.0)
COSTS = np.linspace(3e13, 3e14, 6).tolist()


def models(seeds: int = 2) -> list[Series]:
    random = np.random.default_rng(0)
    calm = sweep(Truth(), random, seeds=seeds)
    return [*calm, *(trial(FLAT, None, seed, COSTS, random) for seed in range(seeds))]


def command(*words: str) -> tuple[str, BaseException | None]:
    app = typer.Typer()
    app.command()(scaling)
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "110"})
    return result.stdout, result.exception


def test_a_table_of_evaluations_gives_the_same_fit(tmp_path: Path) -> None:
    made = models()
    write_points(tmp_path / "points.csv", made)
    again = read_places([tmp_path / "points.csv"])
    assert len(again) == len(made)
    found = fit(again, POWER)
    assert found.curve == fit(made, POWER).curve
    document = to_document(found, [advise(found, 1e14)])
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert "k = log2(K / 2.83)" in law_in_words(found)


def test_damaged_tables_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("model,stage,K\na,calm,2\n")
    with pytest.raises(SweepError, match="has no column"):
        read_points(path)
    head = "model,stage,K,parameters,step,train_flops,brier_lm,brier_lm_se\n"
    path.write_text(f"{head}a,calm,2,100,1,1e12,3.0,0.1\na,calm,2,100,2,many,3.0,0.1\n")
    with pytest.raises(SweepError, match="line 3: could not convert"):
        read_points(path)
    with pytest.raises(SweepError, match="does not exist"):
        read_places([tmp_path / "absent"])


def test_scores_of_different_protocols_are_not_mixed(tmp_path: Path) -> None:
    made = models()[:2]
    for number, block in enumerate((384, 256)):
        place = tmp_path / str(number)
        place.mkdir()
        (place / "result.json").write_text(json.dumps({"protocol": {"block_tokens": block}}))
        made[number] = replace(made[number], run_dir=str(place))
    write_points(tmp_path / "points.csv", made)
    with pytest.raises(SweepError, match="block_tokens is 384 and 256"):
        read_places([tmp_path / "points.csv"])


def test_the_figure_is_a_function_of_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from sweeps.scaling.figures import draw_png

    made = models()
    found = fit(made, POWER)
    for name in ("a.png", "b.png"):
        draw_png(tmp_path / name, found, made, [advise(found, 1e15)])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    lone = fit(made[:8], replace(POWER, law="flops"))
    draw_png(tmp_path / "c.png", lone, made[:8], [advise(lone, 1e14)])
    assert "the law has no term for K" in advise(lone, 1e14).verdict


def test_the_command_prints_answers_and_writes_files(tmp_path: Path) -> None:
    write_points(tmp_path / "points.csv", models())
    out = tmp_path / "answer"
    words = [str(tmp_path / "points.csv"), "--budget", "1e14", "--budget", "1e15", "--out", str(out)]
    text, error = command(*words, "--law", "moving-optimum")
    assert error is None
    for part in ("Law: moving-optimum", "1e14 training FLOPs", "1e15 training FLOPs", "* beyond", "overtake"):
        assert part in text
    assert max(map(len, text.splitlines()[:-2])) <= 110
    assert sorted(path.name for path in out.iterdir()) == ["scaling.json", "scaling.png"]
    document, error = command(*words, "--json")
    assert error is None
    assert json.loads(document) == json.loads((out / "scaling.json").read_text())
    assert [one["budget"] for one in json.loads(document)["advice"]] == [1e14, 1e15]


def test_a_refusal_writes_nothing(tmp_path: Path) -> None:
    write_points(tmp_path / "points.csv", models(seeds=1))
    _, error = command(str(tmp_path / "points.csv"), "--out", str(tmp_path / "answer"))
    assert isinstance(error, SweepError)
    assert "K = 1 has 1 of 2 trials" in str(error)
    assert not (tmp_path / "answer").exists()
    write_points(tmp_path / "points.csv", models())
    _, error = command(str(tmp_path / "points.csv"), "--budget", "1e30", "--out", str(tmp_path / "answer"))
    assert isinstance(error, SweepError)
    assert not (tmp_path / "answer").exists()

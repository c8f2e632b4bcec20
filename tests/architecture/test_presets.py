"""Every YAML file in conf/ loads, and the one vocabulary of logged names has a unit for each."""

from __future__ import annotations

from pathlib import Path

import pytest

from calm_lightning.config import conf_dir, find_preset, list_presets, load_config, read_yaml, to_yaml
from calm_lightning.language_model.heads.registry import HEADS
from calm_lightning.metrics import names
from data_pipelines.cleaning.clean import Cleaning
from data_pipelines.writing.settings import read_cleaning
from sweeps.config import find_sweep, list_sweeps, load_sweep, sweep_to_yaml
from sweeps.space.points import PointMaker, grid


@pytest.mark.parametrize("preset", list_presets())
def test_preset_resolves_and_reads_back(preset: str, tmp_path: Path) -> None:
    config = load_config([preset])
    again = tmp_path / "resolved.yaml"
    again.write_text(to_yaml(config))
    assert load_config([str(again)]) == config


@pytest.mark.parametrize("preset", list_presets())
def test_preset_says_what_it_is_and_holds_differences_only(preset: str) -> None:
    path = find_preset(preset)
    assert path.read_text().startswith("# "), "the first line is what `calm config --presets` shows"
    given = read_yaml(path)
    parents = given.pop("extends", [])
    below = load_config([parents] if isinstance(parents, str) else list(parents))
    assert load_config([preset]) != below, "it changes nothing"


@pytest.mark.parametrize("path", sorted((conf_dir() / "cleaning").glob("*.yaml")), ids=lambda path: path.stem)
def test_cleaning_rules_load_and_say_what_they_are(path: Path) -> None:
    assert path.read_text().startswith("# ")
    assert read_cleaning(path, {}) != Cleaning(), "they change nothing"


@pytest.mark.parametrize("sweep", list_sweeps())
def test_sweep_loads_and_its_points_are_valid(sweep: str, tmp_path: Path) -> None:
    name, _, preset = sweep.partition("/")
    config = load_sweep(find_sweep(name, preset))
    maker = PointMaker(config, tmp_path / "corpus", tmp_path / "runs", vocabulary=1024)
    made = [maker.make(values) for values in grid(maker)]
    assert made
    assert any(not point.refused for point in made)
    again = tmp_path / "resolved.yaml"
    again.write_text(sweep_to_yaml(config))
    assert load_sweep(again) == config


def test_no_file_in_conf_is_left_out() -> None:
    files = {
        path.relative_to(conf_dir()).with_suffix("").as_posix() for path in conf_dir().rglob("*") if path.is_file()
    }
    others = {f"cleaning/{path.stem}" for path in (conf_dir() / "cleaning").glob("*.yaml")}
    assert files == {*list_presets(), *others, *(f"sweep/{sweep}" for sweep in list_sweeps())}


def test_every_logged_name_has_a_unit() -> None:
    single = {value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)}
    several = {name for value in vars(names).values() if isinstance(value, tuple) for name in value}
    by_head = set(names.VAL_HEAD_LOSS.values())
    assert set(names.VAL_HEAD_LOSS) == set(HEADS)
    assert single | several | by_head == set(names.UNITS)
    assert all(unit for unit in names.UNITS.values())

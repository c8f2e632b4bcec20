"""The prose is true where a machine can tell: links lead somewhere, commands parse, nothing that exists is left out."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
import typer
import yaml
from typer.core import TyperGroup

from calm_lightning.cli.main import app
from calm_lightning.config import RunConfig, list_presets, load_config
from calm_lightning.errors import ConfigError
from sweeps.config import find_sweep, list_sweeps, load_sweep
from sweeps.space.points import PointMaker
from sweeps.trials.planner import fixed_points, planned_trials
from sweeps.validation import validate_sweep

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)?(#[^)\s]+)?\)")


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[tuple[list[str], str]]:
    """Yield the words of every `calm` command in the page's code blocks, and the error shown below it, if any."""
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language in ("", "sh", "console"):
            lines = [*block.replace("\\\n", " ").splitlines(), ""]
            for line, below in pairwise(lines):
                for part in line.removeprefix("$ ").split(" && "):
                    if part.startswith("calm "):
                        yield shlex.split(part, comments=True)[1:], below if below.startswith("error: ") else ""


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for target, anchor in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        place = (page.parent / target).resolve() if target else page
        if not place.exists() or (anchor and place.suffix == ".md" and anchor[1:] not in anchors(place)):
            dead.append(target + anchor)
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_parse_and_their_configurations_resolve(page: Path) -> None:
    root = typer.main.get_command(app)
    for words, error in commands(page):
        if words[0].startswith("-"):
            continue
        context, group, rest = root.make_context("calm", list(words)), root, list(words)
        while isinstance(group, TyperGroup):
            name, command, rest = group.resolve_command(context, rest)
            assert command is not None
            # raises on an unknown option, a missing argument or a value of the wrong type
            context, group = command.make_context(name, list(rest), parent=context), command
        given = context.params
        if words[0] in ("train", "config"):
            stage = {"stage": str(given["stage"])} if given["stage"] else {}
            with pytest.raises(ConfigError) if error else nullcontext() as caught:
                load_config(given["arguments"] or [], **stage)
            assert not error or f"error: {caught.value}" == error
        if words[0] == "reproduce":
            load_sweep(find_sweep(given["name"], given["preset"]), given["overrides"] or [])
        if words[:2] == ["sweep", "run"] and not given["name"].endswith(".yaml"):
            validate_sweep(load_sweep(find_sweep(given["name"], given["preset"]), given["overrides"] or []))


def test_sweep_files_in_the_docs_make_points(tmp_path: Path) -> None:
    found = 0
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            if language == "yaml" and "\nspace:" in block and block.startswith("name:"):
                path = tmp_path / f"{found}.yaml"
                path.write_text(block)
                sweep = load_sweep(path)
                validate_sweep(sweep)
                maker = PointMaker(sweep, tmp_path, tmp_path, vocabulary=257)
                assert planned_trials(maker)
                assert not any(point.refused for point in fixed_points(maker))
                found += 1
    assert found


def test_every_preset_and_sweep_is_described() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    missing = [name for name in (*list_presets(), *list_sweeps()) if f"`{name}`" not in text]
    assert not missing


def test_every_key_is_listed_with_its_default() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([\w.]+)` \| `?([^|`]*)`? \|", text, re.M))
    expected = {}
    for section, value in asdict(RunConfig()).items():
        nested = isinstance(value, dict)
        expected |= {f"{section}.{key}": below for key, below in value.items()} if nested else {section: value}
    assert set(listed) == set(expected)
    for key, default in expected.items():
        assert yaml.safe_load(listed[key] or "''") == default, key


def test_every_page_is_linked_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"docs/{page.name}" not in text] == []


def test_ci_installs_and_tests_as_the_readme_says() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (command,) = [line for line in readme.splitlines() if line.endswith("&& pytest")]
    _, _, install, test = command.split(" && ")
    assert f"\n{install}\n" in script
    assert f"\n{test} --junitxml=junit.xml" in script


def test_constraints_are_exact_and_name_every_dependency() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "no URL, path, local version or range"
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    named = {re.sub(r"[-_.]+", "-", re.split(r"[\[>=<]", one)[0]).lower() for one in wanted}
    assert named - {"calm-lightning"} <= pinned

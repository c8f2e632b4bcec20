"""The house rules, read from the source: which room may import which, how large things may be, what is written down.

`docs/architecture.md` is the same map for readers.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("calm_lightning", "sweeps", "data_pipelines")

LEVELS = {
    "errors": 0,
    "data": 1,
    "backbone": 1,
    "autoencoder": 2,
    "language_model": 2,
    "sampling": 3,
    "metrics": 3,
    "flops": 3,
    "stages": 4,
    "tracking": 4,
    "checkpoints": 4,
    "diagnostics": 4,
    "config": 5,
    "assembly": 6,
    "models": 7,
    "finishing": 7,
    "run": 8,
    "programs": 9,
    "cli": 10,
}
"""A room of calm_lightning imports only itself and rooms on lower levels."""

ONLY_IN = {
    "mlflow": ("calm_lightning.tracking",),
    "pydantic": ("calm_lightning.tracking",),
    "optuna": ("sweeps",),
    "simpleeval": ("sweeps.space.expressions",),
    "sqlalchemy": ("sweeps.trials.storage",),
    "ray": ("sweeps.launchers",),
    "submitit": ("sweeps.launchers",),
    "optuna_dashboard": ("sweeps.watch.optuna_dashboard",),
    "plotly": ("sweeps",),
    "matplotlib": (
        "sweeps",
        "calm_lightning.diagnostics.figures",
        "calm_lightning.tracking.outbox.figure",
        "data_pipelines.inspecting.figures",
    ),
    "webdataset": ("data_pipelines.writing.write",),
    "fsspec": ("calm_lightning.data.files.remote", "data_pipelines.reading.remote"),
    "rensa": ("data_pipelines.cleaning.dedup",),
    "lightning": (
        "calm_lightning.stages",
        "calm_lightning.data.datamodule",
        "calm_lightning.tracking",
        "calm_lightning.assembly",
        "calm_lightning.run",
        "calm_lightning.cli",
    ),
    "tiktoken": ("calm_lightning.data.tokenizers",),
    "torchmetrics": ("calm_lightning.metrics",),
}
"""Where alone an outside library may be imported: each can be replaced in one place."""

PIPELINES_MAY_USE = (
    "calm_lightning.data.shards",
    "calm_lightning.data.files.remote",
    "calm_lightning.data.tokenizers",
    "calm_lightning.data.encoding",
    "calm_lightning.errors",
)
"""Rooms of calm_lightning that need no torch; beside them, the package's version."""
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


@dataclass(frozen=True)
class Import:
    """One import statement's target, and whether it is executed when the module is imported."""

    target: str
    line: int
    eager: bool


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    path: Path
    tree: ast.Module
    imports: tuple[Import, ...]

    def __str__(self) -> str:
        return self.name


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _imports(node: ast.AST, eager: bool, known: frozenset[str]) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, eager) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import at line {child.lineno}"
            base = child.module or ""
            for alias in child.names:
                nested = f"{base}.{alias.name}"
                yield Import(nested if nested in known else base, child.lineno, eager)
        else:
            lazy = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) or _is_type_checking(child)
            yield from _imports(child, eager and not lazy, known)


@cache
def modules() -> dict[str, Module]:
    """Return every module of the packages by its dotted name."""
    paths = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    known = frozenset(paths)
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    return {name: Module(name, paths[name], trees[name], tuple(_imports(trees[name], True, known))) for name in paths}


def within(name: str, place: str) -> bool:
    return name == place or name.startswith(place + ".")


def room(name: str) -> str:
    """Return the room of a module of calm_lightning; the package itself has none."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def found(rule: str, problems: list[str]) -> None:
    assert not problems, f"{rule}:\n" + "\n".join(problems)


def functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def test_every_room_has_a_level() -> None:
    rooms = {room(name) for name in modules() if within(name, "calm_lightning")} - {""}
    assert rooms == set(LEVELS)


def test_rooms_import_lower_rooms_only() -> None:
    problems = []
    for module in modules().values():
        if not within(module.name, "calm_lightning") or not room(module.name):
            continue
        for one in module.imports:
            theirs = room(one.target) if within(one.target, "calm_lightning") else ""
            if theirs and theirs != room(module.name) and LEVELS[theirs] >= LEVELS[room(module.name)]:
                problems.append(f"{module}:{one.line} imports {one.target}")
    found("a room imports only rooms on lower levels", problems)


def test_packages_import_in_one_direction() -> None:
    problems = []
    for module in modules().values():
        for one in module.imports:
            if within(module.name, "calm_lightning") and room(module.name) != "cli":
                wrong = one.target.split(".")[0] in ("sweeps", "data_pipelines")
            elif within(module.name, "data_pipelines"):
                inside = within(one.target, "calm_lightning")
                allowed = one.target == "calm_lightning" or any(within(one.target, room) for room in PIPELINES_MAY_USE)
                wrong = within(one.target, "sweeps") or (inside and not allowed)
                wrong = wrong or one.target.split(".")[0] in ("torch", "lightning")
            elif within(module.name, "sweeps"):
                wrong = within(one.target, "calm_lightning.cli") or one.target.split(".")[0] == "torch"
            else:
                continue
            if wrong:
                problems.append(f"{module}:{one.line} imports {one.target}")
    found("sweeps -> calm_lightning <- data_pipelines", problems)


@pytest.mark.parametrize("library", ONLY_IN)
def test_library_is_imported_in_its_rooms_only(library: str) -> None:
    problems, users = [], 0
    for module in modules().values():
        for one in module.imports:
            if within(one.target, library):
                users += 1
                if not any(within(module.name, place) for place in ONLY_IN[library]):
                    problems.append(f"{module}:{one.line}")
    found(f"{library} only in {', '.join(ONLY_IN[library])}", problems)
    assert users, f"nothing imports {library} any more: drop its rule"


def test_training_needs_neither_mlflow_nor_optuna() -> None:
    loaded, waiting = set(), ["calm_lightning.run"]
    while waiting:
        name = waiting.pop()
        if name in modules() and name not in loaded:
            loaded.add(name)
            waiting += [one.target for one in modules()[name].imports if one.eager]
    outside = {one.target.split(".")[0] for name in loaded for one in modules()[name].imports if one.eager}
    assert not outside & {"mlflow", "optuna", "plotly", "matplotlib", "tiktoken"}


def test_front_door_imports_typer_and_the_standard_library_only() -> None:
    problems = []
    for module in modules().values():
        if room(module.name) == "cli":
            for one in module.imports:
                top = one.target.split(".")[0]
                ours = within(one.target, "calm_lightning.cli") or one.target in (
                    "calm_lightning",
                    "calm_lightning.errors",
                )
                if one.eager and not (ours or top == "typer" or top in sys.stdlib_module_names):
                    problems.append(f"{module}:{one.line} imports {one.target} at module level")
    found("help must be instant", problems)


def test_no_import_cycles() -> None:
    graph = {
        module.name: {one.target for one in module.imports if one.eager and one.target in modules()} - {module.name}
        for module in modules().values()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_sizes() -> None:
    problems = []
    for module in modules().values():
        lines = module.path.read_text(encoding="utf-8").count("\n")
        if lines > LONGEST_FILE:
            problems.append(f"{module}: {lines} lines")
        for node in functions(module):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > LONGEST_FUNCTION:
                problems.append(f"{module}:{node.lineno} {node.name}: {length} lines")
    found(f"files of at most {LONGEST_FILE} lines, functions of at most {LONGEST_FUNCTION}", problems)


def test_every_function_is_annotated() -> None:
    problems = []
    for module in modules().values():
        for node in functions(module):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            arguments += [extra for extra in (node.args.vararg, node.args.kwarg) if extra]
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if bare or node.returns is None:
                problems.append(f"{module}:{node.lineno} {node.name}: {', '.join(bare) or 'its result'}")
    found("everything is annotated", problems)


def _undocumented(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            overload = any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in node.decorator_list)
            if not ast.get_docstring(node) and not overload:
                yield f"{prefix}:{node.lineno} {node.name}"
            if isinstance(node, ast.ClassDef):
                yield from _undocumented(node.body, prefix)


def test_everything_public_has_a_docstring() -> None:
    problems = []
    for module in modules().values():
        if not ast.get_docstring(module.tree):
            problems.append(f"{module}: the module")
        problems += _undocumented(module.tree.body, module.name)
    found("public things are documented", problems)


def test_nothing_is_left_for_later() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError")
    problems = [
        f"{module}:{number} {line.strip()}"
        for module in modules().values()
        for number, line in enumerate(module.path.read_text(encoding="utf-8").splitlines(), start=1)
        if marks.search(line)
    ]
    found("finished or absent", problems)


def test_no_room_for_odds_and_ends() -> None:
    names = {module.path.stem for module in modules().values()}
    assert not names & {"utils", "util", "common", "helpers", "misc"}


def test_exceptions_are_not_swallowed() -> None:
    problems = []
    for module in modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler):
                wide = node.type is None or (isinstance(node.type, ast.Name) and node.type.id.endswith("Exception"))
                if wide and all(isinstance(statement, ast.Pass) for statement in node.body):
                    problems.append(f"{module}:{node.lineno}")
    found("no handler hides every error", problems)

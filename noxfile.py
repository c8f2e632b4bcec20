"""Development sessions: `nox` runs the quick ones, `nox -s NAME` any one, `nox -l` lists them.

Environments are kept between calls; within an environment that has everything, `nox --no-venv --no-install -s NAME`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import nox

nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "docs", "tests"]

ROOT = Path(__file__).parent


def install(session: nox.Session) -> None:
    session.install("-c", "constraints.txt", "-e", ".[dev]")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; `nox -s tests -- -m 'not slow'` leaves the slow ones out."""
    install(session)
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check rules and format."""
    install(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly, in the three packages."""
    install(session)
    session.run("mypy", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Check that links resolve, commands parse and every preset is described."""
    install(session)
    session.run("pytest", "tests/architecture/test_docs.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run every benchmark at its smallest size."""
    session.install("-c", "constraints.txt", "-e", ".[dev,bench]")
    for script in sorted((ROOT / "benchmarks").glob("bench_*.py")):
        session.run("python", str(script), "--small", *session.posargs)


@nox.session
def quickstart(session: nox.Session) -> None:
    """Run the README's first command from a built wheel, in an empty directory: the wheel carries conf and sample."""
    with tempfile.TemporaryDirectory() as folder:
        session.run("pip", "wheel", "--no-deps", "--wheel-dir", folder, str(ROOT))
        (wheel,) = Path(folder).glob("calm_lightning-*.whl")
        session.install("-c", "constraints.txt", f"{wheel}[all]")
        session.install("--force-reinstall", "--no-deps", str(wheel))  # the version may be that of an older build
        session.chdir(folder)
        session.run("calm", "reproduce", "k4-sweet-spot", *session.posargs)
        session.chdir(ROOT)

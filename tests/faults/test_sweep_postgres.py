"""A sweep whose study is in a real PostgreSQL server that is killed with -9 in the midst of it, with its workers."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from test_sweep_killed import finish, outcome, start, steps_taken, worker_pids

from calm_lightning.errors import SweepError
from sweeps.trials.record import open_record
from sweeps.trials.storage import shown

pytest.importorskip("psycopg")


def _binaries() -> Path | None:
    """Where PostgreSQL's server is: beside its client, or where Debian puts it."""
    places = [Path(found).resolve().parent for found in (shutil.which("postgres"),) if found]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists()), None)


BINARIES = _binaries()
pytestmark = pytest.mark.skipif(BINARIES is None, reason="needs a PostgreSQL server (apt-get install postgresql)")


class Server:
    """A PostgreSQL server of its own on loopback; it refuses to run as root, so root starts it as somebody else."""

    def __init__(self, folder: Path) -> None:
        assert BINARIES is not None
        self.folder, self._process = folder, None
        self._user = "nobody" if os.getuid() == 0 else None
        if self._user:
            os.chown(folder, pwd.getpwnam(self._user).pw_uid, -1)
        self._run("initdb", "-D", str(folder / "data"), "-U", "calm", "--auth=trust", "--no-sync")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"postgresql://calm:secret@127.0.0.1:{self.port}/postgres"

    def _run(self, program: str, *arguments: str) -> None:
        assert BINARIES is not None
        subprocess.run(
            [str(BINARIES / program), *arguments],
            check=True,
            capture_output=True,
            user=self._user,
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        )

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c shared_buffers=16MB"
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", str(self.folder / "log"), "-o", options, "start"
        )

    def kill(self) -> None:
        """End the server and all that serves a connection, as the loss of its machine would."""
        pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
        for one in (pid, *map(int, children.stdout.split())):
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        until = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
            time.sleep(0.05)

    def stop(self) -> None:
        with suppress(subprocess.CalledProcessError):
            self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="calm-postgres-"))  # a short path: sockets' names are limited
    made = Server(folder)
    made.start()
    yield made
    made.stop()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_sweep_on_postgres_equals_one_on_sqlite(tmp_path: Path, server: Server) -> None:
    for name, storage in (("sqlite", "sqlite"), ("postgres", server.address)):
        folder = tmp_path / name
        folder.mkdir()
        finish(start(folder, f"storage={storage}", "name=same", seconds=0.0), folder)
    assert outcome(tmp_path / "postgres") == outcome(tmp_path / "sqlite")
    assert not list((tmp_path / "postgres").rglob("study.db"))
    holding = [
        path
        for path in (tmp_path / "postgres" / "runs").rglob("*")
        if path.is_file() and b"secret" in path.read_bytes()
    ]
    assert [path.name for path in holding] == ["session.json"]
    assert holding[0].stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_the_database_and_workers_are_killed_and_nothing_is_lost(tmp_path: Path, server: Server) -> None:
    reference = tmp_path / "reference"
    reference.mkdir()
    finish(start(reference, "name=killed", seconds=0.0), reference)
    folder, chance = tmp_path / "killed", random.Random(3)
    folder.mkdir()
    process = start(folder, f"storage={server.address}", "name=killed", seconds=0.1)
    for number in range(int(os.environ.get("CALM_TEST_KILLS", "6"))):
        time.sleep(chance.uniform(0.5, 2.5))
        if process.poll() is not None:
            break
        if number % 2 == 0:
            server.kill()
            time.sleep(chance.uniform(0.0, 1.5))
            server.start()
        elif victims := worker_pids(folder):
            with suppress(ProcessLookupError):
                os.kill(chance.choice(victims), signal.SIGKILL)
    finish(process, folder, 180)
    assert outcome(folder) == outcome(reference)
    assert max(steps_taken(folder).values()) == 1


def test_an_unreachable_database_is_one_sentence_without_its_password(server: Server, tmp_path: Path) -> None:
    assert "secret" not in shown(server.address)
    wrong = server.address.rsplit("/", 1)[0] + "/nowhere"
    with pytest.raises(SweepError, match=r'database "nowhere" does not exist.*mend or delete it') as caught:
        open_record(tmp_path, wrong, "study", ["brier_lm"])
    assert "secret" not in str(caught.value)

"""Every launcher keeps the same contract, with real processes, a real Ray and Slurm's package."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from slurm_cluster import is_missing, one_node_slurm

from calm_lightning.errors import ConfigError, SweepError
from sweeps.launchers.base import (
    DIED,
    DONE,
    ENDED,
    LEFT,
    RUNNING,
    STARTING,
    Launcher,
    WorkerSettings,
    WorkerStatus,
)
from sweeps.launchers.process import log_path
from sweeps.launchers.registry import launcher_class

TOY = (str(Path(__file__).parent / "launcher_worker.py"),)
LONG = 60.0


def until(condition: Callable[[], Any], seconds: float = LONG) -> Any:
    """Return what the condition returns as soon as it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.05)
    return value


def begun(directory: Path, name: str, number: int = 0) -> dict[str, Any]:
    """Return what a worker said of itself when it began for the nth time."""
    path = directory / f"begun-{name}-{number}.json"
    until(path.exists)
    return json.loads(path.read_text())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


COORDINATOR = """
import sys, time
from pathlib import Path
from sweeps.launchers.base import WorkerSettings
from sweeps.launchers.registry import launcher_class
name, directory, toy = sys.argv[1:4]
options = {"cluster": "local"} if name == "slurm" else {}
launcher = launcher_class(name)(WorkerSettings(Path(directory), 1, cores=1, options=options), program=(toy,))
launcher.start()
while True:
    launcher.poll()
    time.sleep(0.1)
"""


def outlived(name: str, directory: Path) -> dict[str, Any]:
    """Return a worker whose coordinator was killed."""
    coordinator = subprocess.Popen([sys.executable, "-c", COORDINATOR, name, str(directory), *TOY])
    try:
        worker = begun(directory, f"{name}-0")
    finally:
        coordinator.kill()
        coordinator.wait()
    return worker


class LauncherContract:
    """What every launcher does; a test class of each inherits it."""

    name = ""
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def make(self, tmp_path: Path) -> Iterator[Callable[..., Launcher]]:
        made: list[Launcher] = []

        def build(count: int = 2, **more: Any) -> Launcher:
            settings = WorkerSettings(tmp_path, count, **{"cores": 1, "options": dict(self.options), **more})
            factory: Any = launcher_class(self.name)
            made.append(factory(settings, program=TOY))
            return made[-1]

        yield build
        for launcher in made:
            launcher.stop(now=True)

    def states(self, launcher: Launcher) -> list[str]:
        return [status.state for status in launcher.poll()]

    def status(self, launcher: Launcher, number: int = 0) -> WorkerStatus:
        return launcher.poll()[number]

    def running(self, launcher: Launcher, directory: Path, count: int = 2) -> list[dict[str, Any]]:
        launcher.start()
        until(lambda: self.states(launcher) == [RUNNING] * count)
        return [begun(directory, f"{self.name}-{number}") for number in range(count)]

    def test_workers_run_until_there_is_nothing_more_to_do(self, make: Any, tmp_path: Path) -> None:
        launcher = make()
        first, second = self.running(launcher, tmp_path)
        assert first["pid"] != second["pid"]
        assert [status.name for status in launcher.poll()] == [f"{self.name}-0", f"{self.name}-1"]
        assert all(status.place for status in launcher.poll())
        assert first["environment"]["OMP_NUM_THREADS"] == first["environment"]["MKL_NUM_THREADS"] == "1"
        assert first["environment"]["OPENBLAS_NUM_THREADS"] == "1"
        assert "at work" in log_path(tmp_path, f"{self.name}-0").read_text()
        (tmp_path / "finish").touch()
        until(lambda: self.states(launcher) == [DONE, DONE])
        assert self.status(launcher).reason == ""
        launcher.replace(f"{self.name}-0")
        assert self.states(launcher) == [DONE, DONE], "one that is done is not replaced"
        launcher.stop(now=False)
        assert self.states(launcher) == [DONE, DONE]

    def test_killed_worker_is_noticed_and_replaced(self, make: Any, tmp_path: Path) -> None:
        launcher = make()
        first, second = self.running(launcher, tmp_path)
        os.kill(first["pid"], signal.SIGKILL)
        until(lambda: self.states(launcher) == [DIED, RUNNING])
        assert self.status(launcher).reason == "killed by SIGKILL, perhaps for want of memory"
        until(lambda: not alive(first["child"]))
        launcher.replace(f"{self.name}-1")
        launcher.replace(f"{self.name}-0")
        again = begun(tmp_path, f"{self.name}-0", 1)
        until(lambda: self.states(launcher) == [RUNNING, RUNNING])
        assert again["pid"] != first["pid"]
        assert alive(second["pid"]), "one that is alive is not replaced"
        assert log_path(tmp_path, f"{self.name}-0").read_text().count("at work") == 2, "its log is appended to"

    def test_failing_worker_says_why(self, make: Any, tmp_path: Path) -> None:
        (tmp_path / f"fail-{self.name}-1").touch()
        launcher = make()
        launcher.start()
        until(lambda: self.states(launcher) == [RUNNING, DIED])
        assert self.status(launcher, 1).reason == "exit status 1: RuntimeError: the toy is broken"

    def test_workers_that_are_asked_leave_and_save_their_place(self, make: Any, tmp_path: Path) -> None:
        launcher = make()
        first, second = self.running(launcher, tmp_path)
        launcher.stop(now=False)
        assert not alive(first["pid"]) and not alive(second["pid"])
        assert (tmp_path / f"left-{self.name}-0-0").exists() and (tmp_path / f"left-{self.name}-1-0").exists()
        assert self.states(launcher) == [LEFT, LEFT]
        until(lambda: not alive(first["child"]) and not alive(second["child"]))

    def test_workers_that_do_not_leave_are_ended(self, make: Any, tmp_path: Path) -> None:
        (tmp_path / "stubborn").touch()
        launcher = make(1)
        (worker,) = self.running(launcher, tmp_path, 1)
        launcher.stop(now=False, patience_seconds=1.0)
        until(lambda: not alive(worker["pid"]), 5)
        assert self.states(launcher) == [DIED]

    def test_stopping_now_ends_them_at_once(self, make: Any, tmp_path: Path) -> None:
        launcher = make()
        first, second = self.running(launcher, tmp_path)
        launcher.stop(now=True)
        assert not alive(first["pid"]) and not alive(second["pid"])
        assert not (tmp_path / f"left-{self.name}-0-0").exists()
        assert all(state in ENDED for state in self.states(launcher))
        launcher.stop(now=True)
        launcher.stop(now=False)

    def test_worker_asked_to_leave_by_somebody_else_can_be_replaced(self, make: Any, tmp_path: Path) -> None:
        launcher = make(1)
        (worker,) = self.running(launcher, tmp_path, 1)
        os.kill(worker["pid"], signal.SIGTERM)
        until(lambda: self.states(launcher) == [LEFT])
        assert "asked to leave" in self.status(launcher).reason
        launcher.replace(f"{self.name}-0")
        assert begun(tmp_path, f"{self.name}-0", 1)["pid"] != worker["pid"]


class TestLocal(LauncherContract):
    name = "local"

    def test_workers_share_out_cores(self, make: Any, tmp_path: Path) -> None:
        here = os.sched_getaffinity(0)
        if len(here) < 2:
            pytest.skip("one core cannot be shared out")
        first, second = self.running(make(cores=None), tmp_path)
        assert not set(first["cores"]) & set(second["cores"])
        assert set(first["cores"]) | set(second["cores"]) <= here
        assert len(first["cores"]) == len(second["cores"]) == len(here) // 2
        assert first["environment"]["OMP_NUM_THREADS"] == str(len(first["cores"]))
        assert os.sched_getaffinity(0) == here, "the coordinator keeps all"

    def test_more_workers_than_cores_are_refused(self, make: Any) -> None:
        launcher = make(count=len(os.sched_getaffinity(0)) + 1, cores=None)
        with pytest.raises(SweepError, match=r"launch.workers=\d+ is more than this machine's"):
            launcher.start()
        assert set(self.states(launcher)) == {STARTING}

    def test_worker_leads_a_session_of_its_own(self, make: Any, tmp_path: Path) -> None:
        (worker,) = self.running(make(1), tmp_path, 1)
        assert worker["group"] == worker["pid"]
        assert worker["environment"]["CALM_PARENT"] is None, "a worker's own children are not told of its parent"

    def test_stopped_worker_can_leave(self, make: Any, tmp_path: Path) -> None:
        launcher = make(1)
        (worker,) = self.running(launcher, tmp_path, 1)
        os.kill(worker["pid"], signal.SIGSTOP)
        launcher.stop(now=False)
        assert self.states(launcher) == [LEFT]

    def test_worker_leaves_when_its_coordinator_is_killed(self, tmp_path: Path) -> None:
        worker = outlived("local", tmp_path)
        until((tmp_path / "left-local-0-0").exists, 10)
        until(lambda: not alive(worker["pid"]) and not alive(worker["child"]), 10)

    def test_worker_that_does_not_leave_then_is_ended(self, tmp_path: Path) -> None:
        (tmp_path / "stubborn").touch()
        worker = outlived("local", tmp_path)
        until(lambda: not alive(worker["pid"]) and not alive(worker["child"]), 20)

    def test_log_that_cannot_be_written_is_one_sentence(self, make: Any, tmp_path: Path) -> None:
        (tmp_path / "workers").touch()
        with pytest.raises(SweepError, match=r"worker local-0 \(log .*\) cannot be started"):
            make().start()


class TestRay(LauncherContract):
    """In a session that this process has already, which saves starting one for every test."""

    name = "ray"

    @pytest.fixture(scope="class", autouse=True)
    def _session(self) -> Iterator[None]:
        ray = pytest.importorskip("ray")
        ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
        yield
        ray.shutdown()

    def test_variables_reach_the_worker(self, make: Any, tmp_path: Path) -> None:
        (worker,) = self.running(make(1, options={"environment": {"CALM_TEST": "here"}}), tmp_path, 1)
        assert worker["environment"]["CALM_TEST"] == "here"

    def test_cores_are_shared_out(self, make: Any, tmp_path: Path) -> None:
        (worker,) = self.running(make(1, cores=None), tmp_path, 1)
        assert worker["environment"]["OMP_NUM_THREADS"] == "3"

    @pytest.mark.parametrize(
        "more, said",
        [
            ({"count": 4}, "room for 3 workers with 1 CPU each, and launch.workers=4"),
            ({"gpus": 1.0}, "room for 0 workers with 1 CPU and 1 GPU each"),
            ({"options": {"resources": {"big": 1}}}, "room for 0 workers with 1 CPU and 1 big each"),
        ],
    )
    def test_what_can_never_fit_is_refused(self, make: Any, more: dict[str, Any], said: str) -> None:
        launcher = make(**more)
        with pytest.raises(SweepError, match=said):
            launcher.start()

    def test_cluster_that_grows_is_waited_for(self, make: Any) -> None:
        launcher = make(1, gpus=1.0, options={"wait_for_nodes": True})
        launcher.start()
        assert self.states(launcher) == [STARTING]
        until(lambda: "waits for a node with 1 CPU and 1 GPU" in self.status(launcher).reason)
        launcher.stop(now=False)
        assert self.states(launcher) == [LEFT]


def test_ray_starts_on_this_machine_alone_and_ends_with_the_run(tmp_path: Path) -> None:
    """In a process of its own: Ray decides when it is imported which addresses it listens on."""
    pytest.importorskip("ray")
    script = """
import signal, sys, time
from pathlib import Path
from sweeps.launchers.base import WorkerSettings
from sweeps.launchers.registry import launcher_class
before = signal.getsignal(signal.SIGTERM)
launcher = launcher_class("ray")(WorkerSettings(Path(sys.argv[1]), 1, cores=1), program=sys.argv[2:])
launcher.start()
import ray
while launcher.poll()[0].state == "starting" or not (Path(sys.argv[1]) / "begun-ray-0-0.json").exists():
    time.sleep(0.05)
print({node["NodeManagerAddress"] for node in ray.nodes()}, signal.getsignal(signal.SIGTERM) is before)
launcher.stop(now=False)
print(launcher.poll()[0].state, ray.is_initialized(), signal.getsignal(signal.SIGTERM) is before)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), *TOY], capture_output=True, text=True)
    assert done.stdout == "{'127.0.0.1'} True\nleft False True\n", done.stdout + done.stderr
    assert done.stderr == ""
    assert not alive(begun(tmp_path, "ray-0")["pid"])


@pytest.mark.slow
def test_ray_worker_ends_when_its_coordinator_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    worker = outlived("ray", tmp_path)
    until(lambda: not alive(worker["pid"]), 30)


@pytest.mark.slow
def test_ray_worker_comes_back_on_another_node_when_its_node_dies(tmp_path: Path, capfd: Any) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    room = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **room})
    nodes = {}
    for _ in range(2):
        node = cluster.add_node(num_cpus=1, **room)
        nodes[str(node.all_processes["raylet"][0].process.pid)] = node
    settings = WorkerSettings(tmp_path, 1, cores=1, options={"address": cluster.address})
    launcher = launcher_class("ray")(settings, program=TOY)
    try:
        launcher.start()
        first = begun(tmp_path, "ray-0")
        until(lambda: launcher.poll()[0].state == RUNNING)
        cluster.remove_node(nodes[first["environment"]["RAY_RAYLET_PID"]], allow_graceful=False)
        until(lambda: launcher.poll()[0].state == DIED)
        assert "node" in launcher.poll()[0].reason
        until(lambda: not alive(first["pid"]), 30)
        launcher.replace("ray-0")
        again = begun(tmp_path, "ray-0", 1)
        until(lambda: launcher.poll()[0].state == RUNNING)
        assert again["environment"]["RAY_RAYLET_PID"] in nodes.keys() - {first["environment"]["RAY_RAYLET_PID"]}
        launcher.stop(now=False)
        assert (tmp_path / "left-ray-0-1").exists()
        assert not ray.is_initialized()
        assert "raylet" not in capfd.readouterr().out, "pages of it would go through the display"
    finally:
        launcher.stop(now=True)
        cluster.shutdown()


@pytest.mark.slow
def test_ray_cluster_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        launcher = launcher_class("ray")(WorkerSettings(tmp_path, 1, options={"address": address}))
        with pytest.raises(SweepError, match=f"the Ray cluster {address} cannot be reached"):
            launcher.start()


class TestSlurmDryRun(LauncherContract):
    name = "slurm"
    options: ClassVar[dict[str, Any]] = {"cluster": "local"}

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("submitit")

    def test_worker_leaves_when_its_coordinator_is_killed(self, tmp_path: Path) -> None:
        worker = outlived("slurm", tmp_path)
        until((tmp_path / "left-slurm-0-0").exists, 10)
        until(lambda: not alive(worker["pid"]), 10)

    def test_part_of_a_gpu_is_refused(self, make: Any) -> None:
        with pytest.raises(SweepError, match=r"launch\.gpus=0\.5 must be"):
            make(gpus=0.5)

    def test_slurm_that_is_not_here_is_one_sentence(self, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(SweepError, match=r"there is no sbatch here: .* launch.options.cluster=local"):
            make(options={})


@pytest.mark.slow
@pytest.mark.skipif(bool(is_missing()), reason=is_missing())
class TestSlurm(LauncherContract):
    """A real Slurm of one node."""

    name = "slurm"

    @pytest.fixture(scope="class", autouse=True)
    def _cluster(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        pytest.importorskip("submitit")
        with pytest.MonkeyPatch.context() as patch, one_node_slurm(tmp_path_factory.mktemp("cluster")) as configuration:
            patch.setenv("SLURM_CONF", str(configuration))
            yield

    @pytest.mark.parametrize("how", ["preempted", "out of time"])
    def test_job_leaves_and_is_queued_again(self, make: Any, tmp_path: Path, how: str) -> None:
        launcher = make(1, cores=2)
        first = self.running(launcher, tmp_path, 1)[0]
        job = first["environment"]["SLURM_JOB_ID"]
        if how == "preempted":
            line = ["sbatch", "--partition=urgent", "--cpus-per-task=2", "--output=/dev/null", "--wrap=sleep 1"]
        else:
            line = ["scancel", "--signal=USR2", job]  # what Slurm sends when the time is nearly over
        subprocess.run(line, check=True, capture_output=True)
        until((tmp_path / "left-slurm-0-0").exists)
        until(lambda: self.states(launcher) == [STARTING])
        again = begun(tmp_path, "slurm-0", 1)
        assert again["environment"]["SLURM_JOB_ID"] == job
        assert alive(again["pid"]) and not alive(first["pid"]) and not alive(first["child"])
        until(lambda: self.states(launcher) == [RUNNING])

    def test_jobs_outlive_their_coordinator_and_are_found_again(self, make: Any, tmp_path: Path) -> None:
        first, second = self.running(make(2), tmp_path)
        fewer = make(1)
        fewer.start()
        until(lambda: self.states(fewer) == [RUNNING])
        until((tmp_path / "left-slurm-1-0").exists)
        assert alive(first["pid"]) and not list(tmp_path.glob("begun-*-1.json"))
        fewer.stop(now=False)
        assert not alive(first["pid"]) and not alive(second["pid"])

    def test_what_slurm_refuses_is_one_sentence(self, make: Any) -> None:
        with pytest.raises(SweepError, match=r"Slurm does not take the job of worker slurm-0: .*partition"):
            make(1, options={"partition": "nonesuch"}).start()

    def test_job_that_waits_says_for_what(self, make: Any, tmp_path: Path) -> None:
        launcher = make(2, cores=2)
        launcher.start()
        until(lambda: self.states(launcher) == [RUNNING, STARTING])
        until(lambda: "waits in the queue" in self.status(launcher, 1).reason)
        launcher.stop(now=False)
        assert self.states(launcher) == [LEFT, LEFT]


@pytest.mark.parametrize("name, package", [("ray", "ray"), ("slurm", "submitit")])
def test_missing_package_is_named(name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SweepError, match=rf"pip install 'calm-lightning\[{name}\]'"):
        launcher_class(name)(WorkerSettings(tmp_path, 1))


@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_unknown_option_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"launch.options: unknown key .*"):
        launcher_class(name)(WorkerSettings(tmp_path, 1, options={"adress": "auto", "partion": "x"}))

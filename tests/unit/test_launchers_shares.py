"""How cores, GPUs and nodes are shared out among workers, and how launchers are named and configured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from calm_lightning.errors import SweepError
from sweeps.launchers.base import WorkerSettings
from sweeps.launchers.config import LaunchConfig, launch_problems
from sweeps.launchers.machine import Machine, cpu_quota, visible_gpus
from sweeps.launchers.nodes import CPU, GPU, room, share_nodes
from sweeps.launchers.registry import LAUNCHERS, launcher_class, make_launcher

machines = st.builds(
    lambda here, part: Machine(tuple(range(100, 100 + here)), max(1, round(here * part))),
    st.integers(1, 64),
    st.floats(0.05, 1.0),
)


@given(machines, st.integers(1, 64))
def test_shared_cores_are_disjoint_and_equal(machine: Machine, count: int) -> None:
    if count > machine.limit:
        with pytest.raises(SweepError, match=f"ask for {machine.limit}"):
            machine.share_out(count)
        return
    shares = machine.share_out(count)
    assert len({len(share.cores) for share in shares}) == len({share.threads for share in shares}) == 1
    assert len(frozenset().union(*(share.cores for share in shares))) == sum(len(share.cores) for share in shares)
    assert sum(share.threads for share in shares) <= machine.limit < (shares[0].threads + 1) * count
    assert all(share.threads <= len(share.cores) and share.cores <= set(machine.cores) for share in shares)


@given(machines, st.integers(1, 64), st.integers(1, 64))
def test_cores_that_were_asked_for_are_given_and_shared_only_where_they_must_be(
    machine: Machine, count: int, cores: int
) -> None:
    if cores > machine.limit:
        with pytest.raises(SweepError, match=f"launch.cores={cores} is more than this machine has"):
            machine.share_out(count, cores)
        return
    shares = machine.share_out(count, cores)
    assert all(share.threads == cores <= len(share.cores) for share in shares)
    if count * cores <= machine.limit:
        assert len(frozenset().union(*(share.cores for share in shares))) == sum(len(share.cores) for share in shares)
    else:
        load = [sum(core in share.cores for share in shares) for core in machine.cores]
        assert max(load) - min(load) <= 1, "the load is spread"


@pytest.mark.parametrize(
    "here, count, gpus, expected",
    [
        (0, 2, None, [None, None]),
        (4, 2, None, ["g0,g1", "g2,g3"]),
        (3, 2, None, ["g0", "g1"]),
        (2, 3, None, ["g0", "g1", "g0"]),
        (4, 2, 1.0, ["g0", "g1"]),
        (4, 2, 0.0, ["", ""]),
        (2, 4, 0.5, ["g0", "g0", "g1", "g1"]),
        (1, 3, 1 / 3, ["g0", "g0", "g0"]),
        (2, 2, 0.7, ["g0", "g1"]),
    ],
)
def test_gpus_are_shared_out(here: int, count: int, gpus: float | None, expected: list[str | None]) -> None:
    machine = Machine(tuple(range(8)), 8, tuple(f"g{number}" for number in range(here)))
    assert [share.gpus for share in machine.share_out(count, None, gpus)] == expected


@pytest.mark.parametrize("here, count, gpus", [(0, 1, 1.0), (1, 2, 1.0), (3, 2, 2.0), (1, 3, 0.5)])
def test_too_few_gpus_are_one_sentence(here: int, count: int, gpus: float) -> None:
    machine = Machine(tuple(range(8)), 8, tuple(f"g{number}" for number in range(here)))
    with pytest.raises(SweepError, match=f"launch.workers={count} with launch.gpus={gpus:g} need more than"):
        machine.share_out(count, None, gpus)


@pytest.mark.parametrize(
    "named, expected",
    [("", []), ("0,1", ["0", "1"]), ("2, GPU-ab", ["2", "GPU-ab"]), ("1,-1,0", ["1"]), ("-1", [])],
)
def test_visible_gpus_are_respected(named: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == expected


def test_gpus_are_counted_without_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    command = tmp_path / "nvidia-smi"
    listed = "GPU 0: NVIDIA H100 (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-1)\nGPU 1: NVIDIA H100 (UUID: GPU-2)"
    command.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] && echo '{listed}'\n")
    command.chmod(0o755)
    assert visible_gpus() == ["0", "1"]
    command.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert visible_gpus() == []


def test_quota_of_control_groups(tmp_path: Path) -> None:
    proc, root = tmp_path / "cgroup", tmp_path / "fs"
    (root / "slice" / "job").mkdir(parents=True)
    proc.write_text("0::/slice/job\n")
    assert cpu_quota(proc, root) is None
    (root / "slice" / "job" / "cpu.max").write_text("max 100000\n")
    assert cpu_quota(proc, root) is None
    (root / "slice" / "cpu.max").write_text("250000 100000\n")
    assert cpu_quota(proc, root) == 2.5, "the group around it counts too"
    (root / "slice" / "job" / "cpu.max").write_text("150000 100000\n")
    assert cpu_quota(proc, root) == 1.5
    (root / "cpu" / "docker").mkdir(parents=True)
    proc.write_text("4:cpu,cpuacct:/docker\n3:memory:/docker\n")
    for name, value in (("cpu.cfs_quota_us", "-1"), ("cpu.cfs_period_us", "100000")):
        (root / "cpu" / "docker" / name).write_text(value)
    assert cpu_quota(proc, root) is None
    (root / "cpu" / "cpu.cfs_quota_us").write_text("400000")
    (root / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert cpu_quota(proc, root) == 4
    proc.write_text("0::/somewhere/outside/this/container\n")
    (root / "cpu.max").write_text("300000 100000\n")
    assert cpu_quota(proc, root) == 3, "in a container the path leads nowhere, and the root is the container's"
    assert cpu_quota(tmp_path / "nothing", root) is None


def test_this_machine_follows_the_affinity_of_the_process() -> None:
    one = min(os.sched_getaffinity(0))
    script = "from sweeps.launchers.machine import Machine; m = Machine.this(); print(m.cores, m.limit)"
    affine = f"import os; os.sched_setaffinity(0, [{one}]); {script}"
    done = subprocess.run([sys.executable, "-c", affine], capture_output=True, text=True, check=True)
    assert done.stdout == f"({one},) 1\n"
    whole = Machine.this()
    assert set(whole.cores) == os.sched_getaffinity(0) and 1 <= whole.limit <= len(whole.cores)


nodes = st.lists(
    st.fixed_dictionaries({CPU: st.integers(0, 16).map(float), GPU: st.integers(0, 4).map(float)}),
    min_size=1,
    max_size=4,
)


@given(nodes, st.integers(1, 8), st.one_of(st.none(), st.integers(1, 8)))
def test_workers_of_a_cluster_are_as_large_as_they_all_can_be(
    nodes: list[dict[str, float]], count: int, cores: int | None
) -> None:
    settings = WorkerSettings(Path("/sweep"), count, cores)
    if room(nodes, {CPU: float(cores or 1)}) < count:
        with pytest.raises(SweepError, match=f"launch.workers={count}"):
            share_nodes(nodes, settings, {})
        return
    demand = share_nodes(nodes, settings, {})
    assert room(nodes, demand) >= count
    assert cores is None or demand[CPU] == cores
    if cores is None:
        assert room(nodes, {**demand, CPU: demand[CPU] + 1}) < count
    if demand[GPU] >= 1:
        assert demand[GPU] % 1 == 0 and room(nodes, {CPU: float(cores or 1), GPU: demand[GPU] + 1}) < count


def test_room_counts_what_a_node_can_hold_at_once() -> None:
    cluster = [{CPU: 4.0, GPU: 1.0}, {CPU: 3.0}, {CPU: 2.0, GPU: 2.0, "big": 1.0}]
    assert room(cluster, {CPU: 2}) == 4
    assert room(cluster, {CPU: 1, GPU: 0.5}) == 4
    assert room(cluster, {CPU: 1, GPU: 1 / 3}) == 5
    assert room(cluster, {CPU: 1, "big": 1}) == 1
    assert room([{CPU: 1.0, GPU: 1.0}], {CPU: 0.1, GPU: 0.1}) == 10, "rounding does not lose a worker"


def test_unknown_launcher_is_named_with_the_one_that_was_meant() -> None:
    with pytest.raises(SweepError, match=r"no launcher 'slrum'; did you mean slurm[?] known: local, ray, slurm"):
        launcher_class("slrum")
    with pytest.raises(SweepError, match="no launcher 'kubernetes'; known: local, ray, slurm"):
        launcher_class("kubernetes")


def test_launchers_are_imported_when_they_are_asked_for(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from sweeps.launchers.base import WorkerSettings; "
        "from sweeps.launchers.registry import make_launcher; "
        f"make_launcher('local', WorkerSettings(Path({str(tmp_path)!r}), 1, options={{'partition': 'x'}})); "
        "print({'ray', 'submitit', 'torch', 'optuna'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert make_launcher("local", WorkerSettings(tmp_path, 1)).poll()[0].name == "local-0"
    assert LAUNCHERS == ("local", "ray", "slurm")


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"workers": 0}, "launch.workers=0 must be at least 1"),
        ({"cores": 0}, "launch.cores=0 must be at least 1"),
        ({"gpus": -1.0}, "launch.gpus=-1 must be"),
        ({"gpus": 1.5}, "launch.gpus=1.5 must be a whole number"),
        ({"beat_seconds": 30.0}, "launch.dead_after_seconds=60 must be more than two beats"),
        ({"beat_seconds": 0.0}, "more than two beats"),
    ],
)
def test_settings_that_make_no_sense_are_named(changes: dict[str, float], said: str) -> None:
    config = OmegaConf.to_object(OmegaConf.structured(LaunchConfig(**changes)))  # type: ignore[arg-type]
    assert isinstance(config, LaunchConfig)
    (problem,) = launch_problems(config)
    assert said in problem


def test_default_settings_make_sense() -> None:
    assert launch_problems(LaunchConfig()) == []
    assert launch_problems(LaunchConfig(launcher="slurm", workers=8, cores=4, gpus=0.5)) == []

"""A sweep in a real Ray cluster of several nodes on this machine, of which one is killed with the trials on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from test_sweep_killed import finish, outcome, start, steps_taken, wait_for

from sweeps.directory import find_sweeps
from sweeps.work.progress import read_progress

ray = pytest.importorskip("ray")
ROOM = {"object_store_memory": 80 * 2**20}


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **ROOM})
    yield made
    made.shutdown()


@pytest.mark.slow
def test_a_node_is_killed_and_its_trials_go_on_elsewhere(tmp_path: Path, cluster: Any) -> None:
    reference = tmp_path / "reference"
    reference.mkdir()
    finish(start(reference, seconds=0.0), reference)
    nodes = [cluster.add_node(num_cpus=1, **ROOM) for _ in range(3)]
    folder = tmp_path / "ray"
    folder.mkdir()
    options = f"{{address: '{cluster.address}', environment: {{TINY_SECONDS: '0.15'}}}}"
    process = start(folder, "launch.launcher=ray", "launch.cores=1", f"launch.options={options}")

    def working() -> bool:
        return any(one.trial for sweep in find_sweeps(folder / "runs") for one in read_progress(sweep))

    wait_for(working, 90)
    time.sleep(1.0)
    for node in nodes[:2]:  # two workers on three nodes: at least one of them is on one of these two
        cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1, **ROOM)
    finish(process, folder, 240)
    assert outcome(folder) == outcome(reference)
    assert {state for _, state, _, _ in outcome(folder).values()} == {TrialState.COMPLETE}
    assert max(steps_taken(folder).values()) == 1
    assert "died" in (folder / "log").read_text() or "replaced" in (folder / "log").read_text()

"""A real Slurm of one node for tests, on the loopback address and in a directory of its own.

Needs root and the packages `slurm-wlm` and `munge` of Debian or Ubuntu.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "srun")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge/socket,cred_expire=6
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=main Nodes={host} Default=YES PriorityTier=1
PartitionName=urgent Nodes={host} PriorityTier=10
"""
"""A job that is queued again waits for as long as a credential lives, 120 s by default, and for its turn."""


def is_missing() -> str:
    """Return why there can be no such cluster here, "" where there can."""
    absent = [command for command in NEEDED if shutil.which(command) is None]
    if absent:
        return f"no {absent[0]}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root"


@contextmanager
def one_node_slurm(place: Path) -> Iterator[Path]:
    """Run a cluster of one node with two cores, and yield its configuration file for `SLURM_CONF`."""
    for name in ("state", "spool", "munge"):
        (place / name).mkdir(parents=True)
    key, configuration = place / "munge" / "key", place / "slurm.conf"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    configuration.write_text(CONFIGURATION.format(host=host, place=place, ports=_free_ports(2)))
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    munge = place / "munge"
    daemons = [
        [
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            f"--socket={munge}/socket",
            f"--pid-file={munge}/pid",
            f"--log-file={munge}/log",
            f"--seed-file={munge}/seed",
        ],
        ["slurmctld", "-D", "-f", str(configuration)],
        ["slurmd", "-D", "-f", str(configuration)],
    ]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in daemons:
            with (place / f"{command[0]}.log").open("ab") as log:
                started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(0.5)
        _await_idle(environment, place)
        yield configuration
    finally:
        for daemon in reversed(started):
            daemon.terminate()
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
            daemon.wait()


def _await_idle(environment: dict[str, str], place: Path) -> None:
    end = time.monotonic() + 30
    while True:
        answer = subprocess.run(["sinfo", "-h", "-o", "%t"], env=environment, capture_output=True, text=True)
        if "idle" in answer.stdout.split():
            return
        logs = "\n".join(path.read_text()[-2000:] for path in sorted(place.glob("*.log")))
        assert time.monotonic() < end, f"the cluster does not come up: {answer.stdout}{answer.stderr}\n{logs}"
        time.sleep(0.3)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()

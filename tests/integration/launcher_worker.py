"""A small real worker for the launchers' tests: `python launcher_worker.py DIRECTORY --name NAME`.

It says who it is in `begun-NAME-NUMBER.json`, does what the files in the directory ask it to do, and leaves a witness
when it is asked to leave.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from sweeps.launchers.base import EXIT_LEFT
from sweeps.launchers.local import end_with_parent

VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RAY_RAYLET_PID",
    "SLURM_JOB_ID",
    "CALM_PARENT",
    "CALM_TEST",
)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--name", required=True)
    given = parser.parse_args()
    directory: Path = given.directory
    leaving: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: leaving.append(number))
    end_with_parent(patience_seconds=5.0)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(90)"])  # as a loader of data would be
    about = {
        "pid": os.getpid(),
        "child": child.pid,
        "group": os.getpgid(0),
        "host": socket.gethostname(),
        "cores": sorted(os.sched_getaffinity(0)),
        "environment": {name: os.environ.get(name) for name in VARIABLES},
    }
    number = len(list(directory.glob(f"begun-{given.name}-*.json")))
    scratch = directory / f".{given.name}.tmp"
    scratch.write_text(json.dumps(about))
    scratch.rename(directory / f"begun-{given.name}-{number}.json")
    print("at work", flush=True)
    while True:
        if leaving and not (directory / "stubborn").exists():
            (directory / f"left-{given.name}-{number}").write_text(str(os.getpid()))
            return EXIT_LEFT
        if (directory / "finish").exists():
            return 0
        if (directory / f"fail-{given.name}").exists():
            raise RuntimeError("the toy is broken")
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())

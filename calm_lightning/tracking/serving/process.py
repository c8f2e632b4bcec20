"""The server's process: MLflow's own command line, which ends when the process that started it is gone.

`calm ui` may be killed in a way that leaves it no time to end its server. So the server looks after itself: its process
group ends within seconds once its parent is another. (The kernel's own signal for this, PR_SET_PDEATHSIG, is for one
process, and MLflow's server is two.)
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

PARENT = "CALM_UI_PARENT"
"""Environment variable in which the server finds the process that started it."""
_LOOK_SECONDS = 0.5
_PATIENCE_SECONDS = 3.0


def _end_with(parent: int) -> None:
    """End this process group when the parent is gone."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os.killpg(0, signal.SIGTERM)
    time.sleep(_PATIENCE_SECONDS)
    os.killpg(0, signal.SIGKILL)


def main(arguments: list[str]) -> None:
    """Run MLflow's command line.

    Args:
        arguments: Its arguments.
    """
    parent = os.environ.pop(PARENT, "")
    if parent and os.getpgrp() == os.getpid():
        threading.Thread(target=_end_with, args=(int(parent),), daemon=True, name="parent").start()
    from mlflow.cli import cli

    cli(arguments, prog_name="mlflow")


if __name__ == "__main__":
    main(sys.argv[1:])

"""`python -m sweeps.work DIRECTORY --name NAME`: one worker, as launchers start it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from calm_lightning.errors import CalmError
from sweeps.launchers.process import end_with_parent
from sweeps.work.worker import work


def main() -> int:
    """Work on a sweep until nothing is left to do; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.work", description=__doc__)
    parser.add_argument("directory", type=Path, help="the sweep's directory")
    parser.add_argument("--name", required=True, help="name of the worker, unique among those alive")
    given = parser.parse_args()
    end_with_parent()
    try:
        return work(given.directory, given.name)
    except CalmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

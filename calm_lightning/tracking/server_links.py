"""Addresses in the UI that are worth opening, asked of the server that has just started."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from typing import Any

_ANSWER_SECONDS = 20.0
_TRAINING = "workflowType=machine_learning"
"""Without it the UI may open its pages for chat applications."""
_MOST_EXPERIMENTS, _MOST_SWEEPS = 3, 3


@dataclass(frozen=True)
class Link:
    """A page of the UI.

    Attributes:
        title: What it shows.
        url: Its address.
    """

    title: str
    url: str


def links(url: str) -> list[Link]:
    """Return the pages of the experiments and sweeps that were worked on last.

    Args:
        url: The server's address.

    Raises:
        OSError: The server does not answer.
    """
    experiments = _ask(url, "experiments/search", max_results=50, order_by=["last_update_time DESC"])
    found = []
    for one in experiments.get("experiments", []):
        page, ids = f"{url}/#/experiments/{one['experiment_id']}/runs", [one["experiment_id"]]
        if not _ask(url, "runs/search", experiment_ids=ids, max_results=1).get("runs"):
            continue
        found.append(Link(f"experiment {one['name']}", f"{page}?{_TRAINING}"))
        sweeps: dict[str, Any] = {}
        for wanted in ("tags.stage = 'sweep'", "tags.`calm.stage` = 'sweep'"):
            answer = _ask(url, "runs/search", experiment_ids=ids, filter=wanted, max_results=_MOST_SWEEPS)
            sweeps |= {run["info"]["run_id"]: run["info"].get("run_name", "") for run in answer.get("runs", [])}
        found += [Link(f"sweep {name}", f"{page}/{run_id}") for run_id, name in list(sweeps.items())[:_MOST_SWEEPS]]
        if sum(link.title.startswith("experiment") for link in found) == _MOST_EXPERIMENTS:
            break
    return found


def _ask(url: str, what: str, **given: Any) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}/api/2.0/mlflow/{what}", json.dumps(given).encode(), {"Content-Type": "application/json"}
    )
    # Not through a proxy that the environment may name: the server is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_ANSWER_SECONDS) as answer:
        value: dict[str, Any] = json.load(answer)
    return value

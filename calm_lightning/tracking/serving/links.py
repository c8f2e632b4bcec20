"""Addresses in the UI that are worth opening, asked of the server that has just started."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from typing import Any

from calm_lightning.metrics.names import BRIER_LM

_ANSWER_SECONDS = 20.0
_TRAINING = "workflowType=machine_learning"
"""Without it the UI may open its pages for chat applications."""
_VIEWS = {"front": "BrierLM over cost", "sweep": "settings", "table": "models"}
"""Prepared views that are shown, and what they are called."""
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


def prepared_views(url: str) -> list[Link]:
    """Return the prepared views of the experiments that were worked on last, written where they are missing.

    Args:
        url: The server's address.

    Raises:
        TrackingError: The store cannot be written to.
    """
    from calm_lightning.tracking.reading.places import answering, find_place, open_place
    from calm_lightning.tracking.serving.views import write_views

    place = find_place(url)
    client, found = open_place(place), []
    with answering(place):
        for one in client.search_experiments(order_by=["last_update_time DESC"], max_results=_MOST_EXPERIMENTS):
            if client.search_runs([one.experiment_id], f"metrics.`{BRIER_LM}` >= 0", max_results=1):
                views = write_views(client, one.experiment_id)
                found += [Link(f"{_VIEWS[name]} ({one.name})", url + views[name]) for name in _VIEWS if name in views]
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

"""Prepared views of an experiment in the MLflow UI: which runs, which columns, which charts answer a question.

MLflow keeps a view as a tag of the experiment and opens it by a link. Views of the whole experiment have a name and are
listed under "Views"; those of one study are opened by their link only, since MLflow lists at most 40. A view keeps its
key for ever, so a link stays right when the view behind it changes; views of users have other keys and are not touched.

MLflow's charts have no logarithmic axis for metrics, hence their cost axis is a metric in decades where runs have it.

Source: the states that the "Save view" dialog of MLflow 3.17 writes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from calm_lightning.metrics import names
from calm_lightning.tracking.serving.view_charts import Section, chart_state, line, parallel, scatter

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TAG = "mlflow.sharedViewState."
_DEFLATED = "deflate;"
_TABLE, _CHART = "TABLE", "CHART"
_WIDTHS = {
    **{"tags.stage": 80, "tags.K": 48, "tags.l": 56, "tags.N": 48, "tags.head": 78, "tags.pareto": 96},
    **{f"metrics.{names.BRIER_LM}": 104, f"metrics.{names.BRIER_LM_SE}": 84},
    **{f"metrics.{name}": 130 for name in (names.LOG_TRAIN_FLOPS_TOTAL, names.TRAIN_FLOPS_TOTAL)},
    **{f"metrics.{name}": 120 for name in (names.TEXT_TOKENS, names.SECONDS)},
    **{"tags.corpus": 110, "tags.commit": 110},
}
"""Columns of the table in their order, and their widths in pixels: those up to the cost fit a window of 1400."""
_SETTINGS = ("model.K", "model.l", "model.N", "model.d")
_FOLDED = ("val", "cost", "train", "system")


@dataclass(frozen=True)
class _View:
    """A view before it is written.

    Attributes:
        title: Name in MLflow's list of views.
        mode: What its link opens, the table or the charts.
        sections: Its charts.
        group: Tag by which runs are put together and averaged, "" for none.
    """

    title: str
    mode: str
    sections: Sequence[Section]
    group: str = ""


def write_views(client: MlflowClient, experiment_id: str, study: str = "") -> dict[str, str]:
    """Write the prepared views of an experiment, those that are there and right already left as they are.

    Args:
        client: The MLflow client.
        experiment_id: The experiment.
        study: Show the runs of this study only; "" for all of the experiment.

    Returns:
        Addresses within the UI by name: "front" (curves over cost), "seeds" (the same, means over seeds), "sweep"
        (settings against score) and "table".

    Raises:
        Exception: Whatever the store does.
    """
    decades = names.LOG_TRAIN_FLOPS_TOTAL
    cost = decades if _has_metric(client, experiment_id, decades) else names.TRAIN_FLOPS_TOTAL
    known = client.get_experiment(experiment_id).tags
    links = {}
    for number, (name, view) in enumerate(_views(cost).items()):
        key = _key(name, study)
        state = _state(view, study)
        if _decoded(known.get(_TAG + key, "")) != state:
            text = _encoded("" if study else view.title, state, number)
            client.set_experiment_tag(experiment_id, _TAG + key, text)
        links[name] = view_link(experiment_id, key, view.mode)
    return links


def view_link(experiment_id: str, key: str, mode: str = _CHART) -> str:
    """Return the address of a view within the UI, to be put after the server's URL or into a description.

    Args:
        experiment_id: The experiment.
        key: Key of the view.
        mode: "CHART" or "TABLE".
    """
    # Without a workflow MLflow shows its pages for chat applications until the user finds the switch.
    query = urlencode({"viewStateShareKey": key, "compareRunsMode": mode, "workflowType": "machine_learning"})
    return f"/#/experiments/{experiment_id}/runs?{query}"


def _views(cost: str) -> dict[str, _View]:
    """Return the views by name.

    Args:
        cost: The metric on the axis of training cost.
    """
    score = names.BRIER_LM
    over_flops = Section("BrierLM over training FLOPs", (line(score, cost),), 1, 420)
    others = Section("BrierLM over text tokens and over seconds", _lines(names.TEXT_TOKENS, names.SECONDS))
    last = Section("Last BrierLM over training and inference FLOPs", _last(cost))
    axes = Section("Settings, cost and BrierLM of each run", (parallel(_SETTINGS, (cost, score)),), 1, 480)
    return {
        "front": _View("CALM: BrierLM over cost", _CHART, (over_flops, others, last)),
        "seeds": _View("CALM: BrierLM over cost, means over seeds", _CHART, (over_flops, others), "slug"),
        "sweep": _View("CALM: settings of a sweep", _CHART, (axes, last)),
        "table": _View("CALM: table of models", _TABLE, (over_flops, others, last)),
    }


def _lines(*over: str) -> tuple[dict[str, Any], ...]:
    return tuple(line(names.BRIER_LM, one) for one in over)


def _last(cost: str) -> tuple[dict[str, Any], ...]:
    return scatter(names.BRIER_LM, cost), scatter(names.BRIER_LM, names.INFERENCE_FLOPS_PER_TOKEN)


def _state(view: _View, study: str) -> dict[str, Any]:
    """Return what MLflow keeps of a view."""
    columns = [_column(name) for name in _WIDTHS]
    group = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": view.group}]}
    return {
        "searchFilter": _filter(study),
        "orderByKey": _column(f"metrics.{names.BRIER_LM}"),
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": dict(zip(columns, _WIDTHS.values(), strict=True)),
        "runsHiddenMode": "SHOW_ALL",
        "viewMaximized": False,
        "runListHidden": False,
        "hideEmptyCharts": True,
        "groupBy": group if view.group else None,
        "groupsExpanded": {},
        "useGroupedValuesInCharts": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        **chart_state(view.sections, _FOLDED),
    }


def _filter(study: str) -> str:
    """Return the filter that finds language models: runs that have both a score and a training cost."""
    parts = [f"metrics.`{name}` >= 0" for name in (names.BRIER_LM, names.TRAIN_FLOPS_TOTAL)]
    quote = '"' if "'" in study else "'"
    return " and ".join([f"tags.study = {quote}{study}{quote}", *parts] if study else parts)


def _column(name: str) -> str:
    """Return how MLflow calls a column: `tags.K` is tags.`K`."""
    kind, _, key = name.partition(".")
    return f"{kind}.`{key}`"


def _key(name: str, study: str) -> str:
    """Return the key of a view, the same for ever."""
    return f"calm-{name}-{hashlib.sha256(study.encode()).hexdigest()[:12]}" if study else f"calm-{name}"


def _has_metric(client: MlflowClient, experiment_id: str, name: str) -> bool:
    return bool(client.search_runs([experiment_id], f"metrics.`{name}` > 0", max_results=1))


def _encoded(title: str, state: dict[str, Any], number: int) -> str:
    """Return the tag's text: a named view is listed, one without a name is not.

    Args:
        title: The name, "" for none.
        state: What MLflow keeps.
        number: The view's place in the list, which begins with the newest.
    """
    text = json.dumps(state, separators=(",", ":"))
    packed = _DEFLATED + base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    now = int(1000 * time.time()) - number
    return json.dumps({"name": title, "createdAt": now, "updatedAt": now, "state": packed}) if title else packed


def _decoded(text: str) -> dict[str, Any] | None:
    """Return the state that a tag holds, None where it holds none."""
    try:
        packed = str(json.loads(text)["state"]) if text.startswith("{") else text
        state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed.removeprefix(_DEFLATED))))
        return state
    except (ValueError, KeyError, TypeError, zlib.error):
        return None

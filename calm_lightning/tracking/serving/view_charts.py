"""Charts of MLflow's UI as values: what it keeps of a chart in a saved view.

Titles cannot be chosen: MLflow shows the names of the metrics. What a group of charts is for is said by the heading of
its section.

Source: the states that the "Save view" dialog of MLflow 3.17 writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Chart = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """Charts below one heading.

    Attributes:
        title: The heading.
        charts: The charts, from the functions below.
        columns: Charts side by side.
        height: Height of a chart, pixels.
    """

    title: str
    charts: Sequence[Chart]
    columns: int = 2
    height: int = 360


def line(metric: str, over: str) -> Chart:
    """Return a line chart of one metric over another, joined at equal steps.

    Args:
        metric: The metric on the vertical axis.
        over: The metric on the horizontal axis.
    """
    return {
        "type": "LINE",
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "metric",
        "selectedXAxisMetricKey": over,
        "useGlobalXaxisKey": False,
        "xAxisScaleType": "linear",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "scaleType": "linear",
        "range": {},
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": False,
        "displayPoints": True,
        "ignoreOutliers": False,
    }


def scatter(metric: str, over: str) -> Chart:
    """Return a scatter of the last values of two metrics, one point for each run."""
    axes = {"xaxis": {"key": over, "type": "METRIC"}, "yaxis": {"key": metric, "type": "METRIC"}}
    return {"type": "SCATTER", **axes}


def parallel(params: Sequence[str], metrics: Sequence[str]) -> Chart:
    """Return parallel coordinates: an axis for each parameter and metric, coloured by the last metric.

    Runs that lack one of them are left out.
    """
    return {
        "type": "PARALLEL",
        "selectedParams": list(params),
        "selectedMetrics": list(metrics),
        "showAllRuns": False,
    }


def chart_state(sections: Sequence[Section], folded: Sequence[str]) -> dict[str, Any]:
    """Return the part of a view's state that is about charts.

    Args:
        sections: What is shown, from the top.
        folded: Sections that MLflow makes of all other metrics, by the part of their names before "/": they come below,
            closed, so that their histories are loaded only when they are opened.
    """
    states: list[dict[str, Any]] = []
    charts: list[Chart] = []
    for number, section in enumerate(sections):
        key = f"calm-section-{number}"
        shape = {"columns": section.columns, "cardHeight": section.height}
        states.append(_section(key, section.title, shown=True) | shape)
        for place, chart in enumerate(section.charts):
            common = {"uuid": f"{key}-{place}", "metricSectionId": key, "runsCountToCompare": 100}
            charts.append({**chart, **common, "deleted": False, "isGenerated": False})
    states += [_section(f"calm-folded-{name}", name, shown=False) for name in folded]
    return {"compareRunCharts": charts, "compareRunSections": states, "isAccordionReordered": True}


def _section(key: str, title: str, *, shown: bool) -> dict[str, Any]:
    return {
        "uuid": key,
        "name": title,
        "display": shown,
        "isReordered": True,
        "deleted": False,
        "isGenerated": not shown,
    }

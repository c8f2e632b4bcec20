"""Prepared views: what is written to an experiment, when, and which runs their filters find."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("mlflow")

from calm_lightning.metrics import names
from calm_lightning.tracking.reading.places import find_place, open_place
from calm_lightning.tracking.serving.views import write_views

PREFIX = "mlflow.sharedViewState."
SCORED = {names.BRIER_LM: 5.0, names.TRAIN_FLOPS_TOTAL: 1e13}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_place(find_place(tmp_path_factory.mktemp("project")), make=True)


@pytest.fixture
def experiment(store: Any, request: pytest.FixtureRequest) -> Iterator[str]:
    yield store.create_experiment(request.node.name)


def add(store: Any, experiment: str, metrics: dict[str, float], **tags: str) -> str:
    run_id = str(store.create_run(experiment, tags=tags).info.run_id)
    for name, value in metrics.items():
        store.log_metric(run_id, name, value)
    return run_id


def views(store: Any, experiment: str) -> dict[str, str]:
    tags = store.get_experiment(experiment).tags
    return {key.removeprefix(PREFIX): value for key, value in tags.items() if key.startswith(PREFIX)}


def state(text: str) -> dict[str, Any]:
    packed = json.loads(text)["state"] if text.startswith("{") else text
    value: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed.removeprefix("deflate;"))))
    return value


def key_of(link: str) -> str:
    query = parse_qs(urlsplit(link.removeprefix("/#")).query)
    assert query["workflowType"] == ["machine_learning"]
    return query["viewStateShareKey"][0]


def test_links_lead_to_what_was_written(store: Any, experiment: str) -> None:
    links = write_views(store, experiment)
    assert set(links) == {"front", "seeds", "sweep", "table"}
    assert {key_of(link) for link in links.values()} == set(views(store, experiment))
    assert all(link.startswith(f"/#/experiments/{experiment}/runs?") for link in links.values())


def test_written_again_nothing_changes(store: Any, experiment: str) -> None:
    first = write_views(store, experiment)
    before = views(store, experiment)
    assert write_views(store, experiment) == first
    assert views(store, experiment) == before


def test_a_view_that_differs_is_written_anew_and_those_of_users_are_not(store: Any, experiment: str) -> None:
    links = write_views(store, experiment)
    right = views(store, experiment)["calm-front"]
    for broken in ("", "{", '{"name": "x", "state": 3}', "deflate;####", json.dumps({"name": "x", "state": "{}"})):
        store.set_experiment_tag(experiment, PREFIX + "calm-front", broken)
        store.set_experiment_tag(experiment, PREFIX + "mine", broken)
        assert write_views(store, experiment) == links
        assert state(views(store, experiment)["calm-front"]) == state(right)
        assert views(store, experiment)["mine"] == broken


def test_views_of_studies_are_not_listed(store: Any, experiment: str) -> None:
    """MLflow lists the tags that have a name, and refuses to save more views where 40 are listed."""
    whole = write_views(store, experiment)
    one, other = (write_views(store, experiment, study) for study in ("one", "other"))
    assert len({*whole.values(), *one.values(), *other.values()}) == 12
    listed = {key for key, text in views(store, experiment).items() if text.startswith("{")}
    assert listed == {key_of(link) for link in whole.values()}


def test_filters_find_the_language_models(store: Any, experiment: str) -> None:
    mine = add(store, experiment, SCORED, study="mine")
    other = add(store, experiment, SCORED | {names.BRIER_LM: 0.0}, study="other")
    older = add(store, experiment, SCORED)
    add(store, experiment, {names.FRONT_SIZE: 3.0}, study="mine")
    add(store, experiment, {names.TRAIN_FLOPS_TOTAL: 1e12}, study="mine")

    def found(study: str) -> set[str]:
        link = write_views(store, experiment, study)["front"]
        wanted = state(views(store, experiment)[key_of(link)])["searchFilter"]
        return {run.info.run_id for run in store.search_runs([experiment], wanted)}

    assert found("") == {mine, other, older}
    assert found("mine") == {mine}
    assert found("none") == set()


def test_the_axis_is_in_decades_once_runs_have_them(store: Any, experiment: str) -> None:
    def axis() -> str:
        write_views(store, experiment)
        chart = state(views(store, experiment)["calm-front"])["compareRunCharts"][0]
        assert (chart["type"], chart["metricKey"]) == ("LINE", names.BRIER_LM)
        return str(chart["selectedXAxisMetricKey"])

    add(store, experiment, SCORED)
    assert axis() == names.TRAIN_FLOPS_TOTAL
    add(store, experiment, SCORED | {names.LOG_TRAIN_FLOPS_TOTAL: 13.0})
    assert axis() == names.LOG_TRAIN_FLOPS_TOTAL


def test_charts_are_whole(store: Any, experiment: str) -> None:
    """Each chart is in a section that is shown, and no tag is longer than MLflow takes (20,000)."""
    write_views(store, experiment, "a-study")
    for text in views(store, experiment).values():
        assert len(text) < 20_000
        value = state(text)
        shown = {section["uuid"] for section in value["compareRunSections"] if section["display"]}
        keys = [chart["uuid"] for chart in value["compareRunCharts"]]
        assert {chart["metricSectionId"] for chart in value["compareRunCharts"]} == shown
        assert len(set(keys)) == len(keys)
        assert value["columnOrder"] == value["selectedColumns"] == list(value["columnWidths"])


def test_a_study_cannot_break_the_filter(tmp_path: Path, store: Any, experiment: str) -> None:
    add(store, experiment, SCORED, study="it's")
    link = write_views(store, experiment, "it's")["front"]
    wanted = state(views(store, experiment)[key_of(link)])["searchFilter"]
    assert len(store.search_runs([experiment], wanted)) == 1

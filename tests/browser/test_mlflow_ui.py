"""The MLflow UI as users see it: from the sweep to its models, its front, a comparison and the figure.

The screenshots of docs/mlflow-ui.md are made by these tests:

    CALM_SCREENSHOTS=docs/images pytest tests/browser
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from charts import traces_over

from calm_lightning.metrics import names

if TYPE_CHECKING:
    from conftest import Shoot
    from playwright.sync_api import Locator, Page
    from small_sweep import SmallSweep

pytestmark = pytest.mark.slow
STUDY = "k4-sweet-spot-browser"
COST = names.LOG_TRAIN_FLOPS_TOTAL
SHOWN = ("calm-K2-l64-N8-d256-s0", "calm-K4-l128-N8-d256-s0", "calm-K8-l256-N8-d256-s0")


def row(page: Page, name: str) -> Locator:
    return page.get_by_role("row").filter(has_text=name)


def show_charts(page: Page) -> None:
    page.locator("label").filter(has=page.locator("input[value=CHART]")).click()


def open_runs(page: Page) -> None:
    page.goto("/#/experiments/1/runs")
    row(page, STUDY).wait_for()


def unfold(page: Page) -> None:
    """Show the runs below the sweep's."""
    row(page, STUDY).locator("[col-id='attributes.`Run Name`']").get_by_role("button").first.click()
    row(page, SHOWN[0]).wait_for()


def look_at(page: Page, heading: str) -> None:
    """Scroll to a section: charts are drawn once they are looked at."""
    page.get_by_text(heading).scroll_into_view_if_needed()


def test_the_sweep_holds_its_models(page: Page, sweep: SmallSweep, shoot: Shoot) -> None:
    open_runs(page)
    assert row(page, "calm-K4").count() == 0
    unfold(page)
    for name in SHOWN:
        row(page, name).wait_for()
    assert page.get_by_text(f"{len(sweep.series) + 1} matching runs").is_visible()
    shoot("sweep")


def test_the_prepared_view_draws_brier_lm_over_flops(page: Page, sweep: SmallSweep, shoot: Shoot) -> None:
    open_runs(page)
    page.get_by_test_id("saved-views-trigger").click()
    view = page.get_by_text("CALM: BrierLM over cost", exact=True)
    view.wait_for()
    shoot("views")
    view.click()
    show_charts(page)
    drawn = {trace.name: trace for trace in traces_over(page, COST, len(sweep.series))}
    for one in sweep.series:
        points = [point for point in one.points if point.train_flops > 0]
        trace = drawn[one.run_dir.rpartition("/")[2]]
        np.testing.assert_allclose(trace.x, [math.log10(point.train_flops) for point in points], rtol=1e-12)
        np.testing.assert_allclose(trace.y, [point.brier_lm for point in points], rtol=1e-12)
    shoot("front")
    look_at(page, "Last BrierLM over")
    over_tokens = {trace.name: trace for trace in traces_over(page, names.TEXT_TOKENS, len(sweep.series))}
    assert max(over_tokens[SHOWN[0]].x) == sweep.series[0].final.text_tokens


def test_seeds_are_averaged(page: Page, sweep: SmallSweep, links: dict[str, str], shoot: Shoot) -> None:
    page.goto(links["seeds"])
    drawn = traces_over(page, COST, 5)
    assert len(drawn) == 5
    K4 = [one for one in sweep.series if one.K == 4]
    means = np.mean([[point.brier_lm for point in one.points] for one in K4], axis=0)
    assert any(len(trace.y) == len(means) and np.allclose(trace.y, means) for trace in drawn)
    shoot("seeds")


def test_settings_as_parallel_coordinates(page: Page, sweep: SmallSweep, links: dict[str, str], shoot: Shoot) -> None:
    page.goto(links["sweep"])
    page.get_by_text("Parallel Coordinates").first.wait_for()
    for axis in ("model.K", "model.l", names.BRIER_LM):
        page.locator("svg text").filter(has_text=axis).first.wait_for()
    shoot("settings")
    look_at(page, "Last BrierLM over")
    (last,) = traces_over(page, COST, 1)
    assert sorted(last.y) == pytest.approx(sorted(one.final.brier_lm for one in sweep.series))


def test_a_chart_is_changed_by_hand(page: Page, sweep: SmallSweep) -> None:
    open_runs(page)
    unfold(page)
    show_charts(page)
    page.get_by_placeholder("Search metric charts").fill(f"{names.BRIER_LM}$")
    page.wait_for_timeout(1000)  # until the search has been taken note of
    cards = page.get_by_test_id("experiment-view-compare-runs-card")
    card = cards.filter(has=page.get_by_text(names.BRIER_LM, exact=True))
    card.get_by_test_id("experiment-view-compare-runs-card-menu").click()
    page.get_by_role("menuitem", name="Configure").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("radio", name="Metric").check(force=True)
    over = dialog.locator("input[role=combobox]").first
    over.click(force=True)
    over.fill(names.TRAIN_FLOPS_TOTAL)
    page.locator(".du-bois-light-select-item-option").get_by_text(names.TRAIN_FLOPS_TOTAL, exact=True).click()
    dialog.locator("svg .xtitle").filter(has_text=names.TRAIN_FLOPS_TOTAL).wait_for()  # the preview
    page.get_by_test_id("experiment-view-compare-runs-chart-modal-confirm").click()
    dialog.wait_for(state="hidden")
    drawn = {trace.name: trace for trace in traces_over(page, names.TRAIN_FLOPS_TOTAL, 9)}  # MLflow shows ten runs
    one = sweep.series[-1]
    assert max(drawn[one.run_dir.rpartition("/")[2]].x) == pytest.approx(one.final.train_flops)


def panel(page: Page, heading: str) -> Locator:
    """A part of the page that compares runs."""
    return page.locator(".du-bois-light-collapse-item").filter(has=page.get_by_role("button", name=heading))


def test_three_runs_are_compared(page: Page, sweep: SmallSweep, links: dict[str, str], shoot: Shoot) -> None:
    page.goto(links["table"])
    row(page, SHOWN[0]).wait_for()
    for name in ("stage", "pareto", names.BRIER_LM):
        assert page.get_by_role("columnheader").filter(has_text=name).first.is_visible()
    shoot("table")
    for name in SHOWN:
        row(page, name).get_by_role("checkbox").check()
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("heading", name="Comparing 3 Runs from 1 Experiment").wait_for()
    for name in SHOWN:
        assert page.get_by_role("cell", name=name, exact=True).is_visible()
    page.locator(".js-plotly-plot .parcoords").first.wait_for()
    shoot("compare")
    panel(page, "Parameters").get_by_role("switch").click()  # show what differs only
    assert page.get_by_role("row").filter(has_text="model.K").is_visible()
    assert not page.get_by_role("row").filter(has_text="optim.lr").count()
    numbers = panel(page, "Metrics")
    numbers.scroll_into_view_if_needed()
    finals = [one.final.brier_lm for one in sweep.series if one.run_dir.endswith(SHOWN)]
    for final in finals:
        numbers.get_by_text(f"{final:.4g}", exact=True).first.wait_for()
    shoot("differences")


def test_the_figure_is_interactive(page: Page, sweep: SmallSweep, shoot: Shoot) -> None:
    page.goto(f"/#/experiments/1/runs/{sweep.run_id}/artifacts")
    page.get_by_text("front.html").click()
    figure = page.frame_locator("iframe.mlflow-html-iframe")
    figure.locator(".js-plotly-plot .legend").first.wait_for()
    traces = figure.locator(".js-plotly-plot").first.evaluate("element => element.data.map(trace => trace.name)")
    assert "Pareto front" in traces
    assert any("K=4" in (name or "") for name in traces)
    shoot("figure")
    page.get_by_text("front.png").click()
    picture = page.locator("img[src*='blob:'], img[src*='front.png']").first
    picture.wait_for()
    page.wait_for_function("() => [...document.images].some(image => image.naturalWidth > 900)")
    page.get_by_text("points.csv").click()
    page.get_by_text("Previewing the first").wait_for()


def test_the_description_shows_the_front_and_leads_to_its_models(page: Page, sweep: SmallSweep, shoot: Shoot) -> None:
    page.goto(f"/#/experiments/1/runs/{sweep.run_id}")
    page.get_by_text("Show more").click()
    page.wait_for_function(
        "() => [...document.images].some(image => image.src.includes('front.png') && image.complete)"
    )
    assert page.locator("img[src*='front.png']").evaluate("image => image.naturalWidth") > 500
    page.get_by_text("Description", exact=True).first.scroll_into_view_if_needed()
    shoot("description")
    link = page.locator("td a[href*='/runs/']").first
    with page.expect_popup() as opened:
        link.click()
    child = opened.value
    child.get_by_text("Parent run", exact=True).wait_for()
    assert child.url.rpartition("/")[2] in sweep.children

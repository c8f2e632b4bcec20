"""A real Chromium over a real `calm ui`, over a store with one sweep in it.

Screenshots go to the directory that the environment variable CALM_SCREENSHOTS names, else to a temporary one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from small_sweep import SmallSweep

Shoot = Callable[[str], Path]
_PATIENCE = 60_000
_NO_ASSISTANT = """
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
localStorage.setItem('mlflow.workflowType_v1', '"machine_learning"');
"""
"""What a user clicks away once: MLflow's assistant, and its pages for chat applications."""


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> SmallSweep:
    """A sweep of four K and the baseline with three seeds each, in a store of its own."""
    pytest.importorskip("mlflow")
    from small_sweep import make_small_sweep

    return make_small_sweep(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def links(sweep: SmallSweep) -> dict[str, str]:
    """Addresses of the prepared views of the sweep's experiment."""
    from calm_lightning.tracking.config import TrackingConfig
    from calm_lightning.tracking.serving.views import write_views
    from calm_lightning.tracking.store import open_store

    store = open_store(TrackingConfig(), sweep.work_dir)
    return write_views(store.client, store.experiment_id)


@pytest.fixture(scope="session")
def ui(sweep: SmallSweep, links: dict[str, str]) -> Iterator[str]:
    """The address of `calm ui` over the sweep's store."""
    command = [sys.executable, "-c", "from calm_lightning.cli.main import main; main()", "ui", "--port", "0"]
    server = subprocess.Popen(
        [*command, "--work-dir", str(sweep.work_dir)],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    line = server.stdout.readline()
    try:
        assert line.startswith("MLflow UI: http://127.0.0.1:"), line
        yield line.split()[2]
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The Chromium of this machine, without a window."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as player:
        started = player.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser, ui: str) -> Iterator[Page]:
    """A page of a user who has been here before; the test fails if it asks anybody but the server for anything."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, base_url=ui)
    context.add_init_script(_NO_ASSISTANT)
    context.set_default_timeout(_PATIENCE)
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    yield page
    context.close()
    elsewhere = [url for url in asked if not url.startswith((ui, "blob:", "data:"))]
    assert not elsewhere


@pytest.fixture
def shoot(page: Page, tmp_path: Path) -> Shoot:
    """Return a function that saves what the page shows under a name, once it has come to rest."""
    folder = Path(os.environ.get("CALM_SCREENSHOTS") or tmp_path)

    def save(name: str) -> Path:
        page.mouse.move(0, 0)  # a pointer on a chart leaves a tooltip
        page.wait_for_timeout(700)  # Plotly and the layout animate
        path = folder / f"mlflow-{name}.png"
        # Where this machine keeps temporary files is nothing for a page of the docs.
        page.screenshot(path=path, mask=[page.get_by_text("file:///")], mask_color="#ffffff")
        assert path.stat().st_size > 20_000  # a blank page of this size has less
        return path

    return save

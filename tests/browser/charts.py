"""What the charts of a page show, read from the figures that Plotly has drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

_READ = """
elements => elements.filter(element => element._fullLayout && element._fullLayout.xaxis).map(element => ({
  across: element._fullLayout.xaxis.title.text || '',
  up: element._fullLayout.yaxis.title.text || '',
  traces: element.data.filter(trace => trace.hoverinfo !== 'skip' && trace.x && trace.x.length).map(trace => ({
    name: trace.name || trace.hovertext || '', x: Array.from(trace.x), y: Array.from(trace.y),
  })),
}))
"""
_DRAWN = """
([title, traces]) => Array.from(document.querySelectorAll('.js-plotly-plot')).some(element =>
  element._fullLayout && element._fullLayout.xaxis && element._fullLayout.xaxis.title.text === title
  && element.data.filter(trace => trace.hoverinfo !== 'skip' && trace.x && trace.x.length).length >= traces)
"""


@dataclass(frozen=True)
class Trace:
    """A line, or the points of a scatter.

    Attributes:
        name: Its name.
        x: Horizontal coordinates.
        y: Vertical coordinates.
    """

    name: str
    x: list[float]
    y: list[float]


def traces_over(page: Page, title: str, at_least: int) -> list[Trace]:
    """Return the traces of the first chart with this title of the horizontal axis, once it has so many of them.

    Args:
        page: The page.
        title: Title of the horizontal axis.
        at_least: Traces to wait for.
    """
    page.wait_for_function(_DRAWN, arg=[title, at_least])
    plots = [plot for plot in page.locator(".js-plotly-plot").evaluate_all(_READ) if plot["across"] == title]
    return [Trace(**trace) for trace in plots[0]["traces"]]

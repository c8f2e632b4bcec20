"""Pieces of the page: lists, notes, folded parts, tables, and the style sheet."""

from __future__ import annotations

import html
from collections.abc import Iterable

from sweeps.report import style
from sweeps.report.grids import Grid
from sweeps.report.web.dressing import FONT

SHEET = f"""
body {{ margin: 0; background: #fff; color: {style.INK}; font: 15px/1.55 {FONT}; }}
main {{ max-width: 1180px; margin: 0 auto; padding: 28px 24px 60px; }}
h1 {{ font-size: 27px; line-height: 1.2; margin: 0 0 6px; overflow-wrap: anywhere; }}
h2 {{ font-size: 19px; margin: 40px 0 8px; padding-top: 10px; border-top: 1px solid {style.GRID}; }}
h3 {{ font-size: 15px; margin: 22px 0 6px; }}
p, ul {{ max-width: 860px; margin: 6px 0; }}
p.budget, p.note {{ color: {style.MUTED}; }}
p.note {{ font-size: 13px; margin: 3px 0; }}
p.finding {{ font-size: 17px; line-height: 1.5; max-width: 900px; margin: 10px 0 14px; }}
div.warning {{ border-left: 4px solid {style.MODEL_LOOKS[0].colour}; background: #fff8eb; padding: 8px 14px; }}
div.warning {{ max-width: 860px; margin: 14px 0; }}
nav {{ margin: 10px 0 4px; }}
nav a, a.file {{ color: {style.MODEL_LOOKS[3].colour}; text-decoration: none; }}
nav a {{ margin-right: 14px; white-space: nowrap; }}
li {{ margin: 3px 0; overflow-wrap: anywhere; }}
pre {{ background: #f6f7f9; padding: 10px 14px; font-size: 13px; white-space: pre-wrap; overflow-wrap: anywhere; }}
div.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }}
th, td {{ padding: 5px 16px 5px 0; text-align: right; border-bottom: 1px solid {style.GRID}; white-space: nowrap; }}
th {{ vertical-align: bottom; }}
td {{ vertical-align: top; }}
th.prose, td.prose {{ text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 7em; }}
th {{ color: {style.MUTED}; font-weight: 600; }}
tr.strong td {{ font-weight: 600; }}
summary {{ cursor: pointer; color: {style.MUTED}; margin: 4px 0; }}
footer {{ margin-top: 40px; color: {style.MUTED}; font-size: 13px; }}
img {{ max-width: 100%; }}
@media screen {{ .plotly-graph-div {{ min-width: 640px; }} }}
@media print {{
  main {{ max-width: none; padding: 0; }}
  nav, .modebar, .updatemenu-container, details.screen {{ display: none !important; }}
  h2, h3 {{ break-after: avoid; }}
  tr, .plotly-graph-div, div.warning {{ break-inside: avoid; }}
  div.wide {{ overflow: visible; }}
  table {{ font-size: 11px; }}
  th, td {{ padding-right: 8px; }}
}}
"""
LONGEST = 20
"""Rows up to which a table is shown unfolded."""


def items(lines: Iterable[str]) -> str:
    """Return sentences as a list."""
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"


def paragraph(text: str, kind: str = "note") -> str:
    """Return a paragraph of a class of the style sheet."""
    return f'<p class="{kind}">{html.escape(text)}</p>'


def folded(title: str, content: str, *, unfolded: bool = False, printed: bool = True) -> str:
    """Return a part that a click folds and unfolds.

    Args:
        title: What is always seen.
        content: The part, as HTML.
        unfolded: Whether it is unfolded at first.
        printed: Whether it is a part of the printed page.
    """
    kind = "" if printed else ' class="screen"'
    return f"<details{kind}{' open' if unfolded else ''}><summary>{html.escape(title)}</summary>{content}</details>"


def table(grid: Grid) -> str:
    """Return a table, folded where it is long."""
    return grid.to_html() if len(grid.rows) <= LONGEST else folded(f"{grid.title} ({len(grid.rows)})", grid.to_html(""))


def block(lines: Iterable[str]) -> str:
    """Return lines as they are to be typed."""
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"

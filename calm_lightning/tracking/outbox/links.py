"""Links in descriptions: written before MLflow has given run ids, made when the description is sent.

A Markdown target `(run:IDENTITY)` is the run with that identity, `(trial:7)` the child run of trial 7, `(view:front)` a
prepared view of the runs of the same sweep, and `(artifact:front.png)` a file of the run itself. A link that leads
nowhere yet loses its target and stays text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import quote

_TARGET = re.compile(r"(!?)\[([^\]]*)\]\((run|trial|view|artifact):([^)\s]+)\)")
_WIDTH = 860
"""Of pictures, in pixels."""

FindRun = Callable[[str, str], str | None]
"""Returns the MLflow run id for ("run", identity) or ("trial", number), the address for ("view", name), or None."""


def resolve_links(markdown: str, experiment_id: str, run_id: str, find: FindRun) -> str:
    """Return a description whose targets are addresses within the UI.

    Args:
        markdown: The description.
        experiment_id: Id of the experiment that all runs are in.
        run_id: MLflow run id of the run that it describes.
        find: Finds runs.
    """

    def resolved(match: re.Match[str]) -> str:
        picture, text, kind, target = match.groups()
        if kind == "artifact":
            address = f"get-artifact?path={quote(target)}&run_uuid={run_id}"
            # Markdown knows no width, and the UI cuts off what is wider than its page.
            return f'<img src="{address}" alt="{text}" width="{_WIDTH}">' if picture else f"[{text}]({address})"
        found = find(kind, target)
        if found is not None and kind == "view":
            return f"[{text}]({found.removeprefix('/')})"
        return text if found is None else f"[{text}](#/experiments/{experiment_id}/runs/{found})"

    return _TARGET.sub(resolved, markdown)

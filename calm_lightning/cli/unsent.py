"""`calm runs unsent` and `send`: what MLflow has not got yet, and sending it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calm_lightning.cli.options import AsJson

if TYPE_CHECKING:
    from calm_lightning.tracking.outbox.outbox import OutboxPlace

WorkDir = Annotated[Path, typer.Option(help="Where runs are.")]


def unsent(work_dir: WorkDir = Path("runs"), as_json: AsJson = False) -> None:
    """List the runs that MLflow has not got whole: what trains now, and what an outage or a kill left behind.

    Example: calm runs unsent
    """
    import json

    from rich.console import Console
    from rich.table import Table

    from calm_lightning.tracking.outbox.outbox import unsent as find_unsent

    found = [_row(place) for place in find_unsent(_existing(work_dir))]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    if not found:
        typer.echo(f"MLflow has everything of {work_dir}")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "status", "state", "directory"):
        table.add_column(heading, no_wrap=heading != "directory", overflow="fold")
    for row in found:
        state = "a process is sending it" if row["being_sent"] else "waits"
        table.add_row(str(row["name"]), str(row["status"]), state, str(row["directory"]))
    Console().print(table)
    if not all(row["being_sent"] for row in found):
        typer.echo(f"\nsend what waits: calm runs send --work-dir {work_dir}")


def send(work_dir: WorkDir = Path("runs")) -> None:
    """Send MLflow what it has not got of the runs in a work directory; what it has is not sent twice.

    Exits with status 1 if something stays behind.

    Example: calm runs send
    """
    from rich.progress import track

    from calm_lightning.tracking.outbox.outbox import unsent as find_unsent
    from calm_lightning.tracking.outbox.sending import send_all
    from calm_lightning.tracking.store import require_mlflow

    require_mlflow()
    places = find_unsent(_existing(work_dir))
    done, problems = 0, []
    for sent in track(send_all(places), "sending", total=len(places), transient=True, disable=not places):
        if sent.problem:
            problems.append(f"{sent.name}: {sent.problem}")
        elif sent.busy:
            typer.echo(f"{sent.name}: a running process is sending it")
        else:
            done += 1
    typer.echo(f"{done} of {len(places)} runs sent" if places else f"MLflow has everything of {work_dir}")
    for reason in problems[:_MOST_PROBLEMS]:
        typer.echo(f"not sent: {reason}", err=True)
    if len(problems) > _MOST_PROBLEMS:
        typer.echo(f"not sent: {len(problems) - _MOST_PROBLEMS} more", err=True)
    if problems:
        raise typer.Exit(1)


_MOST_PROBLEMS = 5


def _row(place: OutboxPlace) -> dict[str, str | bool]:
    """Return what is known of a run that waits: one that runs in no process was killed."""
    from calm_lightning.errors import TrackingError

    busy = place.busy()
    try:
        outbox = place.read()
    except TrackingError:
        outbox = None
    name, status = (outbox.name, outbox.status.lower()) if outbox else (place.directory.name, "damaged outbox")
    if status == "running" and not busy:
        status = "killed"
    return {"name": name, "directory": str(place.directory), "status": status, "being_sent": busy}


def _existing(work_dir: Path) -> Path:
    """Return a work directory that is there.

    Raises:
        TrackingError: It is not.
    """
    from calm_lightning.errors import TrackingError

    if not work_dir.is_dir():
        raise TrackingError(f"{work_dir} is not a directory: give the directory of runs (--work-dir)")
    return work_dir

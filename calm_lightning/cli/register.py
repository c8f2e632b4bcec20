"""`calm runs register`: a trained model under a name in MLflow's registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from calm_lightning.tracking.models.registering import Registered


def register(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run directory, or run id or run name in MLflow.")],
    name: Annotated[str, typer.Option(help="Name in the registry; a new version of it where it is there.")],
    alias: Annotated[str, typer.Option(help="Alias of the version, such as champion; it is moved there.")] = "",
    work_dir: Annotated[
        Path | None, typer.Option(help="The store is mlruns/ beside it.", show_default="the run's, or runs")
    ] = None,
    uri: Annotated[str, typer.Option(help="Another MLflow store.", show_default="the run's")] = "",
) -> None:
    """Register a trained model in MLflow, so that programs load it by a name: text in, text out.

    A model that was not copied into the store yet is copied now. The same model is registered once.

    Example: calm runs register runs/calm/calm-K4-l128-N8-d192-s0-0123456789 --name k4 --alias champion
    """
    folder = Path(run)
    found = (
        _directory(folder, name, alias, work_dir, uri)
        if folder.is_dir()
        else _recorded(run, name, alias, work_dir, uri)
    )
    _show(found)


def _directory(folder: Path, name: str, alias: str, work_dir: Path | None, uri: str) -> Registered:
    """Register the model of a run directory in the store that it is recorded in."""
    from calm_lightning.assembly import CONFIG, own_autoencoder
    from calm_lightning.config import load_config
    from calm_lightning.tracking.models.directory import read_finished
    from calm_lightning.tracking.models.evaluations import store_of
    from calm_lightning.tracking.models.registering import register_directory
    from calm_lightning.tracking.reading.places import place_beside

    finished = read_finished(folder)
    below = own_autoencoder(folder, load_config([str(folder / CONFIG)])) if finished.stage == "calm" else None
    recorded = store_of(folder)
    place = place_beside(work_dir or recorded.work_dir, uri or recorded.uri)
    return register_directory(place, folder, below, name, alias)


def _recorded(run: str, name: str, alias: str, work_dir: Path | None, uri: str) -> Registered:
    """Register the model of a run that the store has."""
    from calm_lightning.errors import TrackingError
    from calm_lightning.tracking.models.registering import register_run
    from calm_lightning.tracking.reading.places import place_beside

    if "/" in run and "=" not in run:
        raise TrackingError(f"{run} is not a directory: give a run directory, or a run id (calm runs list)")
    work_dir = work_dir or Path("runs")
    found = register_run(place_beside(work_dir, uri), run, name, alias)
    return _directory(found, name, alias, work_dir, uri) if isinstance(found, Path) else found


def _show(found: Registered) -> None:
    """Say what was registered, and how it is loaded."""
    import shlex

    state = "registered" if found.fresh else "was registered before"
    alias = f", alias {found.alias}" if found.alias else ""
    typer.echo(f"{found.name} version {found.version}{alias}: {found.model} ({state})")
    code = f'import mlflow; print(mlflow.pyfunc.load_model("{found.uri}").predict(["It is a truth "])[0])'
    typer.echo(f"\nload it:\nMLFLOW_TRACKING_URI={shlex.quote(found.place.shown)} python -c {shlex.quote(code)}")

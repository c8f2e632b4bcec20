"""`calm ui`: look at the runs in a browser, and at a sweep's study beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_PORT, _OPTUNA_PORT = 5000, 8080


def ui(
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="TCP port; 0 is any that is free.", show_default="5000 or the next free"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1 is this machine only.")] = "127.0.0.1",
    work_dir: Annotated[Path, typer.Option(help="Directory of runs; the store is mlruns/ beside it.")] = Path("runs"),
    uri: Annotated[str, typer.Option(help="Another MLflow store (tracking.uri of the runs).")] = "",
    open_browser: Annotated[bool, typer.Option("--open", help="Open the browser.")] = False,
    optuna: Annotated[bool, typer.Option("--optuna", help="Serve optuna-dashboard on a sweep's study too.")] = False,
    sweep: Annotated[
        Path | None, typer.Option(metavar="NAME", help="The sweep for --optuna.", show_default="the last one")
    ] = None,
    optuna_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="TCP port of optuna-dashboard.", show_default="8080 or the next free"),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Answer to this name too, for example a proxy's; may be repeated."),
    ] = None,
) -> None:
    """Serve the MLflow UI until Ctrl-C, and say what is worth opening.

    Example: calm ui --open
    """
    from calm_lightning.tracking.config import TrackingConfig
    from calm_lightning.tracking.serving.hosts import choose_port, is_loopback
    from calm_lightning.tracking.serving.server import serve

    study = _start_optuna(work_dir, sweep, host, optuna_port) if optuna else ""
    if uri.startswith(("http://", "https://")):
        _point_to(uri, open_browser)
        _keep(study)
        return
    chosen = choose_port(host, port, _PORT)

    def announce(url: str) -> None:
        typer.echo(f"MLflow UI: {url}  (Ctrl-C stops it)")
        if port is None and chosen != _PORT:
            typer.echo(f"port {_PORT} is taken, so it is {chosen}", err=True)
        if not is_loopback(host):
            typer.echo("Anyone who can reach this address can read and delete runs: there is no log-in.", err=True)
        _show_links(url)
        if study:
            typer.echo(study)
        _show_unsent(work_dir, uri)
        if open_browser:
            _open(url)

    raise typer.Exit(serve(TrackingConfig(uri=uri), work_dir, host, chosen, announce, allow_host or ()))


def _start_optuna(work_dir: Path, sweep: Path | None, host: str, wanted: int | None) -> str:
    """Serve optuna-dashboard in a thread, which ends with this process; returns what it says of itself.

    Raises:
        CalmError: It is not installed, there is no such sweep, or the port is taken.
    """
    import threading
    from queue import SimpleQueue

    from calm_lightning.errors import SweepError
    from calm_lightning.tracking.serving.hosts import choose_port
    from sweeps.directory import find_sweep_directory, find_sweeps
    from sweeps.watch.optuna_dashboard import serve

    if sweep is not None:
        directory = find_sweep_directory(sweep, work_dir)
    elif known := find_sweeps(work_dir):
        directory = known[0].resolve()
    else:
        raise SweepError(f"there is no sweep in {work_dir}: run one (calm sweep run), or leave out --optuna")
    port = choose_port(host, wanted, _OPTUNA_PORT)
    said: SimpleQueue[str | Exception] = SimpleQueue()

    def run() -> None:
        try:
            serve(directory, host, port, said.put)
        except Exception as error:
            said.put(error)

    threading.Thread(target=run, daemon=True, name="optuna-dashboard").start()
    first = said.get()
    if isinstance(first, Exception):
        raise first
    return first


def _point_to(uri: str, open_browser: bool) -> None:
    """Say where a tracking server's own UI is.

    Raises:
        TrackingError: Nothing answers there.
    """
    from calm_lightning.tracking.reading.places import check_address, find_place

    check_address(find_place(uri))
    typer.echo(f"MLflow UI: {uri}  (the tracking server's own; nothing was started)")
    if open_browser:
        _open(uri)


def _keep(study: str) -> None:
    """Stay until Ctrl-C where optuna-dashboard is served."""
    import signal

    if study:
        try:
            typer.echo(study)
            signal.pause()
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


def _show_links(url: str) -> None:
    from calm_lightning.errors import TrackingError
    from calm_lightning.tracking.serving.links import links, prepared_views

    found = []
    try:
        found += links(url)
        found += prepared_views(url)
    except (OSError, TrackingError) as error:  # the UI is up all the same
        typer.echo(f"not every page is listed ({error})", err=True)
    width = max((len(link.title) for link in found), default=0)
    for link in found:
        typer.echo(f"  {link.title:{width}}  {link.url}")


def _show_unsent(work_dir: Path, uri: str) -> None:
    """Say how many runs this store has not got whole, those left out that a process is sending."""
    from calm_lightning.errors import TrackingError
    from calm_lightning.tracking.outbox.outbox import OutboxPlace, unsent

    def waits(place: OutboxPlace) -> bool:
        try:
            outbox = place.read()
        except TrackingError:
            return True
        return outbox is not None and outbox.uri == uri and not place.busy()

    waiting = sum(waits(place) for place in unsent(work_dir))
    if waiting:
        runs = "1 run is" if waiting == 1 else f"{waiting} runs are"
        typer.echo(f"{runs} not here yet, or not whole: calm runs send --work-dir {work_dir} delivers what is missing")


def _open(url: str) -> None:
    import webbrowser

    if not webbrowser.open(url):
        typer.echo(f"no browser was found: open {url} yourself", err=True)

"""`calm ui`: look at the runs in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1 is this machine only.")] = "127.0.0.1",
    work_dir: Annotated[Path, typer.Option(help="Directory of runs; the store is mlruns/ beside it.")] = Path("runs"),
    uri: Annotated[str, typer.Option(help="Serve this MLflow store instead (tracking.uri of the runs).")] = "",
) -> None:
    """Serve the MLflow UI until Ctrl-C.

    Example: calm ui --port 5001
    """
    from calm_lightning.tracking.config import TrackingConfig
    from calm_lightning.tracking.server import serve

    def announce(url: str) -> None:
        typer.echo(f"MLflow UI: {url}  (Ctrl-C stops it)")
        if host not in ("127.0.0.1", "localhost", "::1"):
            typer.echo("Anyone who can reach this address can read and delete runs: there is no log-in.", err=True)

    raise typer.Exit(serve(TrackingConfig(uri=uri), work_dir, host, port, announce))

"""`calm cache`: the autoencoders of a work directory, which sweeps share: list, verify, remove.

The commands only read options and draw tables; the work is that of `sweeps.cache`. Everything heavy is imported inside
the commands, so that `calm --help` stays quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from sweeps.cache.inventory import Entry
    from sweeps.trials.leases import Leases

app = typer.Typer(no_args_is_help=True, help="List, verify and remove trained autoencoders, which sweeps share.")
WRONG = 1

WorkDir = Annotated[Path, typer.Option(help="Directory that holds the runs.")]


@app.command()
def ls(
    work_dir: WorkDir = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document and nothing else.")] = False,
) -> None:
    """List autoencoders, finished or not, with their state and how many language models use them.

    Example: calm cache ls --work-dir runs
    """
    import json

    from sweeps.cache.inventory import entries

    found = entries(work_dir, _leases(work_dir))
    if as_json:
        typer.echo(json.dumps([one.to_json() for one in found], indent=2))
    elif not found:
        typer.echo(f"{work_dir} holds no autoencoders")
    else:
        from rich.console import Console

        Console().print(_table(found))
        total = sum(one.bytes for one in found)
        typer.echo(f"{len(found)} autoencoder{'s' if len(found) > 1 else ''}, {_size(total)}")


@app.command()
def verify(work_dir: WorkDir = Path("runs")) -> None:
    """Check finished autoencoders: result, configuration, identity, and every number of the weights.

    Exit status 1 where something is wrong.

    Example: calm cache verify --work-dir runs
    """
    from rich.console import Console
    from rich.table import Table

    from sweeps.cache.verifying import verify as check

    screen = Console(stderr=True)
    with screen.status("verifying") as status:
        count, problems = check(work_dir, lambda done, total: status.update(f"verifying {done + 1} of {total}"))
    if not problems:
        typer.echo(f"{count} finished autoencoder{'' if count == 1 else 's'} in {work_dir}: nothing wrong")
        return
    table = Table(title=f"problems in {work_dir}", show_lines=True)
    table.add_column("autoencoder", overflow="fold")
    table.add_column("what is wrong", overflow="fold")
    for problem in problems:
        table.add_row(problem.run_dir.name, problem.what)
    Console().print(table)
    typer.echo(
        "put the original files back where language models use it; otherwise delete the directory, and it is trained "
        "anew when it is needed"
    )
    raise typer.Exit(WRONG)


@app.command()
def prune(
    work_dir: WorkDir = Path("runs"),
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Remove interrupted ones instead of finished ones.")
    ] = False,
    all_unused: Annotated[bool, typer.Option("--all-unused", help="Remove finished and interrupted ones.")] = False,
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", min=0, help="Only those last trained or used longer ago.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it, only say what would be removed.")] = False,
) -> None:
    """Remove finished autoencoders that no language model's run in the work directory uses, finished or not.

    One that somebody trains, or that a trial was given within the last ten minutes, is kept.

    Example: calm cache prune --all-unused --older-than 30
    """
    import time

    from sweeps.cache.inventory import Uses, entries
    from sweeps.cache.pruning import Rules, candidates, empty_grave, refuse_where_unknown, remove

    leases, uses = _leases(work_dir), Uses(work_dir)
    rules = Rules(not unfinished or all_unused, unfinished or all_unused, older_than)
    found = candidates(entries(work_dir, leases, uses), rules, time.time())
    refuse_where_unknown(uses)
    if yes:
        empty_grave(work_dir)
    if not found:
        typer.echo("nothing to remove")
        return
    if not yes:
        from rich.console import Console

        Console().print(_table(found))
        typer.echo(f"{_size(sum(one.bytes for one in found))} would be freed; nothing was removed: add --yes to do it")
        return
    freed = 0
    for one in found:
        kept = remove(work_dir, one, leases, uses)
        typer.echo(f"kept {one.run_dir.name}: {kept}" if kept else f"removed {one.run_dir.name}")
        freed += 0 if kept else one.bytes
    typer.echo(f"{_size(freed)} freed")
    leases.close()


def _leases(work_dir: Path) -> Leases:
    """Return the leases of a work directory's autoencoders, as this command sees them."""
    from sweeps.cache.records import leases_directory
    from sweeps.trials.leases import Leases

    return Leases(leases_directory(work_dir), "calm cache")


def _table(found: Sequence[Entry]) -> Table:
    """Return autoencoders as a table."""
    from datetime import datetime

    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("name", overflow="fold", min_width=14)
    table.add_column("identity", no_wrap=True)
    for heading in ("K", "l", "d"):
        table.add_column(heading, justify="right")
    table.add_column("corpus", no_wrap=True)
    for heading in ("accuracy", "FLOPs", "size", "used by"):
        table.add_column(heading, justify="right")
    table.add_column("state")
    table.add_column("last used", no_wrap=True)
    for one in found:
        shape = ["?" if value is None else str(value) for value in (one.K, one.l, one.d)]
        table.add_row(
            one.run_dir.name.removesuffix(f"-{one.identity[:10]}").removeprefix("autoencoder-"),
            one.identity[:10] or "?",
            *shape,
            one.corpus[:8] or "?",
            "-" if one.accuracy is None else f"{100 * one.accuracy:.2f} %",
            f"{one.train_flops:.3g}",
            _size(one.bytes),
            str(len(one.users)),
            one.state_in_words(),
            datetime.fromtimestamp(one.last_used).strftime("%Y-%m-%d"),
        )
    return table


def _size(count: int) -> str:
    """Return bytes in words."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count} B"

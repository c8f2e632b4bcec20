"""`calm`: the commands put together, and what a failure looks like.

What a user can mend is one sentence on stderr and exit status 2; Ctrl-C is 130; everything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

import errno
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from calm_lightning import __version__
from calm_lightning.cli import cache, data, pareto, runs, sweep
from calm_lightning.cli.checkpoints import export_hf, import_hf
from calm_lightning.cli.config import config
from calm_lightning.cli.diagnose import diagnose
from calm_lightning.cli.evaluate import evaluate
from calm_lightning.cli.flops import flops
from calm_lightning.cli.generate import generate
from calm_lightning.cli.register import register
from calm_lightning.cli.report import report
from calm_lightning.cli.reproduce import reproduce
from calm_lightning.cli.train import train
from calm_lightning.cli.ui import ui
from calm_lightning.cli.unsent import send, unsent
from calm_lightning.errors import CalmError

USER_ERROR = 2
INTERRUPTED = 130
_CONTINUED = ("reproduce", "sweep", "train")
"""Commands that continue where they were stopped."""
_MENDABLE = (
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
)


class FrontDoor(TyperGroup):
    """The command group that turns what a user can mend into one sentence."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            Exit: With status 2 after an error the user can mend, 130 after Ctrl-C.
        """
        try:
            return super().invoke(ctx)
        except CalmError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(USER_ERROR) from None
        except KeyboardInterrupt:
            again = ": run the same command again to continue" if ctx.invoked_subcommand in _CONTINUED else ""
            typer.echo(f"\ninterrupted{again}", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:
            if error.errno not in _MENDABLE:
                raise
            typer.echo(f"error: {_mendable(error)}", err=True)
            raise typer.Exit(USER_ERROR) from None


def _mendable(error: OSError) -> str:
    """Return what to do about a full or protected disk."""
    place = error.filename2 or error.filename or "a file"
    cure = "free space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose a place you may write to"
    return f"{place} cannot be used: {error.strerror}; {cure} and run the same command again"


app = typer.Typer(
    cls=FrontDoor,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, sweep and compare Continuous Autoregressive Language Models (CALM).",
    epilog="Start here: calm reproduce k4-sweet-spot",
)
app.command()(reproduce)
app.add_typer(sweep.app, name="sweep")
app.add_typer(cache.app, name="cache")
app.add_typer(data.app, name="data")
app.command()(train)
app.command("eval")(evaluate)
app.command()(generate)
app.command()(diagnose)
app.command()(flops)
app.command()(config)
app.command()(report)
app.add_typer(pareto.app, name="pareto")
app.add_typer(runs.app, name="runs")
app.command()(import_hf)
app.command()(export_hf)
app.command()(ui)

for _command in (register, unsent, send):
    runs.app.command()(_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"calm {__version__}")
        raise typer.Exit


@app.callback()
def _calm(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train, sweep and compare Continuous Autoregressive Language Models (CALM)."""


def main() -> None:
    """Run the command line (the console script `calm`)."""
    app(prog_name="calm")

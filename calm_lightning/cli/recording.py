"""What `calm eval` found, recorded in MLflow where the model's own run is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from calm_lightning.models import OpenModel
    from calm_lightning.programs.evaluation import Evaluation
    from calm_lightning.tracking.models.evaluations import Recorded

WithMlflow = Annotated[
    bool | None,
    typer.Option("--mlflow/--no-mlflow", help="Record the result in MLflow.", show_default="as the run was"),
]
_NOT_REPEATED = ("as_json", "out", "mlflow")
"""Options that say nothing of how a score is made."""


def find_store(model: Path, wanted: bool | None) -> Recorded | None:
    """Return where a model's run is recorded, None where its evaluation is not to be recorded.

    Args:
        model: Directory of the model.
        wanted: Whether to record it; None stands for as the run was.

    Raises:
        TrackingError: It was asked for, and the run is not recorded.
    """
    from calm_lightning.errors import TrackingError
    from calm_lightning.tracking.models.evaluations import store_of

    if wanted is False:
        return None
    try:
        recorded = store_of(model)
    except TrackingError:
        if wanted:
            raise
        return None
    asked = recorded.run.config.get("tracking", {}).get("mlflow", True)
    return recorded if wanted or asked else None


def record(
    recorded: Recorded, opened: OpenModel, found: Evaluation, text: Path | None, context: typer.Context, quiet: bool
) -> None:
    """Record an evaluation; if the store does not take it, say so in a line and keep it.

    Args:
        recorded: Where the model's run is recorded.
        opened: The model.
        found: The evaluation.
        text: The file that was scored, None for a split of the corpus.
        context: The command as it was given.
        quiet: Say nothing if all goes well.
    """
    from calm_lightning.tracking.models.datasets import EVALUATION, describe_split, describe_text
    from calm_lightning.tracking.models.evaluations import deliver, write_evaluation

    protocol = found.protocol
    if text is None:
        datasets = describe_split(opened.config.data, protocol.split, EVALUATION)
    else:
        datasets = [describe_text(text.name, protocol.corpus, protocol.tokens + protocol.left_out_tokens)]
    document = {"path": str(opened.path), **found.to_dict()}
    command = _as_given(context)
    try:
        place = write_evaluation(recorded, document, datasets, command, text.stem if text else protocol.split)
    except OSError as error:
        typer.echo(f"warning: the evaluation is not recorded in MLflow: {error.strerror}: {error.filename}", err=True)
        return
    if problem := deliver(recorded, place):
        typer.echo(
            f"warning: MLflow has not got the evaluation ({problem}); it is kept: "
            f"calm runs send --work-dir {recorded.work_dir}",
            err=True,
        )
    elif not quiet:
        typer.echo(f"recorded in MLflow: {place.directory.name.rpartition('-')[0]}")


def _as_given(context: typer.Context) -> list[str]:
    """Return the command as it was given, without what only says where the result goes."""
    words = ["calm", str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE" or name in _NOT_REPEATED:
            continue
        value: Any = context.params[name]
        words += [
            *([parameter.opts[0]] if parameter.opts[0].startswith("-") else []),
            str(getattr(value, "value", value)),
        ]
    return words

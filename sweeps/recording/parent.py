"""The MLflow run of a whole sweep, whose children are the runs it trains."""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from calm_lightning.tracking.outbox.outbox import Child, Outbox, OutboxPlace
from calm_lightning.tracking.tags import made_with
from sweeps import artifacts
from sweeps.config import SweepConfig
from sweeps.front.series import Series, front_points
from sweeps.report.comparisons import free_keys
from sweeps.report.history import Moment
from sweeps.report.palette import palette
from sweeps.report.seeds import models_of
from sweeps.report.tables import Budget, interval, scientific

FILES = (artifacts.FIGURE, artifacts.PAGE, artifacts.POINTS, artifacts.SUMMARY, artifacts.CONFIG)
"""Files of a sweep's directory that are copied."""
_MOST_ROWS = 15
"""Rows of the front that the description holds: MLflow takes 8,000 characters."""

_VIEWS = (
    "Its models in the charts: [BrierLM over cost](view:front), [means over seeds](view:seeds), "
    "[settings](view:sweep), [table](view:table)"
)


def study_identity(study: str) -> str:
    """Return the identity by which a sweep's MLflow run is found again."""
    return hashlib.sha256(f"study:{study}".encode()).hexdigest()


def parent_outbox(sweep: SweepConfig, directory: Path, corpus_hash: str) -> Outbox:
    """Return the outbox of a sweep that begins or goes on.

    Args:
        sweep: The sweep, its storage without password.
        directory: Its directory.
        corpus_hash: Hash of its corpus' manifest.
    """
    settings = {"name": sweep.name, "space": sweep.space, "corpus": vars(sweep.corpus)}
    tags = {
        "stage": "sweep",
        "study": directory.name,
        "corpus": corpus_hash,
        "calm.sweep_dir": str(directory),
        **made_with(),
    }
    return Outbox(
        identity=study_identity(directory.name),
        name=directory.name,
        uri=sweep.tracking.uri,
        experiment=sweep.tracking.experiment,
        tags=tags,
        params={"sweep": settings},
        description=_begun(sweep, directory),
        files=list(FILES),
        started=time.time(),
    )


def sweep_place(directory: Path) -> OutboxPlace:
    """Return where the outbox of a sweep lies."""
    return OutboxPlace(directory)


def children_of(series: Sequence[Series]) -> dict[str, Child]:
    """Return what the runs of trials are tagged with, by the number of the trial."""
    on_front = {one.trial for one, _ in front_points(series)}
    models = models_of(series)
    colours = palette(models, free_keys(models, {}))
    by_slug = {model.slug: colours.look(model).colour for model in models}
    children: dict[str, Child] = {}
    for one in series:
        tags = {"pareto": "front" if one.trial in on_front else "dominated", "state": one.state}
        if colour := by_slug.get(one.slug or one.label):
            tags["mlflow.runColor"] = colour
        if one.reason:
            tags["calm.reason"] = one.reason
        children[str(one.trial)] = {"directory": one.run_dir, "tags": tags}
    return children


def describe(
    sweep: SweepConfig, directory: Path, series: Sequence[Series], budget: Budget, moment: Moment, reference: float
) -> str:
    """Return what the page of a sweep's run says, as Markdown.

    Args:
        sweep: The sweep.
        directory: Its directory.
        series: Its models so far.
        budget: What it was given.
        moment: Its front as it stands.
        reference: Training cost that with BrierLM 0 is the reference point of hypervolumes.
    """
    points = front_points(series)
    rows = [
        f"| [{one.label}](trial:{one.trial}) | {scientific(point.train_flops)} | "
        f"{scientific(point.inference_flops_per_token)} | {interval(point)} |"
        for one, point in points[-_MOST_ROWS:]
    ]
    left_out = len(points) - len(rows)
    return "\n".join(
        [
            # The page shows the first lines only until it is unfolded: the answer comes first.
            f"**Front after {moment.trials} trials**: {moment.size} evaluations, best BrierLM {moment.best:.2f}, "
            f"hypervolume {moment.hypervolume:.3f} decades of FLOPs x percent below {scientific(reference)} FLOPs; "
            f"{scientific(moment.spent)} FLOPs spent.",
            "",
            _VIEWS,
            "",
            f"**{budget.title}**: {budget.line()}",
            "",
            f"![Front](artifact:{artifacts.FIGURE})",
            "",
            "| model | training FLOPs | FLOPs per token | BrierLM [95 %] |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            *([f"{left_out} cheaper evaluations of the front are in {artifacts.POINTS}.", ""] if left_out else []),
            *(f"- {caveat}" for caveat in budget.caveats),
            "",
            *_commands(directory),
        ]
    )


def _begun(sweep: SweepConfig, directory: Path) -> str:
    title = sweep.title or sweep.name
    return "\n".join([f"**{title}**: no trial has ended yet.", "", *_commands(directory)])


def _commands(directory: Path) -> list[str]:
    """Return the commands that repeat the sweep and report on it."""
    config, name = shlex.quote(str(directory / artifacts.CONFIG)), shlex.quote(str(directory))
    return ["```", f"calm sweep run {config}", f"calm sweep report {name}", "```"]

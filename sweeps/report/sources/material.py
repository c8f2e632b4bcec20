"""Everything that was named, read: from directories, sweeps and MLflow, each run once, with the autoencoders in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from calm_lightning.errors import CalmError, TrackingError
from calm_lightning.tracking.reading.places import Place
from calm_lightning.tracking.reading.selection import TrackedRun, read_run
from sweeps.front.series import PRUNED, Series
from sweeps.report.sources.folders import is_run, read_folder
from sweeps.report.sources.naming import Named
from sweeps.report.sources.run import AUTOENCODER, FINISHED, STOPPED, ReportedRun, metrics_of
from sweeps.report.sources.tracked import autoencoder_run_of, read_tracked
from sweeps.trials.reading import SweepRecord, read_sweep

Progress = Callable[[int, int, str], None]
"""Is told how much of how much is done, and what is being done."""


def quietly(done: int, of: int, what: str) -> None:
    """Tell nobody of the progress."""


@dataclass
class Material:
    """What was read.

    Attributes:
        records: The sweeps.
        trials: The run of each series of the sweeps, in their order.
        loose: Language models that belong to none of the sweeps, by what is equal for one run.
        autoencoders: Autoencoders by identity: those that were named, and those in use that are at hand.
        asked: Those of them that were named.
        remarks: What could not be read, in sentences.
    """

    records: list[SweepRecord] = field(default_factory=list)
    trials: list[ReportedRun] = field(default_factory=list)
    loose: dict[str, ReportedRun] = field(default_factory=dict)
    autoencoders: dict[str, ReportedRun] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    remarks: list[str] = field(default_factory=list)

    @property
    def models(self) -> list[ReportedRun]:
        """All language models."""
        return [*self.trials, *self.loose.values()]


def read_named(named: Named, progress: Progress = quietly) -> Material:
    """Read everything that was named.

    Raises:
        CalmError: A run that was named is damaged, or a store does not answer.
    """
    found = read_sweeps([read_sweep(place) for place in named.sweeps], progress)
    total = len(named.folders) + len(named.tracked)
    for number, place in enumerate(named.folders):
        progress(number, total, place.name)
        _add(found, read_folder(place))
    for number, (tracked, store) in enumerate(named.tracked, start=len(named.folders)):
        progress(number, total, tracked.name)
        run = read_tracked(tracked, store)
        _add(found, run)
        _add_autoencoder_of_store(found, run, tracked, store)
    for run in found.models:
        _add_autoencoder_at_hand(found, run)
    return found


def read_sweeps(records: Sequence[SweepRecord], progress: Progress = quietly) -> Material:
    """Read the runs of sweeps: what the study does not hold comes from their directories, where these are at hand."""
    found = Material(records=list(records))
    total = sum(len(record.series) for record in records)
    for record in records:
        for one in record.series:
            progress(len(found.trials), total, one.label)
            found.trials.append(_trial(one, record, found.remarks))
    for run in found.trials:
        _add_autoencoder_at_hand(found, run)
    return found


def _trial(one: Series, record: SweepRecord, remarks: list[str]) -> ReportedRun:
    """Return the run of a trial; what its directory does not say any more comes from the study."""
    own = _of_study(one)
    if one.run_dir and is_run(Path(one.run_dir)):
        try:
            own = read_folder(Path(one.run_dir))
        except CalmError as error:
            remarks.append(f"{error} (its numbers come from the sweep's study)")
    tags = {**own.tags, "study": record.study, "seed": str(one.seed)}
    if one.state == PRUNED:
        return replace(own, tags=tags, state=STOPPED, reason=one.reason or "stopped early")
    return replace(own, tags=tags)


def _of_study(one: Series) -> ReportedRun:
    return ReportedRun(
        name=Path(one.run_dir).name or one.label,
        stage=one.stage,
        state=FINISHED,
        resolved={},
        evaluations={point.step: metrics_of(point) for point in one.points},
        points=one.points,
        text=one.text,
        autoencoder_dir=one.autoencoder_dir if is_run(Path(one.autoencoder_dir or "-")) else "",
        mlflow_run_id=one.mlflow_run_id or "",
        ended=one.finished,
    )


def _add(found: Material, run: ReportedRun) -> None:
    """Add a run that was named, unless it is there."""
    if run.stage == AUTOENCODER:
        found.autoencoders[run.key] = run
        found.asked.add(run.key)
    elif not any(_same(run, one) for one in found.trials):
        found.loose.setdefault(run.key, run)


def _same(first: ReportedRun, second: ReportedRun) -> bool:
    if first.run_dir and second.run_dir:
        return Path(first.run_dir).resolve() == Path(second.run_dir).resolve()
    return bool(first.identity) and first.identity == second.identity


def _add_autoencoder_at_hand(found: Material, run: ReportedRun) -> None:
    """Add the autoencoder that a run uses, where its directory is at hand."""
    if not run.autoencoder_dir or run.autoencoder in found.autoencoders:
        return
    if any(one.run_dir == run.autoencoder_dir for one in found.autoencoders.values()):
        return
    try:
        below = read_folder(Path(run.autoencoder_dir))
    except CalmError as error:
        found.remarks.append(str(error))
        return
    found.autoencoders.setdefault(below.key, below)


def _add_autoencoder_of_store(found: Material, run: ReportedRun, tracked: TrackedRun, store: Place) -> None:
    """Add the autoencoder that a run of a store uses, where it is not at hand otherwise."""
    run_id = autoencoder_run_of(tracked)
    if not run_id or run.autoencoder_dir or run.autoencoder in found.autoencoders:
        return
    try:
        below = read_tracked(read_run(run_id, store), store)
    except TrackingError:
        found.remarks.append(
            f"The autoencoder of {run.name} is not in {store.shown}: its own curve and costs are missing."
        )
        return
    found.autoencoders.setdefault(below.key, below)

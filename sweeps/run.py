"""A sweep from raw text to its front: corpus, study, workers, results. Killed anywhere, the same command continues.

The coordinator starts workers, shows what they do, replaces those that die, and writes the results. It decides nothing
that a worker could not: who trains what is between the workers and the record.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console

from calm_lightning.errors import SweepError
from calm_lightning.tracking.outbox.outbox import FAILED, FINISHED, KILLED
from sweeps import artifacts
from sweeps.config import SweepConfig, sweep_to_yaml
from sweeps.corpus import corpus_dir, prepare_corpus
from sweeps.directory import LEASES, STOP, WORKERS, Session, clear_stop, write_session
from sweeps.launchers.base import DIED, ENDED, LEFT, Launcher, WorkerSettings, WorkerStatus
from sweeps.launchers.registry import make_launcher
from sweeps.recording.delivery import deliver
from sweeps.recording.live import LiveFront
from sweeps.recording.models import copy_front_models
from sweeps.recording.parent import parent_outbox, study_identity, sweep_place
from sweeps.recording.recorder import Recorder
from sweeps.report.results import show_results
from sweeps.space.points import PointMaker
from sweeps.trials.leases import Leases
from sweeps.trials.planner import Planner, planned_trials, planning
from sweeps.trials.reading import SweepRecord, read_sweep
from sweeps.trials.record import TrialRecord, open_record
from sweeps.trials.storage import without_password
from sweeps.validation import study_name, validate_sweep
from sweeps.watch.display import Display, make_display
from sweeps.watch.observe import Observer
from sweeps.watch.snapshot import Snapshot

if TYPE_CHECKING:
    from calm_lightning.data.shards.manifest import Manifest
    from calm_lightning.tracking.outbox.tracker import MlflowTracker

PrepareCorpus = Callable[[SweepConfig, Path], "Manifest"]
MakeLauncher = Callable[[str, WorkerSettings], Launcher]
_POLL_SECONDS = 0.5
_LIVES = 3
"""How often in a row a worker is replaced that died before it took a trial."""
USER = "asked by the user"


@dataclass(frozen=True)
class SweepResult:
    """What a sweep left behind.

    Attributes:
        record: Configuration, series, failures.
        files: Paths of figures and tables; empty where nothing has been evaluated yet.
        parent_run_id: MLflow run id of the parent, None where it is not recorded.
    """

    record: SweepRecord
    files: tuple[Path, ...]
    parent_run_id: str | None


@dataclass(frozen=True)
class Opened:
    """A sweep whose study is there.

    Attributes:
        directory: Its directory.
        sweep: The sweep.
        session: What its workers know.
        record: Its trials.
        planner: Plans further ones.
        recorder: Keeps its figures, tables and MLflow run in step with its trials.
        tracker: Sends it to MLflow, None where it is not recorded there.
    """

    directory: Path
    sweep: SweepConfig
    session: Session
    record: TrialRecord
    planner: Planner
    recorder: Recorder
    tracker: MlflowTracker | None


def run_sweep(
    sweep: SweepConfig,
    work_dir: Path,
    console: Console,
    *,
    plain: bool = False,
    retry_failed: bool = False,
    prepare: PrepareCorpus = prepare_corpus,
    launch: MakeLauncher = make_launcher,
) -> SweepResult:
    """Run a sweep to its end, or continue it.

    Args:
        sweep: The sweep.
        work_dir: Directory that holds run directories.
        console: Where progress is shown.
        plain: Show lines even on a terminal.
        retry_failed: Try trials again that have failed.
        prepare: Makes the corpus.
        launch: Makes the launcher.

    Raises:
        CalmError: Whatever the user can mend; running it again continues.
        KeyboardInterrupt: The user stopped it; running it again continues.
    """
    validate_sweep(sweep)
    corpus = corpus_dir(sweep, work_dir)
    console.print(f"corpus: {corpus}", highlight=False, soft_wrap=True)
    manifest = prepare(sweep, corpus)
    directory = work_dir.resolve() / "sweeps" / study_name(sweep, manifest.corpus_hash)
    leases = Leases(directory / LEASES, "coordinator", sweep.launch.beat_seconds, sweep.launch.dead_after_seconds)
    with _alone(leases, directory), _terminable():
        opened = _open(sweep, work_dir.resolve(), directory, corpus, manifest, retry_failed)
        console.print(f"study: {directory.name}", highlight=False, soft_wrap=True)
        try:
            _conduct(opened, leases, make_display(console, plain), launch)
        except BaseException as error:
            if opened.tracker:
                status = KILLED if isinstance(error, KeyboardInterrupt) else FAILED
                opened.tracker.finish(status, sweep.tracking.wait_seconds)
            raise
        return _conclude(opened, console)


@contextmanager
def _alone(leases: Leases, directory: Path) -> Iterator[None]:
    """Be the only coordinator of this sweep.

    Raises:
        SweepError: There is one.
    """
    lease = leases.acquire("coordinator")
    if lease is None:
        holder = leases.holder("coordinator")
        by = f"process {holder.pid} on {holder.host}" if holder else "another process"
        raise SweepError(
            f"the sweep {directory.name} is being run by {by}: look at it with `calm sweep status`, end it with "
            f"`calm sweep stop`, or lend a hand with `calm sweep worker`"
        )
    try:
        yield
    finally:
        leases.close()


@contextmanager
def _terminable() -> Iterator[None]:
    """Have SIGTERM end the sweep as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _open(
    sweep: SweepConfig, work_dir: Path, directory: Path, corpus: Path, manifest: Manifest, retry_failed: bool
) -> Opened:
    """Open or create the study, write what workers need, and plan the first trials."""
    maker = PointMaker(sweep, corpus, work_dir, manifest.vocabulary)
    planned = planned_trials(maker)
    record = open_record(directory, sweep.storage, directory.name, sweep.objectives)
    if retry_failed:
        record.retry_failed()
    planner = Planner(maker, record)
    with planning(directory):  # before anything is written: a mistake in the space is the user's to hear of
        planner.plan(room=2 * sweep.launch.workers)
    session = Session(
        study=directory.name,
        work_dir=str(work_dir),
        corpus=str(corpus),
        corpus_hash=manifest.corpus_hash,
        vocabulary=manifest.vocabulary,
        storage=sweep.storage,
        ended=tuple(trial.number for trial in record.trials() if trial.state.is_finished()),
        parent=study_identity(directory.name) if sweep.tracking.mlflow else "",
        planned=planned or 0,
        begun=time.time(),
    )
    public = replace(sweep, storage=without_password(sweep.storage))  # the file is also copied to MLflow
    artifacts.write_text(directory / artifacts.CONFIG, sweep_to_yaml(public))
    artifacts.clear_partial(directory)
    clear_stop(directory)
    write_session(directory, session)
    tracker = _track(public, directory, manifest)
    return Opened(directory, sweep, session, record, planner, Recorder(directory, manifest, record, tracker), tracker)


def _track(sweep: SweepConfig, directory: Path, manifest: Manifest) -> MlflowTracker | None:
    """Start sending the sweep to MLflow, if it is recorded there.

    Raises:
        TrackingError: MLflow is not installed.
    """
    if not sweep.tracking.mlflow:
        return None
    from calm_lightning.tracking.outbox.tracker import MlflowTracker

    return MlflowTracker(sweep_place(directory), parent_outbox(sweep, directory, manifest.corpus_hash)).start()


def _conduct(opened: Opened, leases: Leases, display: Display, launch: MakeLauncher) -> None:
    """Start workers and keep them going until nothing is left to do.

    Raises:
        SweepError: Workers cannot be started, or die one after the other.
        KeyboardInterrupt: The user stopped the sweep; its workers have left.
    """
    observer = Observer(opened.directory, opened.sweep, opened.session, opened.record, leases)
    final: Snapshot | None = None
    if _over(opened):
        return
    settings = opened.sweep.launch
    launcher = launch(
        settings.launcher,
        WorkerSettings(opened.directory, settings.workers, settings.cores, settings.gpus, dict(settings.options)),
    )
    try:
        launcher.start()
        try:
            with LiveFront(opened.directory, opened.recorder) as live:
                _keep_going(opened, launcher, observer, display, live)
        except BaseException:
            launcher.stop(now=False)  # interrupted once more, it ends them at once
            raise
        finally:
            launcher.stop(now=True)
        final = observer.look(launcher.poll())
    finally:
        display.close(final)


def _over(opened: Opened) -> bool:
    """Return whether every trial has ended and no further one can be planned."""
    with planning(opened.directory):
        more = opened.planner.plan(room=1)
    return not more and all(trial.state.is_finished() for trial in opened.record.trials())


def _keep_going(opened: Opened, launcher: Launcher, observer: Observer, display: Display, live: LiveFront) -> None:
    """Show the sweep and replace workers that died, until all have left."""
    lives: dict[str, tuple[int, int]] = {}
    while True:
        statuses = launcher.poll()
        shot = observer.look(statuses)
        display.update(shot)
        live.ended(shot.ended)
        gone = [status for status in statuses if status.state in (LEFT, DIED)]
        if all(status.state in ENDED for status in statuses) and (shot.stopping or not gone):
            break
        for status in () if shot.stopping else gone:
            if status.state == DIED:
                # A death with a trial in hand counts against the trial, which is given up after `retries`.
                moved = shot.ended + sum(trial.attempts for trial in shot.trials)
                _spend_a_life(lives, status, moved, opened.directory)
            launcher.replace(status.name)
        time.sleep(_POLL_SECONDS)
    _say_why(opened.directory)


def _spend_a_life(lives: dict[str, tuple[int, int]], worker: WorkerStatus, moved: int, directory: Path) -> None:
    """Count a worker's death against its lives, all of which it has again whenever a trial was taken or has ended.

    Raises:
        SweepError: It has none left.
    """
    before, left = lives.get(worker.name, (moved, _LIVES))
    left = _LIVES if moved > before else left
    if left == 0:
        raise SweepError(
            f"the worker {worker.name} died {_LIVES + 1} times before it took a trial ({worker.reason}): "
            f"read {directory / WORKERS / worker.name}.log, mend it, and run the command again"
        )
    lives[worker.name] = (moved, left - 1)


def _say_why(directory: Path) -> None:
    """Turn a stop that was asked for into its exception.

    Raises:
        KeyboardInterrupt: A user asked.
        SweepError: The workers gave up.
    """
    try:
        why = (directory / STOP).read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    if why == USER:
        raise KeyboardInterrupt
    raise SweepError(f"{why}; mend it and continue with calm sweep resume {directory.name} --retry-failed")


def _conclude(opened: Opened, console: Console) -> SweepResult:
    """Write the results and record them."""
    record, tracker, wait = read_sweep(opened.directory), opened.tracker, opened.sweep.tracking.wait_seconds
    if not record.series:
        if tracker:
            tracker.finish(FAILED, wait)
        reason = record.failures[0].reason if record.failures else "no point satisfies the constraints"
        raise SweepError(f"no trial of {record.study} has a result ({reason}): see {opened.directory}")
    files, budget = opened.recorder.record(record)
    if tracker:
        copy_front_models(record, opened.sweep)
        tracker.finish(FINISHED, wait)
        deliver(opened.directory, console)
    show_results(console, record, budget)
    return SweepResult(record, tuple(files), tracker.run_id if tracker else None)

"""The composition root: RunConfig -> data + stage + trainer -> RunResult.

A run is named by its identity (what changes its numbers). Executing the same configuration again finds the same run
directory and continues it, or returns at once if it has finished. A run directory holds config.yaml, metrics.jsonl
(every logged number), checkpoints/, and once finished tokenizer/, model.safetensors, sample.txt and result.json.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calm_lightning.assembly import (
    CHECKPOINT,
    CONFIG,
    RESULT,
    SAMPLE,
    FinishedAutoencoder,
    build_ledger,
    build_stage,
    build_trainer,
    default_name,
    lightning_interrupts,
    load_result,
    resolve,
)
from calm_lightning.config import RunConfig, essentials, identity, to_yaml
from calm_lightning.config.validation import validate
from calm_lightning.data.datamodule import PileDataModule
from calm_lightning.errors import BusyError, CheckpointError
from calm_lightning.finishing import write_finished, write_text
from calm_lightning.metrics import names
from calm_lightning.metrics.names import ScorePoint
from calm_lightning.stages.allocator import keep_freed_memory
from calm_lightning.stages.base import Stage
from calm_lightning.stages.watch import RunStopped, Watch
from calm_lightning.tracking.journal import MetricsJournal, by_step, read_journal
from calm_lightning.tracking.outbox.outbox import FINISHED, Outbox, OutboxPlace

if TYPE_CHECKING:
    from calm_lightning.tracking.outbox.tracker import MlflowTracker


@dataclass(frozen=True)
class RunResult:
    """What a finished run left behind.

    Attributes:
        run_dir: The run directory.
        identity: SHA-256 of everything that changes the run's numbers.
        name: Readable name.
        stage: "autoencoder", "calm" or "baseline".
        points: Every evaluation of a language model, the untrained one first; empty for autoencoders.
        metrics: All values of the last evaluation, by name.
        train_flops: Training FLOPs, the autoencoder's share included.
        text: The generated sample; empty for autoencoders.
        mlflow_run_id: Where MLflow has it, if it does.
        reused: Whether it had finished before, so that nothing was trained now.
    """

    run_dir: Path
    identity: str
    name: str
    stage: str
    points: tuple[ScorePoint, ...]
    metrics: dict[str, float]
    train_flops: float
    text: str
    mlflow_run_id: str | None
    reused: bool


@dataclass(frozen=True)
class RunPlace:
    """What a configuration stands for, before anything is trained or written.

    Attributes:
        config: The configuration, with what corpus, hardware and autoencoder decide filled in.
        identity: SHA-256 of everything that changes the run's numbers.
        name: Readable name.
        run_dir: The run directory, whether it exists or not.
        lineage: Hashes of corpus and autoencoder.
        data: The data module.
        autoencoder: The autoencoder that it uses, None for other stages.
    """

    config: RunConfig
    identity: str
    name: str
    run_dir: Path
    lineage: dict[str, str]
    data: PileDataModule
    autoencoder: FinishedAutoencoder | None

    @property
    def finished(self) -> bool:
        """Whether the run has been trained to its end."""
        return (self.run_dir / RESULT).is_file()


def locate(config: RunConfig) -> RunPlace:
    """Return a run's identity and where it is or will be; nothing is trained or written.

    Raises:
        CalmError: The corpus or the autoencoder is missing, or does not fit the model.
    """
    apart = config.stage != "autoencoder" and not config.model.cross_document_attention
    data = PileDataModule(config.data, config.seed, documents=apart)
    config, found = resolve(config, data)
    lineage = {"corpus": data.corpus.hash} | ({"autoencoder": found.identity} if found else {})
    run_identity = identity(config, **lineage)
    name = config.name or default_name(config)
    run_dir = Path(config.work_dir) / config.stage / f"{name}-{run_identity[:10]}"
    return RunPlace(config, run_identity, name, run_dir, lineage, data, found)


def execute(
    config: RunConfig,
    *,
    parent: str = "",
    tags: dict[str, str] | None = None,
    progress: bool = True,
    watch: Watch | None = None,
) -> RunResult:
    """Train and score one run, continue it, or return its result if it has finished.

    Args:
        config: The configuration; `resolve` fills in what corpus, hardware and autoencoder decide.
        parent: Identity of the sweep that this run is a part of; in MLflow it is a child of the sweep's run.
        tags: Further MLflow tags.
        progress: Whether to show a progress bar.
        watch: Is told of evaluations and may stop the run between steps.

    Raises:
        CalmError: Whatever the user can mend, in one sentence.
        RunStopped: The watcher stopped it; executing it again continues.
        KeyboardInterrupt: The user stopped it; executing it again continues.
    """
    validate(config)
    keep_freed_memory()
    place = locate(config)
    config, data, found, run_dir = place.config, place.data, place.autoencoder, place.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    with _only_process(run_dir):
        if (run_dir / RESULT).is_file():
            load_result(run_dir)
        write_text(run_dir / CONFIG, to_yaml(config))
        reused = place.finished
        tracker = _track(place, parent, tags or {})
        try:
            if not reused:
                stage = _train(config, data, found, run_dir, progress, watch)
                write_finished(config, data, stage, run_dir, {"model": place.identity} | place.lineage, place.name)
        except BaseException as error:
            if tracker:
                stopped = isinstance(error, (KeyboardInterrupt, RunStopped))
                run_id = tracker.finish("KILLED" if stopped else "FAILED", config.tracking.wait_seconds)
                if isinstance(error, RunStopped):
                    error.mlflow_run_id = run_id
            raise
        if tracker:
            _finish_tracking(tracker, place, alone=not parent, reused=reused)
    return read_result(run_dir, reused=reused)


def read_result(run_dir: Path, *, reused: bool = True) -> RunResult:
    """Read a finished run from its directory.

    Raises:
        CheckpointError: The run has not finished.
    """
    if not (run_dir / RESULT).is_file():
        raise CheckpointError(f"{run_dir} holds no finished run: run its command again to continue it")
    result = load_result(run_dir)
    sample = run_dir / SAMPLE
    return RunResult(
        run_dir=run_dir,
        identity=result["identity"],
        name=result["name"],
        stage=result["stage"],
        points=read_points(run_dir),
        metrics=result["metrics"],
        train_flops=result["train_flops"],
        text=sample.read_text() if sample.is_file() else "",
        mlflow_run_id=result["mlflow_run_id"],
        reused=reused,
    )


def read_points(run_dir: Path) -> tuple[ScorePoint, ...]:
    """Return every evaluation of a language model's run so far, by rising step.

    Raises:
        TrackingError: The journal is damaged.
    """
    steps = by_step(read_journal(run_dir))
    points = (ScorePoint.from_metrics(step, dict(values)) for step, values in steps.items())
    return tuple(point for point in points if point is not None)


def _train(
    config: RunConfig,
    data: PileDataModule,
    found: FinishedAutoencoder | None,
    run_dir: Path,
    progress: bool,
    watch: Watch | None,
) -> Stage:
    """Train to the last step, from a checkpoint if there is one, evaluating before the first and after the last."""
    stage = build_stage(config, found)
    ledger = build_ledger(config, found)
    journal = MetricsJournal(run_dir)
    checkpoint = run_dir / CHECKPOINT
    trainer = build_trainer(config, ledger, journal, checkpoint, progress, watch)
    resume = checkpoint.is_file()
    with lightning_interrupts(trainer):
        journal.rewind(trainer.strategy.checkpoint_io.load_checkpoint(checkpoint)["global_step"] if resume else -1)
        if not resume:
            trainer.validate(stage, datamodule=data, verbose=False)
        trainer.fit(stage, datamodule=data, ckpt_path=checkpoint if resume else None, weights_only=True)
        if names.TRAIN_FLOPS not in by_step(read_journal(run_dir)).get(trainer.global_step, {}):
            trainer.validate(stage, datamodule=data, verbose=False)
    return stage


def _track(place: RunPlace, parent: str, tags: dict[str, str]) -> MlflowTracker | None:
    """Start MLflow tracking, if it is asked for and has anything to tell."""
    config, run_dir = place.config, place.run_dir
    if not config.tracking.mlflow:
        return None
    from calm_lightning.tracking.models.datasets import describe_datasets
    from calm_lightning.tracking.outbox.runs import ENVIRONMENT, run_outbox
    from calm_lightning.tracking.outbox.tracker import MlflowTracker
    from calm_lightning.tracking.provenance import environment

    outbox = run_outbox(
        asdict(config),
        essentials(config),
        config.tracking,
        run_dir=run_dir,
        identity=place.identity,
        name=place.name,
        parent=parent,
        corpus=place.lineage["corpus"],
        autoencoder=place.lineage.get("autoencoder", ""),
        datasets=describe_datasets(asdict(config)),
        tags=tags,
    )
    if entries := read_journal(run_dir):  # it goes on, or had ended before
        outbox.started = entries[0].time
    outbox_place = OutboxPlace(run_dir, parent)
    if place.finished and outbox_place.told(outbox):
        return None
    if not place.finished:
        write_text(run_dir / ENVIRONMENT, environment())
    sampled = config.tracking.system_metrics and not place.finished
    return MlflowTracker(outbox_place, outbox, system_metrics=sampled).start()


def _finish_tracking(tracker: MlflowTracker, place: RunPlace, *, alone: bool, reused: bool) -> None:
    """Draw the curve, describe what was found, and end the MLflow run."""
    from calm_lightning.tracking.models.logging import model_bytes
    from calm_lightning.tracking.outbox.figure import draw_curve
    from calm_lightning.tracking.outbox.runs import FIGURE, describe_run

    run_dir, config = place.run_dir, place.config
    entries, result = read_journal(run_dir), load_result(run_dir)
    steps = by_step(entries)
    drawn = draw_curve(run_dir / FIGURE, place.name, steps, read_points(run_dir))
    autoencoder = place.lineage.get("autoencoder", "")
    below = place.autoencoder.run_dir.resolve() if place.autoencoder else None
    small = model_bytes(run_dir, below) <= 1e6 * config.tracking.model_megabytes

    def tell(outbox: Outbox) -> None:
        outbox.description = describe_run(asdict(config), run_dir, autoencoder, result["metrics"], drawn=drawn)
        if alone and small:  # a sweep copies the models on its front only
            outbox.model = str(below or "")

    tracker.update(tell)
    run_id = tracker.finish(FINISHED, config.tracking.wait_seconds, entries[-1].time if reused and entries else None)
    if run_id and result["mlflow_run_id"] != run_id:
        write_text(run_dir / RESULT, json.dumps({**result, "mlflow_run_id": run_id}, indent=2))


@contextmanager
def _only_process(run_dir: Path) -> Iterator[None]:
    """Hold the run directory against a second process that would train the same run."""
    with (run_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BusyError(f"another process is training {run_dir}: wait for it to finish, or stop it") from None
        yield

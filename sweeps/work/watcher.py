"""The watcher of a trial: it says what is trained, asks the pruning rule after each evaluation, and stops the run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial

from calm_lightning.config import RunConfig
from calm_lightning.metrics.names import ScorePoint
from calm_lightning.stages.watch import RunStopped
from sweeps.budget.rule import train_flops
from sweeps.config import INFERENCE_FLOPS, SweepConfig
from sweeps.front.series import Series
from sweeps.pruning.config import NONE, PARETO
from sweeps.pruning.rivals import competitors, evaluations
from sweeps.pruning.rule import Decision, decide
from sweeps.pruning.single import make_pruner, share
from sweeps.space.points import AUTOENCODER, Point
from sweeps.trials.record import CACHE, TrialRecord, series_of
from sweeps.trials.storage import patiently
from sweeps.work.progress import tell

if TYPE_CHECKING:
    from sweeps.cache.stage_cache import CacheUse

_LOOK_EVERY_SECONDS = 0.5


class Pruned(RunStopped):
    """The pruning rule stopped the trial.

    Attributes:
        decision: Why.
    """

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.reason)
        self.decision = decision


class Finished:
    """The finished trials of a sweep, each read from the record once.

    Args:
        record: The sweep's trials.
    """

    def __init__(self, record: TrialRecord) -> None:
        self._record = record
        self._known: dict[int, Series] = {}

    def others(self, number: int) -> list[Series]:
        """Return all finished trials but one."""
        for trial in self._record.trials():
            if trial.number not in self._known and (series := series_of(trial)) is not None:
                self._known[trial.number] = series
        return [series for other, series in self._known.items() if other != number]


@dataclass(frozen=True)
class WorkerContext:
    """What a worker knows while it works: the same for all of its trials.

    Attributes:
        sweep: The sweep.
        directory: Its directory.
        worker: Name of the worker.
        vocabulary: Vocabulary size V of the corpus.
        record: The sweep's trials.
        finished: Its finished trials.
        read_points: Reads the evaluations of a run directory.
    """

    sweep: SweepConfig
    directory: Path
    worker: str
    vocabulary: int
    record: TrialRecord
    finished: Finished
    read_points: Callable[[Path], tuple[ScorePoint, ...]]


class Watcher:
    """Watches one trial.

    Args:
        context: What its worker knows.
        trial: The trial.
        point: Its point, with its seeds.
        stopping: Whether the worker has to leave, or has lost the trial.
    """

    def __init__(self, context: WorkerContext, trial: FrozenTrial, point: Point, stopping: Callable[[], bool]) -> None:
        self._context, self._trial, self._point, self._stopping = context, trial, point, stopping
        self._looked, self._stopped = 0.0, False
        self._stage, self._before = "", 0.0
        self._cache: dict[str, Any] = dict(trial.user_attrs.get(CACHE) or {})
        self.run_dir, self.autoencoder_dir = Path(), ""

    def begins(self, config: RunConfig, run_dir: Path) -> None:
        """Tell what is trained next; that a trial trains its autoencoder itself is noted before it does."""
        self.run_dir, self._stage = run_dir, config.stage
        if config.stage == AUTOENCODER:
            self._note_cache(trained=True)
        steps = int(config.trainer["max_steps"])
        tell(
            self._context.directory,
            self._context.worker,
            config.stage,
            self._trial.number,
            run_dir=str(run_dir),
            max_steps=steps,
            before_flops=self._before,
        )
        if config.stage == self._point.stage and (points := self._context.read_points(run_dir)):
            self.evaluated(points[-1].step)  # a worker that died may not have come to asking

    def has_autoencoder(self, use: CacheUse) -> None:
        """Note the trial's autoencoder, and whether it found it: a trial that resumes finds its own."""
        self.autoencoder_dir, self._before = str(use.run_dir), use.train_flops
        self._note_cache(trained=use.trained, train_flops=use.train_flops, identity=use.identity)

    def _note_cache(self, **found: Any) -> None:
        known = found | {"trained": self._cache.get("trained", found["trained"])}
        if known != self._cache:
            self._cache = known
            self._context.record.note(self._trial, {CACHE: known})

    def interrupted(self) -> bool:
        """Return whether the run shall stop: asked after every step, it looks at the disk twice a second only."""
        now = time.monotonic()
        if not self._stopped and now - self._looked > _LOOK_EVERY_SECONDS:
            self._looked, self._stopped = now, self._stopping()
        return self._stopped

    def evaluated(self, step: int) -> None:
        """Ask the pruning rule about an evaluation of the language model.

        Raises:
            Pruned: The trial is stopped.
        """
        context, settings = self._context, self._context.sweep.pruning
        if self._stage != self._point.stage or settings.rule == NONE:
            return
        points = context.read_points(self.run_dir)
        if not points or step >= int(self._point.model.trainer["max_steps"]):
            return  # it has all that it asked for
        final = self._before + train_flops(self._point.model, context.vocabulary)
        if settings.rule == PARETO:
            dearest = points[-1].inference_flops_per_token if INFERENCE_FLOPS in context.sweep.objectives else math.inf
            rivals = competitors(context.finished.others(self._trial.number), self._stage, dearest)
            decision = decide(settings, points, final, evaluations(rivals), len(rivals))
        else:
            decision = self._ask_optuna(points[-1], final)
        if decision.stop:
            raise Pruned(decision)

    def _ask_optuna(self, point: ScorePoint, final_flops: float) -> Decision:
        """Return what Optuna's pruner says of an evaluation."""
        record, settings = self._context.record, self._context.sweep.pruning
        # Of the language model's own budget: a costly autoencoder must not make the first evaluation a late one.
        step = share(point.stage_train_flops, final_flops - self._before)
        record.report(self._trial, step, point.brier_lm)
        pruner = make_pruner(settings)
        stop = patiently(lambda: pruner.prune(record.study(), record.trial(self._trial)))
        reason = f"{settings.rule}: BrierLM {point.brier_lm:.3g} after {step} % of the budget is not among the best"
        return Decision(stop, reason, {"percent_of_budget": float(step), "brier_lm": point.brier_lm})

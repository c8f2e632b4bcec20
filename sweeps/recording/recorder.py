"""Recorder: keeps a sweep's figures, tables and MLflow run in step with its trials."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from calm_lightning.metrics import names
from calm_lightning.tracking.entries import JOURNAL_NAME, JournalEntry, append_entries, read_journal
from sweeps.front.series import Series
from sweeps.recording.parent import children_of, describe
from sweeps.report.history import Moment, history
from sweeps.report.results import write_results
from sweeps.report.tables import Budget
from sweeps.trials.reading import SweepRecord
from sweeps.trials.record import FORECAST, TrialRecord

if TYPE_CHECKING:
    from calm_lightning.data.shards.manifest import Manifest
    from calm_lightning.tracking.outbox.outbox import Outbox
    from calm_lightning.tracking.outbox.tracker import MlflowTracker


class Recorder:
    """Records one sweep.

    Args:
        directory: The sweep's directory.
        manifest: Its corpus.
        trials: Its trials, whose forecasts give the reference cost of a new sweep.
        tracker: Sends the directory to MLflow; None where it is not recorded there.
    """

    def __init__(self, directory: Path, manifest: Manifest, trials: TrialRecord, tracker: MlflowTracker | None) -> None:
        self._directory, self._manifest, self._tracker = directory, manifest, tracker
        self._reference = self._known_reference() or _reference(trials)

    def record(self, record: SweepRecord) -> tuple[list[Path], Budget]:
        """Write the files of a sweep as it stands, and tell MLflow.

        Args:
            record: The sweep, with at least one series.

        Returns:
            Paths of the files, and what the sweep was given.
        """
        files, budget = write_results(record, self._manifest)
        moments = history(record.series, self._reference)
        self._append(moments)
        if self._tracker is not None:
            words = describe(record.config, self._directory, record.series, budget, moments[-1], self._reference)
            self._tell(words, record.series)
        return files, budget

    def _tell(self, words: str, series: Sequence[Series]) -> None:
        assert self._tracker is not None

        def tell(outbox: Outbox) -> None:
            outbox.description, outbox.children = words, children_of(series)

        self._tracker.update(tell)

    def _append(self, moments: Sequence[Moment]) -> None:
        """Append the moments that the journal does not have: those since the last time, or all of a sweep of before."""
        known = {entry.step for entry in read_journal(self._directory)}
        fresh = [
            JournalEntry(
                moment.trials,
                round(moment.ended or time.time(), 3),
                {
                    names.FRONT_HYPERVOLUME: moment.hypervolume,
                    names.FRONT_SIZE: float(moment.size),
                    names.FRONT_BEST: moment.best,
                    names.FRONT_SPENT: moment.spent,
                    names.FRONT_REFERENCE: self._reference,
                },
            )
            for moment in moments
            if moment.trials not in known
        ]
        if fresh:
            append_entries(self._directory / JOURNAL_NAME, fresh)

    def _known_reference(self) -> float | None:
        """Return the reference cost that the journal was begun with: hypervolumes of one sweep have one reference."""
        entries = read_journal(self._directory)
        return entries[0].metrics.get(names.FRONT_REFERENCE) if entries else None


def _reference(trials: TrialRecord) -> float:
    """Return a round cost above that of all trials that are planned, with room for dearer ones to come."""
    costs = [float(trial.user_attrs.get(FORECAST, 0.0)) for trial in trials.trials()]
    return float(10.0 ** math.ceil(math.log10(3 * max(costs)))) if any(costs) else 1.0

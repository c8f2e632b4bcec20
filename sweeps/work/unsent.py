"""What MLflow was not told of finished runs during an outage is sent when the sweep's command is run again."""

from __future__ import annotations

from pathlib import Path

from calm_lightning.config import load_config
from calm_lightning.tracking.entries import UNSENT
from sweeps.directory import Session
from sweeps.trials.record import TrialRecord, series_of


def send_unsent(record: TrialRecord, session: Session) -> int:
    """Execute finished runs once more that MLflow has not got whole: nothing is trained, their tracker sends the rest.

    Args:
        record: The sweep's trials.
        session: Its session.

    Returns:
        How many runs there were.
    """
    found = [series for trial in record.trials() if (series := series_of(trial)) is not None]
    runs = [Path(place) for one in found for place in (one.autoencoder_dir, one.run_dir) if place]
    waiting = [run for run in dict.fromkeys(runs) if (run / UNSENT).exists() and (run / "result.json").is_file()]
    for run in waiting:
        from calm_lightning.run import execute

        execute(load_config([str(run / "config.yaml")]), parent_run_id=session.parent_run_id, progress=False)
    return len(waiting)

"""The trained models on a sweep's front, copied to MLflow once the sweep has ended."""

from __future__ import annotations

from pathlib import Path

from calm_lightning.tracking.outbox.outbox import OutboxPlace
from sweeps.config import SweepConfig
from sweeps.front.series import COMPLETE, front_points
from sweeps.recording.parent import study_identity
from sweeps.trials.reading import SweepRecord


def copy_front_models(record: SweepRecord, sweep: SweepConfig) -> int:
    """Have the models on the front copied into the store: their outboxes ask for it, whoever sends them does it.

    Args:
        record: The sweep.
        sweep: Its configuration.

    Returns:
        How many outboxes were changed.
    """
    from calm_lightning.tracking.models.logging import model_bytes

    asked = 0
    for one in {one.trial: one for one, _ in front_points(record.series) if one.state == COMPLETE}.values():
        place = OutboxPlace(Path(one.run_dir), study_identity(record.study))
        below = Path(one.autoencoder_dir) if one.autoencoder_dir else None
        outbox = place.read()
        if outbox is None or outbox.model is not None:
            continue
        if model_bytes(Path(one.run_dir), below) > 1e6 * sweep.tracking.model_megabytes:
            continue
        with place.held() as held:
            if held and (outbox := place.read()) is not None:
                outbox.model = str(below or "")
                place.write(outbox)
                asked += 1
    return asked

"""Configuration of tracking."""

from dataclasses import dataclass


@dataclass
class TrackingConfig:
    """Where runs are recorded. The metrics journal in the run directory is always written.

    Attributes:
        mlflow: Record to MLflow (needs the `tracking` extra).
        uri: MLflow tracking URI; empty means SQLite in `mlruns/` beside the work directory.
        experiment: MLflow experiment name, one per project.
        system_metrics: Sample CPU, memory, disk, network and GPU while a run trains.
        model_megabytes: A finished model up to this size is copied into the store, as one that MLflow loads; 0 copies
            none. A sweep copies those on its front only.
        wait_seconds: Longest wait at the end of a run for a store that is taking its numbers.
    """

    mlflow: bool = True
    uri: str = ""
    experiment: str = "calm"
    system_metrics: bool = True
    model_megabytes: float = 200.0
    wait_seconds: float = 30.0

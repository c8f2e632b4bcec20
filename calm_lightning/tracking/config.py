"""Configuration of tracking."""

from dataclasses import dataclass


@dataclass
class TrackingConfig:
    """Where runs are recorded. The metrics journal in the run directory is always written.

    Attributes:
        mlflow: Record to MLflow (needs the `tracking` extra).
        uri: MLflow tracking URI; empty means SQLite in `mlruns/` beside the work directory.
        experiment: MLflow experiment name.
    """

    mlflow: bool = True
    uri: str = ""
    experiment: str = "calm"

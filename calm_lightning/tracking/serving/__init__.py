"""The MLflow UI: its server on this machine, its prepared views."""

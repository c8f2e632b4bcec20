"""Runs of any origin (directories, sweeps, MLflow), as a report needs them."""

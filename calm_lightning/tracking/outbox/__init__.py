"""A run's or sweep's directory, mirrored by an MLflow run: what it shall show, and sending it, also after an outage."""

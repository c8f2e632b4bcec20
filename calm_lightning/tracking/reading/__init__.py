"""Runs read from MLflow stores: where stores are, which runs are meant, all their evaluations."""

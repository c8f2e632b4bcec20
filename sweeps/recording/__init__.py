"""A sweep as MLflow shows it: its own run with the front as it stands, and what its trials' runs are tagged with."""

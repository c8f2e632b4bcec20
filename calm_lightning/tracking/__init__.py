"""Where runs are recorded: the metrics journal (always), MLflow (on request), and where a run came from."""

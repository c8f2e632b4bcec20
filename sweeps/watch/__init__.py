"""A sweep while it runs: a snapshot of its trials, drawn live or told line by line."""

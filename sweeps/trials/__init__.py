"""A sweep's trials: the record in an Optuna storage, who owns a trial, which point comes next."""

"""RUNS -> FRONT: a grid of runs as an Optuna study, all their evaluations as one Pareto front, table and figure."""

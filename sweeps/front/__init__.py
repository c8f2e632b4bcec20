"""Evaluations -> front: series of scores, Pareto fronts, hypervolume."""

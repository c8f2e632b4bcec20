"""Runs of any stores -> fronts, and two fronts compared."""

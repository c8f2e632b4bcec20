"""Runs from one store to another, directly or as an archive, whole and once."""

"""Tars that others made as a corpus of text."""

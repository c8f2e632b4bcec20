"""Trained weights in and out of the platform: the authors' released names, and our own files."""

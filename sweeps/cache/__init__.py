"""Stages that are trained once: autoencoders shared between trials, processes and machines."""

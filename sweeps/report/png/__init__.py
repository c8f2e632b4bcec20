"""Figures for print: one file per figure, drawn without a display, the same bytes for the same numbers."""

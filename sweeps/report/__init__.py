"""A sweep for readers: tables, figures, pages, files to compute with."""

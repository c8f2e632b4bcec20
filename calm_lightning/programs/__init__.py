"""One module per command that uses a finished model: evaluate, generate, diagnose, import, export."""

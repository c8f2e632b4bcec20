"""The front door, one file per command. Only the standard library and typer at module level: help is instant."""

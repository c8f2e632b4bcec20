"""The exception tree. Every message says what is wrong, where, and what to do next.

The command line prints a `CalmError` as one sentence and exits with 2; anything else is a bug in
this project and keeps its traceback.
"""


class CalmError(Exception):
    """Base of every error a user can cause and mend."""


class ConfigError(CalmError):
    """A configuration key is unknown, of the wrong type, or contradicts another."""


class DataError(CalmError):
    """A source corpus, a tokenizer, a manifest or a shard is missing, damaged or does not fit."""


class ShardError(DataError):
    """A shard cannot be had, or is not what its manifest says."""


class BusyError(CalmError):
    """Another live process is at work on the same run."""


class CheckpointError(CalmError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class DivergenceError(CalmError):
    """Training left the numbers that mean anything."""


class TrackingError(CalmError):
    """The tracking store cannot be opened."""


class SweepError(CalmError):
    """A sweep cannot start or continue."""


class SamplingError(CalmError):
    """Text cannot be generated as asked: a prompt, a temperature or a budget does not fit."""

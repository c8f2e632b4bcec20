"""The launchers by name. A new one is a file, a line here, and a line in `tests/integration/test_launchers.py`."""

from __future__ import annotations

import difflib
from importlib import import_module

from calm_lightning.errors import SweepError
from sweeps.launchers.base import Launcher, WorkerSettings

_CLASSES = {
    "local": "sweeps.launchers.local:LocalLauncher",
    "ray": "sweeps.launchers.ray:RayLauncher",
    "slurm": "sweeps.launchers.slurm:SlurmLauncher",
}
"""Module and class: imported only when asked for, because Ray and Slurm's packages are extras."""
LAUNCHERS = tuple(_CLASSES)
"""Names of all launchers."""


def launcher_class(name: str) -> type[Launcher]:
    """Return the launcher of a name.

    Raises:
        SweepError: There is none of this name.
    """
    if name not in _CLASSES:
        close = difflib.get_close_matches(name, LAUNCHERS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise SweepError(f"there is no launcher {name!r}; {hint}known: {', '.join(LAUNCHERS)}")
    module, _, attribute = _CLASSES[name].partition(":")
    found: type[Launcher] = getattr(import_module(module), attribute)
    return found


def make_launcher(name: str, settings: WorkerSettings) -> Launcher:
    """Return a launcher; nothing is started yet.

    Args:
        name: Its name, `launch.launcher` of the sweep.
        settings: What it is asked for.

    Raises:
        ConfigError: `settings.options` holds a key that this launcher does not have.
        SweepError: There is no such launcher, or a package that it needs is missing.
    """
    factory: type = launcher_class(name)
    launcher: Launcher = factory(settings)
    return launcher

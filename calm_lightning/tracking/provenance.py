"""What a result was made with: commit, versions, machine.

Read once per run and written into its tags, never into its identity: the same configuration on another machine
is the same experiment. Nothing here starts a device or imports torch by itself.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

_PACKAGES = ("calm-lightning", "torch", "lightning", "numpy", "tokenizers", "optuna", "mlflow")
_CHECKOUT = Path(__file__).resolve().parents[2]


def _git(*arguments: str) -> str:
    """Return git's answer about the checkout, or "" where there is no git, no checkout or no answer."""
    try:
        done = subprocess.run(
            ["git", "-C", str(_CHECKOUT), *arguments], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def commit() -> str:
    """Return the commit of the checkout the code runs from, "-dirty" appended if it was edited; "" when installed."""
    if not (_CHECKOUT / ".git").exists():
        return ""
    revision = _git("rev-parse", "HEAD")
    return f"{revision}-dirty" if revision and _git("status", "--porcelain", "--untracked-files=no") else revision


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def processor() -> str:
    """Return the CPU's model name and its number of logical cores."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass  # not Linux: the name above has to do
    return f"{name} ({os.cpu_count()} cores)"


def accelerator() -> str:
    """Return the GPU's name, or "" if there is none or the process has not imported torch."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ""
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"


def provenance() -> dict[str, str]:
    """Return everything known about the code and the machine, by name; unknown facts are left out."""
    facts = {
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": processor(),
        "gpu": accelerator(),
        **{f"version.{package}": _version(package) for package in _PACKAGES},
    }
    return {name: value for name, value in facts.items() if value}


def environment() -> str:
    """Return commit, Python, machine and every installed package with its version, one fact per line."""
    facts = provenance()
    head = [f"{name}: {facts[name]}" for name in ("commit", "python", "platform", "cpu", "gpu") if name in facts]
    packages = {f"{one.name}=={one.version}" for one in metadata.distributions() if one.name}
    return "\n".join([*head, "", *sorted(packages, key=str.lower), ""])

"""Tags by which runs are found, filtered and compared in the UI.

What people filter by has a plain name (`tags.K = '4'`); what the platform itself needs begins with `calm.`, and what
the run was made with begins with `env.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calm_lightning.tracking.provenance import provenance

AUTOENCODER_RUN_TAG = "calm.autoencoder_run"


def run_tags(
    resolved: Mapping[str, Any], *, run_dir: Path, corpus: str = "", autoencoder_identity: str = ""
) -> dict[str, str]:
    """Return the tags of a run.

    Args:
        resolved: The resolved configuration as nested mappings.
        run_dir: The run directory.
        corpus: Hash of the corpus' manifest.
        autoencoder_identity: Identity of the autoencoder that a continuous model uses.
    """
    model, stage = resolved["model"], str(resolved["stage"])
    tags = {
        "stage": stage,
        "seed": str(resolved["seed"]),
        "corpus": corpus,
        "calm.run_dir": str(Path(run_dir).resolve()),
        "calm.autoencoder": autoencoder_identity,
    }
    if stage != "baseline":
        tags |= {"K": str(model["K"]), "l": str(model["l"] if model["l"] is not None else 32 * int(model["K"]))}
    if stage == "calm":
        tags |= {"head": str(model["head"]), "N": str(model["N"]), "M": str(model["M"])}
    return {name: value for name, value in tags.items() if value} | made_with()


def made_with() -> dict[str, str]:
    """Return commit and hardware as plain tags, and everything known about code and machine as `env.` tags."""
    facts = provenance()
    plain = {"commit": facts.get("commit", ""), "hardware": facts.get("gpu") or facts.get("cpu", "")}
    known = {name: value for name, value in plain.items() if value}
    return known | {f"env.{name}": value for name, value in facts.items()}

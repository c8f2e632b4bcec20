"""The commands that repeat a run anywhere: what its configuration changes of the defaults, written out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calm_lightning.config import RunConfig
from calm_lightning.data.shards.manifest import Manifest
from calm_lightning.errors import DataError
from sweeps.report.sources.keys import flat_keys, matters
from sweeps.report.sources.run import AUTOENCODER, ReportedRun

_ALWAYS = ("name", "data.corpus", "data.tokenizer", "trainer.accelerator")
"""Keys that are no part of what a run is, and that repeating it needs all the same."""
_HASH_SHOWN, _MOST_SOURCES = 10, 6


def train_command(run: ReportedRun) -> str:
    """Return the command that trains a run with the present code, whether its directory is at hand or not.

    It names what the configuration changes of the defaults, so that it gives the same run (the same identity) on any
    machine that has the corpus. A language model's autoencoder is named by where its own command puts it.

    Args:
        run: The run.
    """
    config = run.config()
    if config is None:
        return f"calm train {run.stage} {shlex.quote(str(Path(run.run_dir or run.name) / 'config.yaml'))}"
    arguments = [f"{key}={_shown(value)}" for key, value in _changes(config)]
    if config.stage == "calm":
        arguments.append(f"autoencoder_run=runs/{AUTOENCODER}/{Path(config.autoencoder_run).name}")
    return " ".join(["calm train", run.stage, *map(shlex.quote, arguments)])


def _changes(config: RunConfig) -> list[tuple[str, Any]]:
    """Return the keys in which a configuration differs from the defaults and makes another run, and their values."""
    default = flat_keys(RunConfig())
    found = [
        (key, value)
        for key, value in flat_keys(config).items()
        if key != "stage" and value != default.get(key) and (key in _ALWAYS or matters(config, key, default.get(key)))
    ]
    return [(key, _place(value) if key == "data.corpus" else value) for key, value in found]


def _place(corpus: Any) -> str:
    """Return the corpus as the command names it: relative where it lies below the current directory."""
    path, here = Path(str(corpus)), Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else str(corpus)


def _shown(value: Any) -> str:
    """Return a value as an override is written."""
    if isinstance(value, str):
        return value if value and not set(value) & set("{}[]:,#'\"\n") else json.dumps(value)
    return json.dumps(value)


def folder_command(run: ReportedRun) -> str:
    """Return the command that finds a run again, or goes on with it, where its directory is at hand; else ""."""
    config = Path(run.run_dir) / "config.yaml" if run.run_dir else None
    return f"calm train {run.stage} {shlex.quote(str(config))}" if config is not None and config.is_file() else ""


def corpus_lines(runs: Sequence[ReportedRun]) -> list[str]:
    """Return how the corpora of some runs were made, as far as their manifests are at hand."""
    found: dict[str, None] = {}
    for place in dict.fromkeys(str(run.section("data").get("corpus") or "") for run in runs):
        if place and "://" not in place and Path(place).is_dir():
            try:
                found[_corpus(Path(place).name, Manifest.load(Path(place)))] = None
            except DataError:
                continue
    return list(found)


def _corpus(name: str, manifest: Manifest) -> str:
    """Return what is in a corpus and what it was made of, in a sentence."""
    made = manifest.provenance
    listed = [f"{source.name} (SHA-256 {source.sha256[:8]})" for source in made.sources[:_MOST_SOURCES]]
    listed += [f"{len(made.sources) - _MOST_SOURCES} more"] if len(made.sources) > _MOST_SOURCES else []
    splits = ", ".join(f"{split} {record.totals.tokens:,} tokens" for split, record in manifest.splits.items())
    settings = ", ".join(f"{key} {value}" for key, value in sorted(made.settings.items()) if value)
    return (
        f"{name}, hash {manifest.corpus_hash[:_HASH_SHOWN]}: {splits}; made by calm data prepare of "
        f"{', '.join(listed) or 'sources that it does not name'} with {settings}."
    )

"""From a sweep to its points: which models, and the two run configurations that each of them stands for.

Points are values: equal sweeps give equal points, and the hash of their run identities names the study, so a
changed number starts a new study instead of mixing two budgets in one front.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from calm_lightning.config import RunConfig, identity, load_config, merge
from calm_lightning.config.validation import validate
from calm_lightning.errors import ConfigError
from sweeps.config import SweepConfig

BASELINE = "baseline"
_SHARED_PREFIXES = ("autoencoder.", "data.")
_SHARED_KEYS = ("model.K", "model.l", "model.vocabulary", "seed")
_SHORT = {"model.K": "K", "model.l": "l", "model.N": "N", "model.M": "M", "model.alpha": "alpha"}


@dataclass(frozen=True)
class Point:
    """One model of the grid.

    Attributes:
        label: How tables and figures call it, unique within a sweep.
        slug: How directories and the study call it.
        stage: "calm" or "baseline".
        values: The swept keys and their values here; empty for the baseline.
        model: Configuration of the language model's run; `autoencoder_run` is still to be set.
        autoencoder: Configuration of its autoencoder's run; None for the baseline.
    """

    label: str
    slug: str
    stage: str
    values: dict[str, Any]
    model: RunConfig
    autoencoder: RunConfig | None

    def language_model(self, autoencoder_run: str) -> RunConfig:
        """Return the language model's configuration, made to use a trained autoencoder."""
        return replace(self.model, autoencoder_run=autoencoder_run)


def flatten(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("a.b", value) for every leaf of a nested mapping."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def axes(sweep: SweepConfig) -> dict[str, list[Any]]:
    """Return the swept keys and their values.

    Raises:
        ConfigError: A key has no values, one value twice, or something that is not a list.
    """
    found = dict(flatten(sweep.space))
    for key, values in found.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"space.{key}={values} must be a list of at least one value, for example [1, 2, 4, 8]")
        if len({json.dumps(value) for value in values}) < len(values):
            raise ConfigError(f"space.{key}={values} holds a value twice")
    return found


def points(sweep: SweepConfig, corpus: Path, work_dir: Path) -> list[Point]:
    """Return the points of a sweep, the baseline first, with validated configurations.

    Args:
        sweep: The sweep.
        corpus: Directory of the prepared corpus.
        work_dir: Directory that holds run directories.

    Raises:
        ConfigError: A configuration contradicts itself; the message names the point.
    """
    places = {"data": {"corpus": str(corpus)}, "work_dir": str(work_dir), "tracking": vars(sweep.tracking)}
    made = []
    if sweep.include_baseline:
        baseline = _run(BASELINE, BASELINE, [sweep.all, sweep.baseline, places, {"name": BASELINE}])
        made.append(Point("baseline", BASELINE, BASELINE, {}, baseline, None))
    grid = axes(sweep)
    for combination in itertools.product(*grid.values()) if grid else ():
        made.append(_calm_point(sweep, dict(zip(grid, combination, strict=True)), places))
    return made


def _calm_point(sweep: SweepConfig, values: dict[str, Any], places: Mapping[str, Any]) -> Point:
    """Return one continuous model of the grid, with its autoencoder."""
    label = "CALM " + ", ".join(f"{_SHORT.get(key, key)}={value}" for key, value in values.items())
    slug = "-".join(f"{_SHORT.get(key, key)}{value}" for key, value in values.items())
    rules = [rule for rule in sweep.per_value if all(values.get(k) == v for k, v in flatten(rule.when))]
    shared = {k: v for k, v in values.items() if k in _SHARED_KEYS or k.startswith(_SHARED_PREFIXES)}
    below = [sweep.all, sweep.autoencoder, shared, *(rule.autoencoder for rule in rules), places]
    above = [sweep.all, sweep.calm, values, *(rule.calm for rule in rules), places]
    return Point(
        label=label,
        slug=slug,
        stage="calm",
        values=values,
        model=_run(label, "calm", [{"name": f"calm-{slug}"}, *above]),
        autoencoder=_run(label, "autoencoder", [{"name": f"autoencoder-{slug}"}, *below]),
    )


def _run(label: str, stage: str, layers: Sequence[Mapping[str, Any]]) -> RunConfig:
    """Return the run configuration that nested differences, applied in order, describe."""
    presets: list[str] = []
    merged: dict[str, Any] = {}
    for layer in layers:
        presets += layer.get("presets", [])
        merged |= flatten({key: value for key, value in layer.items() if key != "presets"})
    try:
        first = asdict(load_config(presets, stage=stage)) if presets else {}
        mappings = [
            ("presets", OmegaConf.create(first)),
            (f"section all or {stage}", OmegaConf.create(_nested({**merged, "stage": stage}))),
        ]
        config = merge(RunConfig, mappings)
        validate(config)
    except ConfigError as error:
        raise ConfigError(f"sweep, {stage} of {label}: {error}") from None
    return config


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"a": {"b": value}} for {"a.b": value}."""
    made: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        place = made
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return made


def digest(made: Sequence[Point], corpus_hash: str) -> str:
    """Return the hash that names the study: that of all its runs' identities, in order.

    Args:
        made: The points.
        corpus_hash: Hash of the corpus' manifest.
    """
    names = []
    for point in made:
        below = "" if point.autoencoder is None else identity(point.autoencoder, corpus=corpus_hash)
        names.append([point.label, identity(point.model, corpus=corpus_hash, autoencoder=below)])
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def axes_of(made: Sequence[Point]) -> dict[str, list[Any]]:
    """Return the swept keys of some points and the values they take, in order of first appearance."""
    found: dict[str, list[Any]] = {}
    for point in made:
        for key, value in point.values.items():
            if value not in found.setdefault(key, []):
                found[key].append(value)
    return found

"""SweepConfig: what a sweep trains, as YAML differences from the defaults of a run.

A sweep is read like a run's configuration (presets, then `key=value`), and its sections `all`, `autoencoder`,
`calm` and `baseline` are themselves differences from `RunConfig`, so every key of a run can be set for all
stages, for one stage, or for one value of the swept key, and nothing is written twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from calm_lightning.config import conf_dir, merge, read_yaml
from calm_lightning.errors import ConfigError
from calm_lightning.tracking.config import TrackingConfig


@dataclass
class CorpusConfig:
    """The corpus that every run of the sweep streams; prepared first if it is not there yet.

    Attributes:
        source: Sources as `calm data prepare` takes them.
        tokenizer: Tokenizer as `calm data prepare` takes it.
        out: Where the shards go; a relative path is taken beside the work directory.
    """

    source: list[str] = field(default_factory=lambda: ["sample"])
    tokenizer: str = "bpe:1024"
    out: str = "corpora/sample-bpe"


@dataclass
class PerValue:
    """Differences that hold for some points of the grid only.

    Attributes:
        when: Swept keys and the values they must have, nested; empty matches every CALM model.
        autoencoder: Differences for the autoencoders of these points.
        calm: Differences for the language models of these points.
    """

    when: dict[str, Any] = field(default_factory=dict)
    autoencoder: dict[str, Any] = field(default_factory=dict)
    calm: dict[str, Any] = field(default_factory=dict)


@dataclass
class SweepConfig:
    """A grid of runs and what is said about them.

    The sections `all`, `autoencoder`, `calm` and `baseline` are nested keys of a run; each may also hold
    `presets`, a list of preset names that come first.

    Attributes:
        name: Name of the sweep and of its directory under the work directory.
        title: Heading of table and figure.
        caveats: Sentences that say what this budget can and cannot show.
        corpus: The corpus.
        all: Differences for every run.
        autoencoder: Differences for autoencoders.
        calm: Differences for continuous language models.
        baseline: Differences for the token baseline.
        space: Swept keys of the continuous model and their values, nested; the grid is their product.
        include_baseline: Train the token baseline too.
        per_value: Differences for some points, applied last, in order.
        paper_overlay: Draw the paper's six models in a panel of their own.
        tracking: Where the study and its runs are recorded.
    """

    name: str = "sweep"
    title: str = ""
    caveats: list[str] = field(default_factory=list)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    all: dict[str, Any] = field(default_factory=dict)
    autoencoder: dict[str, Any] = field(default_factory=dict)
    calm: dict[str, Any] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)
    include_baseline: bool = True
    per_value: list[PerValue] = field(default_factory=list)
    paper_overlay: bool = True
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def list_sweeps() -> list[str]:
    """Return the sweeps that come with the package, as "name/preset", sorted."""
    root = conf_dir() / "sweep"
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find_sweep(name: str, preset: str) -> Path:
    """Return the YAML file of a sweep.

    Args:
        name: Name of the sweep, for example "k4-sweet-spot".
        preset: One of its presets, for example "sample", or a path to a YAML file.

    Raises:
        ConfigError: There is no such sweep.
    """
    if preset.endswith((".yaml", ".yml")):
        if Path(preset).is_file():
            return Path(preset)
        raise ConfigError(f"sweep file {preset} does not exist")
    path = conf_dir() / "sweep" / name / f"{preset}.yaml"
    if not path.is_file():
        raise ConfigError(f"there is no sweep {name} with preset {preset}; known: {', '.join(list_sweeps())}")
    return path


def _layers(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, DictConfig]]:
    """Return the mappings a sweep file stands for, the sibling file it `extends` first."""
    if path.resolve() in seen:
        raise ConfigError(f"{path} extends itself")
    loaded = read_yaml(path)
    parent = loaded.pop("extends", None)
    below = [] if parent is None else _layers(path.parent / f"{parent}.yaml", (*seen, path.resolve()))
    return [*below, (str(path), loaded)]


def _overrides_for_every_value(overrides: Sequence[str]) -> list[PerValue]:
    """Return the rule by which what is asked for on the command line also wins over the file's `per_value`."""
    asked = OmegaConf.from_dotlist([item for item in overrides if item.split(".")[0] in ("all", "autoencoder", "calm")])
    sections = {}
    for section in ("autoencoder", "calm"):
        merged = OmegaConf.merge(asked.get("all", {}), asked.get(section, {}))
        sections[section] = {key: value for key, value in _plain(merged).items() if key != "presets"}
    return [PerValue(**sections)] if any(sections.values()) else []


def _plain(node: Any) -> dict[str, Any]:
    """Return an OmegaConf mapping as nested dictionaries."""
    plain = OmegaConf.to_container(node)
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read a sweep file and apply overrides.

    Args:
        path: The YAML file; its key `extends` names a file in the same directory, without suffix.
        overrides: "key=value" strings, for example "calm.trainer.max_steps=200".

    Raises:
        ConfigError: An unknown key, a value of the wrong type, or an empty grid.
    """
    config = merge(SweepConfig, _layers(path), overrides)
    config.per_value += _overrides_for_every_value(overrides)
    if not config.name or not all(letter.isalnum() or letter in "-_." for letter in config.name):
        raise ConfigError(f"name={config.name!r} must be letters, digits, '-', '_' and '.': it names a directory")
    if not config.space and not config.include_baseline:
        raise ConfigError("space is empty and include_baseline=false: this sweep has nothing to train")
    return config


def sweep_to_yaml(config: SweepConfig) -> str:
    """Return the resolved sweep as YAML that `load_sweep` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))

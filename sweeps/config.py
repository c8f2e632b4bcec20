"""SweepConfig: what a sweep trains, as YAML differences from the defaults of a run.

A sweep is read like a run's configuration (presets, then `key=value`), and its sections `all`, `autoencoder`,
`calm` and `baseline` are themselves differences from `RunConfig`, so every key of a run can be set for all
stages, for one stage, or for one value of the swept key, and nothing is written twice. `space` says what is swept,
`derived` what follows from it, `constraints` what is left out, `budget` how long each model is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from calm_lightning.config import conf_dir, merge, read_yaml
from calm_lightning.errors import ConfigError
from calm_lightning.tracking.config import TrackingConfig
from sweeps.launchers.config import LaunchConfig
from sweeps.pruning.config import PruningConfig
from sweeps.space.parameters import leaves

TRAIN_FLOPS, INFERENCE_FLOPS, BRIER_LM = "train_flops", "inference_flops", "brier_lm"
OBJECTIVES = (TRAIN_FLOPS, INFERENCE_FLOPS, BRIER_LM)
"""What a study can optimise: costs are minimised, the score is maximised."""
DEFAULT_PRESET = "sample"


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
class SamplerConfig:
    """Which points of the space are tried, and in which order.

    Attributes:
        name: "grid" (all combinations), "random", "qmc", "tpe", "nsga2", "gp" or "cmaes" (one objective, numbers only).
        points: Points to draw; null means all of a grid.
        seed: Makes the draws repeatable.
        batch: Points drawn at once, from finished batches only: the same points whatever the workers' speed, at the
            price of waiting for each batch. Null draws whenever a worker is free, from what is known then; grid, random
            and qmc give the same points either way.
        options: Further arguments of Optuna's sampler, for example {population_size: 20}.
    """

    name: str = "grid"
    points: int | None = None
    seed: int = 0
    batch: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class BudgetConfig:
    """How long each language model is trained: the rule that makes models comparable.

    Attributes:
        rule: "steps" (`trainer.max_steps` as configured), "tokens" (the same text tokens for every model) or "flops"
            (the same training FLOPs, from which the steps follow).
        tokens: Text tokens of a language model (rule "tokens").
        flops: Training FLOPs of a language model (rule "flops").
        include_autoencoder: Rule "flops": whether the autoencoder's training is paid from the same budget.
        autoencoder_tokens: Text tokens of an autoencoder; null leaves its `trainer.max_steps` as configured.
        evaluations: Evenly spaced evaluations of a language model, the last one at its end; null leaves
            `evaluation.every_steps` as configured.
        warmup_fraction: Warm-up as a fraction of a language model's steps; null leaves `optim.warmup_steps` as
            configured.
    """

    rule: str = "steps"
    tokens: float | None = None
    flops: float | None = None
    include_autoencoder: bool = True
    autoencoder_tokens: float | None = None
    evaluations: int | None = None
    warmup_fraction: float | None = None


@dataclass
class SweepConfig:
    """A search space of models and what is said about them.

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
        space: Swept keys and their values: a list, or {choice: [...]}, {int: [low, high]}, {float: [low, high]} with
            `log`, `step`, `grid` and `when`. A key of a run goes to the language model, and to its autoencoder too
            where both must agree; `autoencoder.optim.lr` goes to the autoencoder's own run.
        derived: Keys that follow from others, as expressions: {model.l: "32 * model.K"}.
        constraints: Expressions that every point must satisfy, for example "train_flops <= 2e13".
        enqueue: Points that are tried first, each a mapping of swept keys to values.
        seeds: Every point is trained once with each; empty means once, with the seed of the configuration.
        autoencoder_seed: Seed of every autoencoder; null means that of the trial, so that seeds share none.
        include_baseline: Train the token baseline too.
        per_value: Differences for some points, applied last, in order.
        sampler: Which points are tried.
        budget: How long each model is trained.
        objectives: What the study optimises: "train_flops" and "inference_flops" are minimised, "brier_lm" maximised.
        pruning: When a trial is stopped early.
        launch: Where workers run.
        storage: Optuna storage: "sqlite" (a file in the sweep's directory), "journal" (a journal file there, for shared
            disks on which SQLite's locks do not work), or an address such as postgresql://user@host/database.
        retries: How often a trial whose worker died is given to another one, which resumes it.
        stop_after_failures: The sweep stops when this many trials in a row have failed; 0 never stops it.
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
    derived: dict[str, Any] = field(default_factory=dict)
    constraints: list[str] = field(default_factory=list)
    enqueue: list[dict[str, Any]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    autoencoder_seed: int | None = None
    include_baseline: bool = True
    per_value: list[PerValue] = field(default_factory=list)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    objectives: list[str] = field(default_factory=lambda: [TRAIN_FLOPS, BRIER_LM])
    pruning: PruningConfig = field(default_factory=PruningConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    storage: str = "sqlite"
    retries: int = 3
    stop_after_failures: int = 10
    paper_overlay: bool = True
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def list_sweeps() -> list[str]:
    """Return the sweeps that come with the package, as "name/preset", sorted."""
    root = conf_dir() / "sweep"
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find_sweep(name: str, preset: str = DEFAULT_PRESET) -> Path:
    """Return the YAML file of a sweep.

    Args:
        name: Name of a sweep that comes with the package, for example "k4-sweet-spot", or a path to a YAML file.
        preset: One of its presets, for example "sample", or a path to a YAML file. A sweep that comes in one preset
            only needs none.

    Raises:
        ConfigError: There is no such sweep.
    """
    for path in (Path(preset), Path(name)):
        if path.suffix in (".yaml", ".yml"):
            if path.is_file():
                return path
            raise ConfigError(f"sweep file {path} does not exist")
    folder = conf_dir() / "sweep" / name
    found = [folder / f"{preset}.yaml", *(sorted(folder.glob("*.yaml")) if preset == DEFAULT_PRESET else [])]
    if found[0].is_file() or len(found) == 2:
        return found[0] if found[0].is_file() else found[1]
    raise ConfigError(f"there is no sweep {name} with preset {preset}; known: {', '.join(list_sweeps())}")


_NESTED = ("space", "derived")
"""Sections whose keys are keys of a run, which may be written with dots."""


def _layers(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, DictConfig]]:
    """Return the mappings a sweep file stands for, the sibling file it `extends` first."""
    if path.resolve() in seen:
        raise ConfigError(f"{path} extends itself")
    loaded = read_yaml(path)
    parent = loaded.pop("extends", None)
    for section in _NESTED:
        if loaded.get(section) is not None and not isinstance(loaded[section], DictConfig):
            raise ConfigError(
                f"{path}: {section} must be a mapping of keys, for example {section}: {{model.K: [2, 4]}}"
            )
        if section in loaded:
            loaded[section] = nested(_plain(loaded[section]))
    if loaded.get("enqueue") is not None and not isinstance(loaded["enqueue"], ListConfig):
        raise ConfigError(f"{path}: enqueue must be a list of points, for example enqueue: [{{model.K: 4}}]")
    below = [] if parent is None else _layers(path.parent / f"{parent}.yaml", (*seen, path.resolve()))
    return [*below, (str(path), loaded)]


def _parsed(override: str) -> DictConfig:
    """Return a "key=value" string as a mapping.

    Raises:
        ConfigError: It is not one.
    """
    if "=" not in override:
        raise ConfigError(f"override {override!r} must read key=value, for example space.model.K=[2,4]")
    try:
        found = OmegaConf.from_dotlist([override])
        if not isinstance(found.get("space"), DictConfig):
            raise ConfigError(f"override {override}: space must be a mapping of keys, for example space.model.K=[2,4]")
        return found
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"override {override}: {' '.join(str(error).split())}") from None


def _joined(spaces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return search spaces laid over one another: a key's entry replaces an earlier one whole, null takes it out."""
    found: dict[str, Any] = {}
    for space in spaces:
        for key, entry in leaves(space):
            found = {**found, key: entry} if entry is not None else {k: v for k, v in found.items() if k != key}
    return nested(found)


def _overrides_for_every_value(overrides: Sequence[str]) -> list[PerValue]:
    """Return the rule by which what is asked for on the command line also wins over the file's `per_value`."""
    asked = OmegaConf.from_dotlist([item for item in overrides if item.split(".")[0] in ("all", "autoencoder", "calm")])
    sections = {}
    for section in ("autoencoder", "calm"):
        merged = OmegaConf.merge(asked.get("all", {}), asked.get(section, {}))
        sections[section] = {key: value for key, value in _plain(merged).items() if key != "presets"}
    return [PerValue(**sections)] if any(sections.values()) else []


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"model": {"K": value}} for {"model.K": value}; nested mappings stay as they are."""
    made: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = str(key).split(".")
        place = made
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{key} is below {section}, which has a value of its own: write one of the two")
        place[name] = {**place.get(name, {}), **nested(value)} if isinstance(value, Mapping) else value
    return made


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
    layers = _layers(path)
    spaces = [space for _, layer in layers if (space := layer.pop("space", None)) is not None]
    asked = [item for item in overrides if item.startswith(("space.", "space="))]
    config = merge(SweepConfig, layers, [item for item in overrides if item not in asked])
    config.space = _joined([*map(_plain, spaces), *(_plain(_parsed(item))["space"] for item in asked)])
    config.per_value += _overrides_for_every_value(overrides)
    if not config.name or not all(letter.isalnum() or letter in "-_." for letter in config.name):
        raise ConfigError(f"name={config.name!r} must be letters, digits, '-', '_' and '.': it names a directory")
    if not config.space and not config.include_baseline:
        raise ConfigError("space is empty and include_baseline=false: this sweep has nothing to train")
    return config


def sweep_to_yaml(config: SweepConfig) -> str:
    """Return the resolved sweep as YAML that `load_sweep` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))

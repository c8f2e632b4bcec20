"""RunConfig: the one schema, and how presets and overrides become one resolved value.

YAML files in `conf/` hold differences from the defaults written here, never copies of them. They are
composed left to right, then `key=value` overrides apply; `validate` reports every contradiction at once.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.data.config import DataConfig
from calm_lightning.errors import ConfigError
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.stages.config import EvaluationConfig, OptimConfig
from calm_lightning.stages.trainer_keys import NOT_IN_IDENTITY
from calm_lightning.tracking.config import TrackingConfig
from calm_lightning.validation import validate

RECIPE_VERSION = 1
"""Part of every identity; raised when a change of the code changes the numbers a configuration gives."""

_NOT_IN_IDENTITY = ("work_dir", "name", "autoencoder_run", "tracking")

Schema = TypeVar("Schema")


def _default_trainer() -> dict[str, Any]:
    return {"max_steps": 1000, "precision": "auto", "accumulate_grad_batches": 1, "gradient_clip_val": 1.0}


@dataclass
class RunConfig:
    """Everything that one run of one stage depends on.

    Attributes:
        stage: "autoencoder", "calm" or "baseline"; `calm train STAGE` sets it.
        seed: The one seed: initial weights, data order, dropout, noise and evaluation draws.
        name: Readable name of the run; empty means one made from stage and shape.
        work_dir: Directory that holds run directories.
        autoencoder_run: Run directory of the trained autoencoder (stage "calm").
        checkpoint_steps: Optimiser steps between checkpoints; evaluations write one too.
        data: The token stream.
        model: The language model; `model.K` and `model.l` shape the autoencoder too.
        autoencoder: The chunk autoencoder.
        optim: Optimiser and schedule.
        evaluation: When and how to score.
        tracking: Where to record.
        trainer: Passed through to `lightning.Trainer`; "auto" precision means bf16-mixed where the hardware has it.
    """

    stage: str = "calm"
    seed: int = 0
    name: str = ""
    work_dir: str = "runs"
    autoencoder_run: str = ""
    checkpoint_steps: int = 200
    data: DataConfig = field(default_factory=DataConfig)
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    trainer: dict[str, Any] = field(default_factory=_default_trainer)


def conf_dir() -> Path:
    """Return the directory of the YAML presets, in a wheel or in a checkout."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "conf"


def list_presets() -> list[str]:
    """Return the names of all presets that describe runs, as "group/name", sorted."""
    root = conf_dir()
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith("sweep/"))


def find_preset(name: str) -> Path:
    """Return the YAML file that `name` stands for.

    Args:
        name: A path to a YAML file, "group/name", or a bare name that only one group has.

    Raises:
        ConfigError: No preset, or more than one, has that name.
    """
    if name.endswith((".yaml", ".yml")):
        if Path(name).is_file():
            return Path(name)
        raise ConfigError(f"configuration file {name} does not exist")
    exact = conf_dir() / f"{name}.yaml"
    if exact.is_file():
        return exact
    presets = list_presets()
    matches = [preset for preset in presets if preset.split("/")[-1] == name]
    if len(matches) == 1:
        return conf_dir() / f"{matches[0]}.yaml"
    if matches:
        raise ConfigError(f"preset {name} is ambiguous: write one of {', '.join(matches)}")
    close = difflib.get_close_matches(name, [*presets, *(p.split("/")[-1] for p in presets)], n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known presets: {', '.join(presets)}"
    raise ConfigError(f"there is no preset {name}; {hint}")


def read_yaml(path: Path) -> DictConfig:
    """Read one YAML mapping.

    Raises:
        ConfigError: The file is not YAML or not a mapping.
    """
    try:
        loaded = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path} must be a mapping of keys to values")
    return loaded


def _expand(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, DictConfig]]:
    """Return the (source, mapping) pairs a preset stands for, those it `extends` first."""
    if path in seen:
        raise ConfigError(f"{path} extends itself through {' -> '.join(str(p) for p in seen)}")
    loaded = read_yaml(path)
    parents = loaded.pop("extends", [])
    layers: list[tuple[str, DictConfig]] = []
    for parent in [parents] if isinstance(parents, str) else parents:
        layers += _expand(find_preset(parent), (*seen, path))
    return [*layers, (str(path), loaded)]


def _one_sentence(error: Exception) -> str:
    """Return an OmegaConf error as one clause that names the key."""
    key = getattr(error, "full_key", None) or ""
    message = str(error).split("\n")[0].strip().rstrip(".")
    if isinstance(error, ConfigKeyError):
        parent = getattr(error, "parent_node", None)
        known = [str(k) for k in parent] if isinstance(parent, DictConfig) else []
        close = difflib.get_close_matches(key.split(".")[-1], known, n=1)
        prefix = key.rpartition(".")[0]
        hint = (
            f"did you mean {prefix + '.' if prefix else ''}{close[0]}?" if close else f"known here: {', '.join(known)}"
        )
        return f"unknown key {key}; {hint}"
    return f"{key}: {message}" if key else message


def merge(schema: type[Schema], layers: Sequence[tuple[str, DictConfig]], overrides: Sequence[str] = ()) -> Schema:
    """Merge mappings and `key=value` overrides into an instance of a dataclass schema.

    Args:
        schema: The dataclass whose defaults everything else differs from.
        layers: (where it comes from, mapping) pairs, applied left to right.
        overrides: "key=value" strings, applied last.

    Raises:
        ConfigError: An unknown key, a value of the wrong type, or an override without "=".
    """
    merged = OmegaConf.structured(schema)
    for source, layer in layers:
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{source}: {_one_sentence(error)}") from None
    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"override {override!r} must read key=value, for example model.K=4")
        try:
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([override]))
        except (OmegaConfBaseException, YAMLError) as error:
            raise ConfigError(f"override {override}: {_one_sentence(error)}") from None
    try:
        resolved = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(_one_sentence(error)) from None
    assert isinstance(resolved, schema)
    return resolved


def _is_preset(argument: str) -> bool:
    """Return whether an argument names a preset; a path to a YAML file may hold "="."""
    return "=" not in argument or (argument.endswith((".yaml", ".yml")) and Path(argument).is_file())


def load_config(arguments: Sequence[str] = (), **fixed: Any) -> RunConfig:
    """Compose presets and overrides into a validated RunConfig.

    Args:
        arguments: Preset names or YAML paths and "key=value" overrides, in any order; presets are composed
            left to right, overrides apply after all of them.
        fixed: Top-level values that win over everything, for example ``stage="calm"``.

    Raises:
        ConfigError: As `merge`, or the result contradicts itself (`validate`).
    """
    layers: list[tuple[str, DictConfig]] = []
    for argument in arguments:
        if _is_preset(argument):
            layers += _expand(find_preset(argument))
    if fixed:
        layers.append(("command", OmegaConf.create(fixed)))
    config = merge(RunConfig, layers, [argument for argument in arguments if not _is_preset(argument)])
    for key, value in fixed.items():
        if getattr(config, key) != value:
            raise ConfigError(f"{key}={getattr(config, key)} contradicts the command, which fixes {key}={value}")
    validate(config)
    return config


def to_yaml(config: RunConfig) -> str:
    """Return the resolved configuration as YAML that `load_config` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def identity(config: RunConfig, **lineage: str) -> str:
    """Return the SHA-256 that names a run: same identity, same artifact.

    What changes the numbers is in it (shape, data order, seed, schedule, recipe version and the hashes in
    `lineage`); paths, tracking, worker counts and progress bars are not.

    Args:
        config: A resolved configuration ("auto" precision already replaced).
        lineage: Hashes of what the run is made from, for example ``corpus=...``, ``autoencoder=...``.
    """
    value = asdict(config)
    for key in _NOT_IN_IDENTITY:
        del value[key]
    del value["data"]["corpus"], value["data"]["workers"], value["checkpoint_steps"]
    value["trainer"] = {k: v for k, v in value["trainer"].items() if k not in NOT_IN_IDENTITY}
    if config.stage == "autoencoder":
        # An autoencoder knows K, l and V of the language model it serves, and nothing else of it.
        value["model"] = {key: value["model"][key] for key in ("K", "l", "vocabulary")}
        del value["evaluation"]["start_stride"]
    elif config.stage == "calm":
        del value["autoencoder"]  # its identity is in the lineage
    else:
        del value["autoencoder"]
        backbone = ("vocabulary", "d", "intermediate", "layers", "heads", "rope_theta", "norm_eps")
        value["model"] = {key: value["model"][key] for key in backbone}
    value["recipe"] = RECIPE_VERSION
    value["lineage"] = dict(sorted(lineage.items()))
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

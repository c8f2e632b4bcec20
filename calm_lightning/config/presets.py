"""The YAML files in `conf/`: differences from the schema's defaults, found by name and expanded by `extends`."""

from __future__ import annotations

import difflib
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from calm_lightning.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]


def conf_dir() -> Path:
    """Return the directory of the YAML presets, in a wheel or in a checkout."""
    packaged = _PACKAGE / "conf"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "conf"


def list_presets() -> list[str]:
    """Return the names of all presets that describe runs, as "group/name", sorted."""
    root = conf_dir()
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith(("sweep/", "cleaning/")))


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


def expand(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, DictConfig]]:
    """Return the (source, mapping) pairs a preset stands for, those it `extends` first."""
    if path in seen:
        raise ConfigError(f"{path} extends itself through {' -> '.join(str(p) for p in seen)}")
    loaded = read_yaml(path)
    parents = loaded.pop("extends", [])
    layers: list[tuple[str, DictConfig]] = []
    for parent in [parents] if isinstance(parents, str) else parents:
        layers += expand(find_preset(parent), (*seen, path))
    return [*layers, (str(path), loaded)]

"""A finished run as a directory that MLflow loads by itself, on any machine that has calm-lightning.

MLmodel, requirements.txt, ...    MLflow's description of it
pyfunc.py                         what MLflow runs (models from code: nothing is pickled)
artifacts/run/                    config.yaml, result.json, model.safetensors, tokenizer/
artifacts/run/autoencoder/        the same of its autoencoder, for stage "calm"
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calm_lightning.errors import TrackingError

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

_FILES = ("config.yaml", "result.json", "model.safetensors")
_TOKENIZER, _AUTOENCODER = "tokenizer", "autoencoder"
_SCRIPT = Path(__file__).parents[2] / "programs" / "pyfunc.py"
"""Named by its place: a room of a higher level, which is copied here and never imported."""
_PROMPT = "It is a truth universally acknowledged, "


@dataclass(frozen=True)
class FinishedRun:
    """What a run directory says of itself.

    Attributes:
        directory: The run directory.
        config: Its resolved configuration as nested mappings.
        result: Its result.
    """

    directory: Path
    config: dict[str, Any]
    result: dict[str, Any]

    @property
    def identity(self) -> str:
        """Its identity."""
        return str(self.result["identity"])

    @property
    def stage(self) -> str:
        """ "autoencoder", "calm" or "baseline"."""
        return str(self.config["stage"])


def read_finished(run_dir: Path) -> FinishedRun:
    """Read a finished run.

    Raises:
        TrackingError: There is none, or it is damaged.
    """
    import yaml

    try:
        result = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
        config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
        known = isinstance(result["identity"], str) and isinstance(config["stage"], str)
    except FileNotFoundError:
        raise TrackingError(f"{run_dir} holds no finished run: run its command again to continue it") from None
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise TrackingError(f"{run_dir} cannot be read ({error}): run the run's command again") from None
    if not known:
        raise TrackingError(f"{run_dir} is not a run directory of this program: name another one")
    return FinishedRun(run_dir, config, result)


def model_bytes(run_dir: Path, autoencoder_dir: Path | None = None) -> int:
    """Return how large the files of a model are that `write_model` would copy, bytes.

    Args:
        run_dir: The run directory.
        autoencoder_dir: That of its autoencoder, for stage "calm".
    """
    total = 0
    for directory in (run_dir, *([autoencoder_dir] if autoencoder_dir else [])):
        total += sum(path.stat().st_size for path in _files(directory) if path.is_file())
    return total


def write_model(run: FinishedRun, autoencoder_dir: Path | None, target: Path, *, model_id: str, run_id: str) -> None:
    """Write the directory of a model.

    Args:
        run: The run.
        autoencoder_dir: Directory of its autoencoder, for stage "calm".
        target: The directory to make.
        model_id: MLflow's id of the model.
        run_id: MLflow run id of the run.

    Raises:
        TrackingError: A file of the run or of its autoencoder is missing.
        OSError: The directory cannot be written.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # the terminal is the training's
    from mlflow import pyfunc
    from mlflow.models import Model

    with tempfile.TemporaryDirectory(prefix="calm-model-") as scratch:
        files = Path(scratch) / "run"
        _copy(run.directory, files)
        if run.stage == "calm":
            if autoencoder_dir is None:
                raise TrackingError(f"{run.directory} was found without its autoencoder: put it back where it was")
            _copy(autoencoder_dir, files / _AUTOENCODER)
        example, settings = _example(run.stage)
        pyfunc.save_model(
            str(target),
            python_model=str(_SCRIPT),
            artifacts={"run": str(files)},
            signature=_signature(run.stage),
            input_example=(example, settings),
            pip_requirements=_requirements(),
            mlflow_model=Model(run_id=run_id, model_id=model_id, model_uuid=model_id),
        )
    for cache in list(target.rglob("__pycache__")):
        shutil.rmtree(cache)


def _files(directory: Path) -> Iterator[Path]:
    yield from (directory / name for name in _FILES)
    yield from (directory / _TOKENIZER).glob("*")


def _copy(run_dir: Path, target: Path) -> None:
    (target / _TOKENIZER).mkdir(parents=True)
    for path in _files(run_dir):
        try:
            shutil.copyfile(path, target / path.relative_to(run_dir))
        except FileNotFoundError:
            raise TrackingError(f"{path} is missing: put it back, or run the run's command again") from None
    if not any((target / _TOKENIZER).iterdir()):
        raise TrackingError(
            f"{run_dir} keeps no tokenizer (an early version trained it): train it again to log its model"
        )


def _example(stage: str) -> tuple[list[str], dict[str, Any]]:
    """Return an input and parameters that show what the model takes."""
    if stage == "autoencoder":
        return [_PROMPT], {"sampled": True, "seed": 0}
    return [_PROMPT], {"max_new_tokens": 32, "temperature": 0.5, "seed": 0}


def _signature(stage: str) -> ModelSignature:
    """Return what a model takes and gives.

    The input has no name: MLflow then takes a list of strings as well as a data frame with one column.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    params = [ParamSpec("seed", "long", 0)]
    if stage == "autoencoder":
        params = [ParamSpec("sampled", "boolean", False), *params]
    else:
        params = [ParamSpec("max_new_tokens", "long", 128), ParamSpec("temperature", "double", 0.5), *params]
    output = "restored" if stage == "autoencoder" else "completion"
    return ModelSignature(Schema([ColSpec("string")]), Schema([ColSpec("string", output)]), ParamSchema(params))


def _requirements() -> list[str]:
    """Return the packages that a model needs, in these versions; a build's local part ("+cpu") is left out."""
    names = ("calm-lightning", "torch", "mlflow")
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]

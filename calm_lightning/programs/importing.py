"""A released checkpoint becomes a run directory that everything else treats as a finished run.

Weights keep their stored dtype and bits. A continuous language model brings its autoencoder along as a finished run
inside its own directory. The directory appears whole or not at all, and importing the same checkpoint again finds it.
What training it took is not in a checkpoint: `train_flops` is recorded as 0, which here means unknown.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calm_lightning.assembly import CONFIG, RESULT, TOKENIZER, WEIGHTS, load_result
from calm_lightning.checkpoints.autoencoders import AUTOENCODER_DIR
from calm_lightning.checkpoints.files import replace_json, save_tensors, whole_directory
from calm_lightning.checkpoints.released import Released, read_released
from calm_lightning.config import RunConfig, to_yaml
from calm_lightning.config.validation import validate
from calm_lightning.data.tokenizers import Tokenizer, open_tokenizer, save_tokenizer
from calm_lightning.errors import CheckpointError
from calm_lightning.models import run_config, tokenizer_of


@dataclass(frozen=True)
class Imported:
    """What an import made, or found made.

    Attributes:
        run_dir: The run directory.
        released: The checkpoint it was made from.
        config: Its resolved configuration.
        tokenizer: Its tokenizer, or None.
        notes: What a user should know.
        existed: Whether the same checkpoint had been imported there before.
    """

    run_dir: Path
    released: Released
    config: RunConfig
    tokenizer: Tokenizer | None
    notes: list[str]
    existed: bool


def import_released(
    path: str | Path,
    out: str | Path | None = None,
    *,
    autoencoder: str | Path | None = None,
    tokenizer: str | None = None,
    work_dir: str | Path = "runs",
) -> Imported:
    """Import a released-format checkpoint directory as a finished run.

    Args:
        path: Directory with config.json and weights.
        out: The run directory to make; None means `work_dir`/imported/NAME, NAME that of `path`.
        autoencoder: Directory of its autoencoder; None to use the embedded one or one beside it.
        tokenizer: Spec of its tokenizer ("llama3", "llama3:PATH", "file:PATH", "bytes"), or "none"; None means
            Llama 3's for its vocabulary of 128,257 if the file can be found.
        work_dir: Directory of runs.

    Raises:
        CheckpointError: The checkpoint cannot be used, or something else lies at `out`.
        DataError: The tokenizer cannot be used.
        ConfigError: The model is one that cannot be configured here.
    """
    released = read_released(path, autoencoder)
    name = released.path.resolve().name
    run_dir = Path(out) if out is not None else Path(work_dir) / "imported" / name
    found, tokenizer_notes = tokenizer_of(tokenizer, released.vocabulary, released.path)
    codec = released.codec()
    config = _config(released, name, str(run_dir.resolve() / AUTOENCODER_DIR) if codec else "")
    imported = Imported(run_dir, released, config, found, [*released.notes, *tokenizer_notes], existed=False)
    if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        there = _again(imported, asked=tokenizer is not None)
        return replace(imported, existed=True, tokenizer=there, notes=released.notes if there else imported.notes)
    with whole_directory(run_dir.resolve()) as scratch:
        _write_run(scratch, released, config, found)
        if codec:
            _write_run(scratch / AUTOENCODER_DIR, codec, _config(codec, f"{name}-autoencoder", ""), found)
    return imported


def _config(released: Released, name: str, autoencoder_run: str) -> RunConfig:
    """Return the validated configuration of an imported run."""
    config = replace(run_config(released), name=name, autoencoder_run=autoencoder_run)
    validate(config)
    return config


def _again(imported: Imported, asked: bool) -> Tokenizer | None:
    """Return the tokenizer of an import that is there already; one that was asked for and lacking is added.

    Raises:
        CheckpointError: Another model lies there, or the same with another tokenizer than was asked for.
    """
    run_dir = imported.run_dir
    advice = "choose another --out, or delete it first"
    if not (run_dir / RESULT).is_file():
        raise CheckpointError(f"{run_dir} exists and is no imported checkpoint: {advice}")
    result = load_result(run_dir)
    if result["identity"] != imported.released.identity:
        raise CheckpointError(f"{run_dir} holds another model ({result['name']}): {advice}")
    there = result["protocol"]["tokenizer"]
    given = imported.tokenizer
    if not asked or (given.fingerprint if given else "") == there:
        return open_tokenizer(run_dir / TOKENIZER) if there else None
    if there or given is None:
        raise CheckpointError(f"{run_dir} holds the same weights with another tokenizer: {advice}")
    for folder in (run_dir / AUTOENCODER_DIR, run_dir):
        if (folder / RESULT).is_file():
            save_tokenizer(given, folder / TOKENIZER)
            told = load_result(folder)
            told["protocol"]["tokenizer"] = given.fingerprint
            replace_json(folder / RESULT, told)
    return given


def _write_run(run_dir: Path, released: Released, config: RunConfig, tokenizer: Tokenizer | None) -> None:
    """Write the files of a finished run; the result comes last."""
    run_dir.mkdir(exist_ok=True)
    save_tensors(run_dir / WEIGHTS, released.weights)
    if tokenizer:
        save_tokenizer(tokenizer, run_dir / TOKENIZER)
    (run_dir / CONFIG).write_text(to_yaml(config), encoding="utf-8")
    result: dict[str, Any] = {
        "identity": released.identity,
        "name": config.name,
        "stage": config.stage,
        "metrics": {},
        "protocol": {"tokenizer": tokenizer.fingerprint if tokenizer else ""},
        "train_flops": 0.0,
        "mlflow_run_id": None,
        "source": {
            "format": "released",
            "path": str(released.path),
            "config": released.config,
            "autoencoder": released.autoencoder_source,
            "notes": released.notes,
        },
    }
    (run_dir / RESULT).write_text(json.dumps(result, indent=2), encoding="utf-8")

"""The files of a released checkpoint: config.json and weights, whole or in shards.

Nothing is ever unpickled freely: .bin files go through `torch.load(weights_only=True)`, which builds tensors and
nothing else, and safetensors are preferred where both are there. Whatever is wrong with a file is one sentence.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from calm_lightning.errors import CheckpointError

CONFIG_FILE = "config.json"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Files of weights in order of preference; each may instead be an index of shards, NAME.index.json."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_LARGEST_JSON = 64 * 2**20


def read_config(directory: Path) -> dict[str, Any]:
    """Return the content of a checkpoint directory's config.json.

    Raises:
        CheckpointError: There is no such directory or file, or it is no JSON object.
    """
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory} is not a directory: download the checkpoint first and give the directory that holds its "
            f"{CONFIG_FILE}"
        )
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no {CONFIG_FILE}: it is not a released checkpoint directory")
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise CheckpointError(f"{path} is too large for a JSON file of a checkpoint")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}): download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return value


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint directory by their released names, in their stored dtype, on the CPU.

    Raises:
        CheckpointError: No weights, a missing or damaged file, a shard that disagrees with the index, or something
            that is no plain floating-point tensor.
    """
    for name in WEIGHT_FILES:
        if (directory / name).is_file():
            return _read_file(directory / name)
        index = directory / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index)
    known = ", ".join((*WEIGHT_FILES, *(f"{name}.index.json" for name in WEIGHT_FILES)))
    raise CheckpointError(f"{directory} holds no weights: expected one of {known}")


def _read_shards(index: Path) -> dict[str, Tensor]:
    placed = _read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(file, str) for file in placed.values()):
        raise CheckpointError(f"{index} has no weight_map of tensor names to files: download it again")
    files = sorted(set(placed.values()))
    strange = [file for file in files if Path(file).name != file]
    if strange:
        raise CheckpointError(f"{index} points outside its directory: {', '.join(strange)}")
    absent = [file for file in files if not (index.parent / file).is_file()]
    if absent:
        raise CheckpointError(f"{index.parent} lacks {', '.join(absent)}, which {index.name} lists: download it again")
    weights: dict[str, Tensor] = {}
    for file in files:
        shard = _read_file(index.parent / file)
        listed = {name for name, place in placed.items() if place == file}
        wrong = sorted(listed ^ shard.keys())
        if wrong:
            raise CheckpointError(f"{index.parent / file} disagrees with {index.name} about {', '.join(wrong)}")
        weights |= shard
    return weights


def _read_file(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise CheckpointError(f"{path} is only a pointer of Git LFS: run `git lfs pull` in its repository")
    weights = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    strange = [
        f"{name} ({str(tensor.dtype).removeprefix('torch.')})"
        for name, tensor in weights.items()
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided or tensor.is_quantized
    ]
    if strange:
        raise CheckpointError(f"{path} holds tensors that are no plain floating-point weights: {', '.join(strange)}")
    return weights


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error}): download it again") from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can fail in any way
        hostile = "unsupported" in str(error).lower()
        reason = (
            "asks for more than tensors, and nothing of it is executed" if hostile else "damaged, or another format"
        )
        raise CheckpointError(
            f"{path} is no file of plain tensors ({reason}): get the checkpoint from its authors, as safetensors if "
            f"they have it"
        ) from None
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise CheckpointError(f"{path} is no mapping of names to tensors: it is not a file of model weights")
    return {name: value.detach() for name, value in loaded.items()}


def write_weights(directory: Path, weights: Mapping[str, Tensor], largest_shard: int) -> None:
    """Write model.safetensors, or shards and their index where one file would exceed `largest_shard` bytes.

    Args:
        directory: An existing directory.
        weights: Tensors by name; views and shared storage are written out in full.
        largest_shard: Bytes per file; a larger single tensor has a file of its own.
    """
    shards: list[list[str]] = [[]]
    room = largest_shard
    for name, tensor in weights.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append([])
            room = largest_shard
        shards[-1].append(name)
        room -= tensor.nbytes
    if len(shards) == 1:
        save_tensors(directory / "model.safetensors", weights)
        return
    placed: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_tensors(directory / file, {name: weights[name] for name in names})
        placed |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in weights.values())}, "weight_map": placed}
    write_json(directory / "model.safetensors.index.json", index)


def save_tensors(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write one safetensors file; tensors that share storage are written out in full.

    Raises:
        CheckpointError: The file cannot be written, for example because the disk is full.
    """
    own: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in weights.items():
        storage = tensor.untyped_storage()
        alone = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        own[name] = tensor if alone else tensor.clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
    try:
        save_file(own, path, metadata={"format": "pt"})  # the authors' loader asks for this entry
        path.chmod(0o666 & ~_umask())  # the library leaves files that nobody else may read
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}; make room and run the same command again") from None


def _umask() -> int:
    """Return the process' mask of permissions, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def replace_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object over an existing file, whole or not at all."""
    scratch = path.with_name(path.name + ".tmp")
    write_json(scratch, value)
    os.replace(scratch, path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, keys sorted."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """Yield a new directory beside `target` that becomes `target` at the end, or vanishes after an error.

    Args:
        target: A place that does not exist yet, or an empty directory.

    Raises:
        CheckpointError: Something came to lie at `target` meanwhile.
    """
    scratch = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
    except OSError as error:
        raise CheckpointError(f"{target} cannot be created: {error.strerror}; choose another place") from None
    try:
        yield scratch
        try:
            scratch.rename(target)
        except OSError as error:
            raise CheckpointError(f"{target} cannot be created: {error.strerror}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)

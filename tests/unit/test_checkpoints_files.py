"""Files of released checkpoints: preferred, sharded, damaged and hostile ones."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from calm_lightning.checkpoints.files import read_config, read_weights, whole_directory, write_weights
from calm_lightning.checkpoints.translate import same
from calm_lightning.errors import CheckpointError

WEIGHTS = {name: torch.randn(4, 8) for name in ("a", "b", "c", "d")}


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_weights(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_shards_hold_every_tensor_once_within_the_limit(tmp_path: Path) -> None:
    write_weights(tmp_path, WEIGHTS, largest_shard=300)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * 4 * 8 * 4
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert all(same(tensor, WEIGHTS[name]) for name, tensor in read_weights(tmp_path).items())


def test_views_and_shared_storage_are_written_in_full(tmp_path: Path) -> None:
    whole = torch.randn(6, 4)
    first, second = whole.chunk(2)
    written = {"first": first, "second": second, "again": first, "turned": whole.T}
    write_weights(tmp_path, written, 10**9)
    assert all(same(tensor, written[name]) for name, tensor in read_weights(tmp_path).items())


def test_safetensors_win_over_pickles(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert read_weights(tmp_path)["a"] == 0
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert read_weights(tmp_path)["a"] == 1


def test_pickled_shards_are_read(tmp_path: Path) -> None:
    places: dict[str, str] = {}
    for number, names in enumerate((("a", "b"), ("c", "d")), start=1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: WEIGHTS[name] for name in names}, tmp_path / file)
        places |= dict.fromkeys(names, file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert all(same(tensor, WEIGHTS[name]) for name, tensor in read_weights(tmp_path).items())


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("plain", [True, False])
def test_a_hostile_pickle_executes_nothing(tmp_path: Path, plain: bool) -> None:
    trap = tmp_path / "executed"
    value = {"a": torch.zeros(1), "b": Hostile(trap)}
    if plain:
        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(value))
    else:
        torch.save(value, tmp_path / "pytorch_model.bin")
    assert "is no file of plain tensors" in refused(tmp_path)
    assert not trap.exists()


def _truncated(path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer)
    path.write_bytes(buffer.getvalue()[:-200])


def _empty_zip(path: Path) -> None:
    zipfile.ZipFile(path, "w").close()


@pytest.mark.parametrize(
    "spoil",
    [_truncated, _empty_zip, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"\x80\x02nonsense")],
)
def test_damaged_pickles_are_one_sentence(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(tmp_path / "pytorch_model.bin")
    assert "pytorch_model.bin is no file of plain tensors" in refused(tmp_path)


@pytest.mark.parametrize("value", [[torch.zeros(1)], {"a": 1}, {0: torch.zeros(1)}, {"state_dict": WEIGHTS}])
def test_pickles_of_something_else_are_refused(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "pytorch_model.bin")
    assert "no mapping of names to tensors" in refused(tmp_path)


@pytest.mark.parametrize("tensor", [torch.zeros(2, dtype=torch.int8), torch.eye(3).to_sparse()])
def test_tensors_that_are_no_plain_weights_are_refused(tmp_path: Path, tensor: Tensor) -> None:
    torch.save({"strange.weight": tensor}, tmp_path / "pytorch_model.bin")
    assert "strange.weight" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"\xff" * 64])
def test_damaged_safetensors_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert ("git lfs pull" if b"lfs" in content else "damaged") in refused(tmp_path)


def test_a_cut_safetensors_file_is_one_sentence(tmp_path: Path) -> None:
    write_weights(tmp_path, WEIGHTS, 10**9)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert "damaged" in refused(tmp_path)


def test_shards_must_match_their_index(tmp_path: Path) -> None:
    write_weights(tmp_path, WEIGHTS, largest_shard=300)
    index = tmp_path / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    moved = {**value["weight_map"], "a": value["weight_map"]["d"]}
    index.write_text(json.dumps({"weight_map": moved}))
    assert "disagrees with model.safetensors.index.json about a" in refused(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    assert "points outside its directory: ../elsewhere.safetensors" in refused(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "absent.safetensors"}}))
    assert "lacks absent.safetensors" in refused(tmp_path)
    for nothing in ("[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "{", ""):
        index.write_text(nothing)
        assert "model.safetensors.index.json" in refused(tmp_path)


def test_directories_that_are_no_checkpoints(tmp_path: Path) -> None:
    assert "expected one of model.safetensors, pytorch_model.bin" in refused(tmp_path)
    for place, hint in ((tmp_path, "holds no config.json"), (tmp_path / "owner" / "name", "download the checkpoint")):
        with pytest.raises(CheckpointError, match=hint):
            read_config(place)
    for content in ("", "[1]", "[" * 100_000, "\udcff"):
        (tmp_path / "config.json").write_text(content, errors="surrogateescape")
        with pytest.raises(CheckpointError, match=r"config\.json"):
            read_config(tmp_path)


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole_directory(tmp_path / "out") as scratch:
        (scratch / "half").write_text("written")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with whole_directory(tmp_path / "deep" / "out") as scratch:
        (scratch / "all").write_text("written")
        assert not (tmp_path / "deep" / "out").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    with pytest.raises(CheckpointError, match="cannot be created"), whole_directory(tmp_path / "deep" / "out"):
        pass
    assert (tmp_path / "deep" / "out" / "all").read_text() == "written"

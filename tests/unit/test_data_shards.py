"""Token shards: arrays in a tar, mapped into memory."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calm_lightning.data.shards.tokens import (
    DOMAINS_FIELD,
    LENGTHS_FIELD,
    NAMES_FIELD,
    TEXT_BYTES_FIELD,
    TOKENS_FIELD,
    add_member,
    open_token_shard,
    token_dtype,
    write_token_shard,
)

Documents = list[tuple[list[int], str]]
documents = st.lists(
    st.tuples(st.lists(st.integers(0, 65_535), min_size=1, max_size=30), st.sampled_from(["a", "Règles", "c/d"])),
    min_size=1,
    max_size=8,
)


def write(path: Path, rows: Documents, dtype: str = "uint16", name: str = "train-000000") -> Path:
    names = sorted({domain for _, domain in rows})
    with path.open("wb") as file:
        write_token_shard(
            file,
            name,
            tokens=np.array([i for ids, _ in rows for i in ids], dtype=dtype),
            lengths=[len(ids) for ids, _ in rows],
            domains=[names.index(domain) for _, domain in rows],
            text_bytes=[3 * len(ids) for ids, _ in rows],
            names=names,
        )
    return path


@given(documents, st.sampled_from(["uint16", "uint32"]))
def test_a_shard_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: Documents, dtype: str
) -> None:
    shard = open_token_shard(write(tmp_path_factory.mktemp("shards") / "s.tar", rows, dtype), dtype)
    begins = [0, *shard.ends.tolist()[:-1]]
    found = [shard.tokens[begin:end].tolist() for begin, end in zip(begins, shard.ends, strict=True)]
    assert found == [ids for ids, _ in rows]
    assert [shard.names[number] for number in shard.domains] == [domain for _, domain in rows]
    assert shard.text_bytes.tolist() == [3 * len(ids) for ids, _ in rows]
    assert shard.tokens.dtype == np.dtype(dtype) and not shard.tokens.flags.writeable


def test_equal_documents_give_equal_bytes(tmp_path: Path) -> None:
    rows: Documents = [([256, 1, 2], "a"), ([256, 5], "b")]
    assert write(tmp_path / "one.tar", rows).read_bytes() == write(tmp_path / "two.tar", rows).read_bytes()


def test_a_shard_is_one_webdataset_sample_that_its_own_tools_read(tmp_path: Path) -> None:
    import webdataset

    path = write(tmp_path / "s.tar", [([256, 7, 8], "a"), ([256], "b")])
    (sample,) = webdataset.WebDataset(str(path), shardshuffle=False).decode()
    assert sample["__key__"] == "train-000000"
    assert sample[TOKENS_FIELD].tolist() == [256, 7, 8, 256]
    assert sample[LENGTHS_FIELD].tolist() == [3, 1] and sample[NAMES_FIELD] == {"domains": ["a", "b"]}


def rewritten(path: Path, leave_out: str = "", **changed: bytes) -> Path:
    """Write a shard's members anew, but for one left out or others changed (fields with `_` for the dot)."""
    members: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            members[member.name] = content.read()
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            field = name.partition(".")[2]
            if field != leave_out:
                add_member(archive, name, changed.get(field.replace(".", "_"), content))
    return path


def npy(values: object, dtype: str) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(values, dtype=dtype), allow_pickle=dtype == "object")
    return buffer.getvalue()


@pytest.mark.parametrize("field", [TOKENS_FIELD, LENGTHS_FIELD, DOMAINS_FIELD, TEXT_BYTES_FIELD, NAMES_FIELD])
def test_a_missing_member_is_named(tmp_path: Path, field: str) -> None:
    path = rewritten(write(tmp_path / "s.tar", [([256, 1], "a")]), leave_out=field)
    with pytest.raises(ValueError, match=f"no {field}"):
        open_token_shard(path, "uint16")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens_npy": npy([256, 1], "uint32")}, "uint32"),
        ({"tokens_npy": npy([[256, 1]], "uint16")}, "shape"),
        ({"tokens_npy": npy([256], "uint16")}, "do not add up"),
        ({"tokens_npy": npy([256, 1], "uint16") + b"more"}, "not as long"),
        ({"tokens_npy": b"no array at all"}, "magic"),
        ({"tokens_npy": npy([{}], "object")}, "object"),
        ({"lengths_npy": npy([1, 1], "int64")}, "different lengths"),
        ({"lengths_npy": npy([-2], "int64")}, "impossible"),
        ({"domains_npy": npy([1], "int64")}, "impossible"),
        ({"json": b"[]"}, "impossible"),
    ],
)
def test_a_shard_that_contradicts_itself_is_refused(tmp_path: Path, changed: dict[str, bytes], message: str) -> None:
    path = rewritten(write(tmp_path / "s.tar", [([256, 1], "a")]), **changed)
    with pytest.raises(ValueError, match=message):
        open_token_shard(path, "uint16")


@pytest.mark.parametrize("length", [0, 100, 512, 700])
def test_a_shard_cut_short_is_refused(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "s.tar", [([256, 1], "a")])
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError):
        open_token_shard(path, "uint16")


def test_dtype_is_the_narrowest_that_holds_every_id() -> None:
    assert token_dtype(65_536) == "uint16"
    assert token_dtype(65_537) == "uint32"

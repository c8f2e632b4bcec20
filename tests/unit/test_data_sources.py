"""Raw corpora: formats, layouts, and files that are damaged."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from calm_lightning.errors import DataError
from data_pipelines.sources import Document, Source, find_sources, read_documents, sample_dir
from data_pipelines.split import check_fractions, hash_split

Pack = Callable[[bytes], bytes]
PACKERS: dict[str, Pack] = {
    ".jsonl": lambda data: data,
    ".jsonl.gz": gzip.compress,
    ".jsonl.zst": zstandard.ZstdCompressor().compress,
}
each_format = pytest.mark.parametrize("suffix", PACKERS)


def lines(number: int) -> bytes:
    rows = [{"text": f"text {i} é\n\n" + "x" * 500, "meta": {"pile_set_name": f"D{i % 2}"}} for i in range(number)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(path: Path, content: bytes) -> Source:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return Source(path, path.name, "")


@each_format
def test_documents_come_out_as_they_were(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    read: list[int] = []
    documents = list(read_documents(write(path, PACKERS[suffix](lines(20_000))), read.append))
    assert len(documents) == 20_000
    assert documents[7] == Document("text 7 é\n\n" + "x" * 500, "D1", path.name)
    assert sum(read) == path.stat().st_size


@each_format
def test_several_frames_and_a_missing_last_newline_are_fine(tmp_path: Path, suffix: str) -> None:
    halves = PACKERS[suffix](lines(2)) + PACKERS[suffix](lines(3).rstrip(b"\n"))
    assert len(list(read_documents(write(tmp_path / f"a{suffix}", halves)))) == 5


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("part", [0.5, 0.999])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, part: float) -> None:
    packed = PACKERS[suffix](lines(5000))
    source = write(tmp_path / f"a{suffix}", packed[: int(len(packed) * part)])
    with pytest.raises(DataError, match=rf"a{suffix} is truncated"):
        list(read_documents(source))


def test_a_zstd_file_cut_between_header_and_content_is_truncated(tmp_path: Path) -> None:
    packed = PACKERS[".jsonl.zst"](lines(5))
    with pytest.raises(DataError, match="truncated"):
        list(read_documents(write(tmp_path / "a.jsonl.zst", packed[:5])))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_file_that_is_not_what_its_name_says_is_damaged(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DataError, match="is damaged"):
        list(read_documents(write(tmp_path / f"a{suffix}", lines(3))))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', "line 3 is not JSON"),
        (b"[" * 100_000, "line 3 is not JSON"),
        (b'{"txt": "x"}', 'line 3 has no "text" string'),
        (b'{"text": 5}', 'line 3 has no "text" string'),
        (b'"text"', 'line 3 has no "text" string'),
        (b'{"text": "\xff"}', "line 3 is not UTF-8"),
        (b'{"text": "\\ud800"}', "line 3 holds half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: bytes, message: str) -> None:
    source = write(tmp_path / "a.jsonl", b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"a\.jsonl, {message}"):
        list(read_documents(source))


@pytest.mark.parametrize("meta", ["{}", "null", '{"pile_set_name": ""}', '{"pile_set_name": 3}'])
def test_a_document_without_a_domain_is_unlabelled(tmp_path: Path, meta: str) -> None:
    source = write(tmp_path / "a.jsonl", f'{{"text": "x", "meta": {meta}}}'.encode())
    assert [document.domain for document in read_documents(source)] == ["unlabelled"]


def test_the_sample_has_three_splits() -> None:
    assert [source.split for source in find_sources(["sample"])] == ["train", "val", "test"]
    assert (sample_dir() / "LICENSE.md").is_file()


def test_a_directory_in_the_pile_layout_keeps_its_splits(tmp_path: Path) -> None:
    for name in ("train/01.jsonl.zst", "train/00.jsonl.zst", "val.jsonl.zst", "test.jsonl"):
        write(tmp_path / name, b"")
    write(tmp_path / "README.md", b"")
    found = [(source.name, source.split) for source in find_sources([tmp_path])]
    assert found == [
        ("train/00.jsonl.zst", "train"),
        ("train/01.jsonl.zst", "train"),
        ("val.jsonl.zst", "val"),
        ("test.jsonl", "test"),
    ]


@pytest.mark.parametrize("names", [("a.jsonl", "b.jsonl"), ("train.jsonl",), ("val.jsonl", "test.jsonl")])
def test_files_without_both_train_and_held_out_are_to_be_split_by_hash(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        write(tmp_path / name, b"")
    assert {source.split for source in find_sources([tmp_path])} == {""}


def test_a_glob_names_its_files_once(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        write(tmp_path / name, b"")
    found = find_sources([str(tmp_path / "*.jsonl"), tmp_path / "a.jsonl"])
    assert [source.name for source in found] == ["a.jsonl", "b.jsonl"]


def test_a_stray_file_beside_laid_out_ones_is_refused(tmp_path: Path) -> None:
    for name in ("train.jsonl", "val.jsonl", "extra.jsonl"):
        write(tmp_path / name, b"")
    with pytest.raises(DataError, match=r"extra\.jsonl belongs to no split"):
        find_sources([tmp_path])


def test_sources_that_are_not_there_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", b"")
    for argument, message in (("none.jsonl", "does not exist"), ("", "holds no"), ("a.parquet", "is not one of")):
        with pytest.raises(DataError, match=message):
            find_sources([tmp_path / argument])
    with pytest.raises(DataError, match="no source"):
        find_sources([])


def test_the_hash_split_keeps_its_shares_and_its_choices() -> None:
    splits = [hash_split(f"document {i}", 0.1, 0.2) for i in range(4000)]
    assert splits == [hash_split(f"document {i}", 0.1, 0.2) for i in range(4000)]
    # three standard deviations of a binomial share
    assert abs(splits.count("val") / 4000 - 0.1) < 3 * (0.1 * 0.9 / 4000) ** 0.5
    assert abs(splits.count("test") / 4000 - 0.2) < 3 * (0.2 * 0.8 / 4000) ** 0.5


@pytest.mark.parametrize("fractions", [(-0.1, 0.0), (0.5, 0.5)])
def test_fractions_that_leave_nothing_to_train_on_are_refused(fractions: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="below 1"):
        check_fractions(*fractions)

"""Raw corpora: formats, layouts, and files that are damaged."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from calm_lightning.errors import DataError, ShardError
from data_pipelines.cleaning.split import check_fractions, hash_split
from data_pipelines.reading import formats
from data_pipelines.reading.sources import (
    Document,
    Source,
    find_sources,
    parse_record,
    raw_records,
    read_documents,
    sample_dir,
)

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


def put(path: Path, content: bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write(path: Path, content: bytes) -> Source:
    put(path, content)
    return find_sources([path])[0]


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
    put(tmp_path / "README.md")
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
    put(tmp_path / "a.parquet")
    for argument, message in (
        ("none.jsonl", "does not exist"),
        ("", "holds no"),
        ("a.parquet", "is not one of"),
    ):
        with pytest.raises(DataError, match=message):
            find_sources([tmp_path / argument])
    with pytest.raises(DataError, match="no source"):
        find_sources([])


@each_format
def test_raw_records_are_numbered_lines_and_a_checksum_on_the_way(tmp_path: Path, suffix: str) -> None:
    source = write(tmp_path / f"a{suffix}", PACKERS[suffix](b"not json\n\n  \n{}\r\nlast"))
    digest = hashlib.sha256()
    assert list(raw_records(source, digest=digest)) == [(1, b"not json"), (4, b"{}\r"), (5, b"last")]
    assert digest.hexdigest() == hashlib.sha256((tmp_path / f"a{suffix}").read_bytes()).hexdigest()


@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line)), st.integers(1, 9))
def test_lines_do_not_depend_on_how_the_file_comes_in(lines: list[bytes], step: int) -> None:
    content = b"\n".join(lines)
    pieces = (content[start : start + step] for start in range(0, len(content), step))
    expected = [(number, line) for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
    assert list(formats.cut("jsonl", pieces, "a")) == expected


def test_a_source_travels_to_another_process_and_parses_there(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", lines(3))
    records = list(raw_records(source))
    copy = pickle.loads(pickle.dumps(source))
    assert [parse_record(copy, *record) for record in records] == list(read_documents(source))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst"])
def test_a_long_line_takes_a_few_times_its_size(tmp_path: Path, suffix: str) -> None:
    size = 24 << 20
    line = json.dumps({"text": "abcd efg" * (size // 8)}).encode()
    source = write(tmp_path / f"a{suffix}", PACKERS[suffix](line + b"\n" + line))
    tracemalloc.start()
    try:
        lengths = [len(document.text) for document in read_documents(source)]
        assert lengths == [size, size] and tracemalloc.get_traced_memory()[1] < 8 * size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.txt.gz"])
def test_a_record_without_end_is_refused_before_it_fills_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(formats, "MAX_RECORD_BYTES", 4 << 20)
    source = write(tmp_path / name, PACKERS[".jsonl" + Path(name).suffix](b"x" * (8 << 20)))
    with pytest.raises(DataError, match="more than 4 MiB"):
        list(raw_records(source))


def wiki(*articles: list[str]) -> bytes:
    return (" \n" + "\n".join("\n".join(lines) for lines in articles) + "\n").encode()


@pytest.mark.parametrize("ending", ["raw", "tokens"])
def test_wikitext_is_cut_at_titles_between_blank_lines(tmp_path: Path, ending: str) -> None:
    first = [
        " = First = ",
        " ",
        " A formula : ",
        " = 1 rad / s = ",
        " and more . ",
        " ",
        " = = Part = = ",
        " ",
        " x ",
        " ",
    ]
    second = [" = Second ( 1999 film ) = ", " ", " y ", " "]
    for split in ("train", "valid", "test"):
        write(tmp_path / f"wiki.{split}.{ending}", wiki(first, second))
    sources = find_sources([tmp_path])
    assert [(source.split, source.format) for source in sources] == [
        ("train", "wikitext"),
        ("val", "wikitext"),
        ("test", "wikitext"),
    ]
    texts = [document.text for document in read_documents(sources[1])]
    assert texts == ["\n".join(first), "\n".join(second) + "\n"]
    assert {document.domain for document in read_documents(sources[1])} == {"WikiText-103"}


@given(st.lists(st.sampled_from(["", " ", " = A = ", " = = b = = ", "text", "= C =", " = 1 = 2 "]), max_size=12))
def test_no_text_of_wikitext_is_lost(content: list[str]) -> None:
    data = "\n".join(content).encode()
    articles = [article for _, article in formats.cut("wikitext", iter([data]), "a")]
    lines_kept = [line for article in articles for line in article.split(b"\n") if line.strip()]
    assert lines_kept == [line for line in data.split(b"\n") if line.strip()]


@pytest.mark.parametrize(("suffix", "pack"), [(".txt", ".jsonl"), (".txt.gz", ".jsonl.gz"), (".txt.zst", ".jsonl.zst")])
def test_a_text_file_is_a_document_labelled_by_its_folder(tmp_path: Path, suffix: str, pack: str) -> None:
    for split in ("train", "val"):
        write(tmp_path / "mine" / split / "books" / f"a{suffix}", PACKERS[pack](b"one\n\ntwo \xc3\xa9\n"))
        write(tmp_path / "mine" / split / f"b{suffix}", PACKERS[pack](b"three"))
    sources = find_sources([tmp_path / "mine"])
    assert [source.split for source in sources] == ["train", "train", "val", "val"]
    documents = [document for source in sources for document in read_documents(source)]
    assert documents[:2] == [
        Document("three", "mine", f"train/b{suffix}"),
        Document("one\n\ntwo é\n", "books", f"train/books/a{suffix}"),
    ]


def test_notes_beside_a_corpus_are_no_documents(tmp_path: Path) -> None:
    for name in ("train.jsonl", "val.jsonl", "LICENSE.txt", "notes/b.txt"):
        write(tmp_path / name, b"")
    assert [source.name for source in find_sources([tmp_path])] == ["train.jsonl", "val.jsonl"]


def test_a_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 text"):
        list(read_documents(write(tmp_path / "a.txt", b"\xff")))


def tar_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize(("suffix", "pack"), [(".tar", ".jsonl"), (".tar.gz", ".jsonl.gz"), (".tar.zst", ".jsonl.zst")])
def test_tars_of_documents_are_sources(tmp_path: Path, suffix: str, pack: str) -> None:
    content = tar_of(a__json=b'{"text": "one \\u00e9", "meta": {"pile_set_name": "D"}}', b__txt="two é".encode())
    for name in ("train-000000", "train-000001", "val-000000"):
        write(tmp_path / f"{name}{suffix}", PACKERS[pack](content))
    sources = find_sources([tmp_path])
    assert [source.split for source in sources] == ["train", "train", "val"]
    digest, read = hashlib.sha256(), list[int]()
    records = list(raw_records(sources[1], read.append, digest))
    assert [parse_record(sources[1], *record) for record in records] == [
        Document("one é", "D", f"train-000001{suffix}"),
        Document("two é", "unlabelled", f"train-000001{suffix}"),
    ]
    stored = (tmp_path / f"train-000001{suffix}").read_bytes()
    assert sum(read) == len(stored) and digest.hexdigest() == hashlib.sha256(stored).hexdigest()


def test_a_cut_tar_is_named(tmp_path: Path) -> None:
    content = tar_of(a__txt=b"x" * 2000)
    with pytest.raises(ShardError, match=r"a\.tar"):
        list(read_documents(write(tmp_path / "a.tar", content[:1024])))


@pytest.mark.parametrize("name", ["validation.jsonl", "valid.jsonl", "val-00000-of-00001.jsonl", "valid/a.jsonl"])
def test_other_names_of_the_validation_split_are_known(tmp_path: Path, name: str) -> None:
    for path in ("train.jsonl", name):
        write(tmp_path / path, b"")
    assert [source.split for source in find_sources([tmp_path])] == ["train", "val"]


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


@pytest.mark.parametrize("form", ["glob", "folder", "braces", "files"])
def test_the_piles_splits_are_kept_however_its_files_are_named(tmp_path: Path, form: str) -> None:
    (tmp_path / "train").mkdir()
    names = ["train/00.jsonl", "train/01.jsonl", "val.jsonl", "test.jsonl"]
    for name in names:
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    train = {
        "glob": [f"{tmp_path}/train/*.jsonl"],
        "folder": [f"{tmp_path}/train"],
        "braces": [f"{tmp_path}/train/{{00..01}}.jsonl"],
        "files": [f"{tmp_path}/train/00.jsonl", f"{tmp_path}/train/01.jsonl"],
    }[form]
    sources = find_sources([*train, tmp_path / "val.jsonl", tmp_path / "test.jsonl"])
    assert [(source.name, source.split) for source in sources] == [
        ("train/00.jsonl", "train"),
        ("train/01.jsonl", "train"),
        ("val.jsonl", "val"),
        ("test.jsonl", "test"),
    ]


def test_a_held_out_file_beside_files_of_no_split_is_refused(tmp_path: Path) -> None:
    for name in ("a.jsonl", "val.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl belongs to no split"):
        find_sources([tmp_path / "a.jsonl", tmp_path / "val.jsonl"])

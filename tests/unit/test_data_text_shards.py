"""Text shards: the usual layout read as it is, and hostile tars refused with shard and member named."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_lightning.data.shards.text import TextDocument, read_text_shard
from calm_lightning.errors import ShardError

Member = tuple[str, bytes]


def make_tar(members: Sequence[Member | tarfile.TarInfo], format: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def document(text: str, domain: str | None = None) -> bytes:
    meta = {"meta": {"pile_set_name": domain}} if domain else {}
    return json.dumps({"text": text, **meta}).encode()


def read(data: bytes, **options: Any) -> list[TextDocument]:
    return list(read_text_shard(io.BytesIO(data), "s.tar", **options))


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_the_usual_layouts_are_read() -> None:
    data = make_tar(
        [
            ("a/0.json", document("first", "Books")),
            ("a/1.txt", "zweites ü".encode()),
            ("a/2.json", json.dumps({"domain": "Web", "text": "not this one"}).encode()),
            ("a/2.txt", b"third"),
            ("a/3.TXT", b""),
            ("a/3.cls", b"7"),
            ("b.c/4.jpg", b"\xff\xd8"),
            ("b.c/4.json", document("fifth")),
        ]
    )
    ignored: Counter[str] = Counter()
    assert read(data, ignored=ignored) == [
        ("a/0", "first", "Books"),
        ("a/1", "zweites ü", "unlabelled"),
        ("a/2", "third", "Web"),
        ("a/3", "", "unlabelled"),
        ("b.c/4", "fifth", "unlabelled"),
    ]
    assert ignored == {"cls": 1, "jpg": 1}


def test_what_webdataset_writes_is_read(tmp_path: Path) -> None:
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "w.tar")) as writer:
        for number in range(3):
            writer.write(
                {"__key__": f"{number:04d}", "txt": f"text {number}", "json": {"meta": {"pile_set_name": "W"}}}
            )
    assert list(read_text_shard(tmp_path / "w.tar", "w.tar")) == [(f"{n:04d}", f"text {n}", "W") for n in range(3)]


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=8),
    folder=st.sampled_from(["", "./", "a" * 90 + "/" + "b" * 120 + "/"]),
    packing=st.sampled_from(["plain", "gzip", "zstd", "two frames"]),
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    step=st.sampled_from([1, 700, 1 << 20]),
)
def test_any_texts_come_back_whatever_the_packing(
    texts: list[str], folder: str, packing: str, format: int, step: int
) -> None:
    data = make_tar([(f"{folder}{number}ü.json", document(text, "D")) for number, text in enumerate(texts)], format)
    half = len(data) // 2
    compress = zstandard.ZstdCompressor().compress
    packed = {
        "plain": data,
        "gzip": gzip.compress(data),
        "zstd": compress(data),
        "two frames": compress(data[:half]) + compress(data[half:]),
    }[packing]

    class Trickle(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(step)

    documents = list(read_text_shard(Trickle(packed), "s.tar"))
    assert documents == [(f"{folder}{number}ü", text, "D") for number, text in enumerate(texts)]


def test_links_devices_and_directories_are_passed_over_and_touch_nothing(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    data = make_tar(
        [
            special("./", tarfile.DIRTYPE),
            special("../../out", tarfile.DIRTYPE),
            special("0.txt", tarfile.SYMTYPE, str(secret)),
            special("1.txt", tarfile.LNKTYPE, "../../etc/passwd"),
            special("2.txt", tarfile.CHRTYPE),
            special("3.txt", tarfile.FIFOTYPE),
            ("4.txt", b"text"),
            (".hidden.txt", b"no key"),
            ("__meta__", b"of webdataset"),
        ]
    )
    ignored: Counter[str] = Counter()
    before = os.listdir(tmp_path), os.listdir()
    assert read(data, ignored=ignored) == [("4", "text", "unlabelled")]
    assert (os.listdir(tmp_path), os.listdir()) == before
    assert ignored == {"directory": 2, "link": 2, "device": 2, "without key": 1, "meta": 1}


def huge(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("0.txt")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(10240)


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    return str(len(body) + 2).encode() + body  # two digits for all lengths used here


def pax(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    info = tarfile.TarInfo("PaxHeaders/0.txt")
    info.type, info.size = kind, len(records)
    return info.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0") + make_tar([("0.txt", b"text")])


HOSTILE: dict[str, tuple[bytes, str]] = {
    "absolute name": (make_tar([("/etc/0.txt", b"x")]), "relative path"),
    "name that climbs": (make_tar([("a/../../0.txt", b"x")]), "relative path"),
    "name that is not UTF-8": (
        make_tar([("0\udcff.txt", b"x")], tarfile.GNU_FORMAT),
        r"'0\\udcff.txt': its name is not UTF-8",
    ),
    "very long name": (make_tar([("a" * 5000 + ".txt", b"x")], tarfile.GNU_FORMAT), "5,004 characters"),
    "name with a zero byte": (pax(record(b"path", b"a\0b.txt")), "relative path"),
    "name that moves the cursor": (make_tar([("/\x1b[2J.txt", b"x")]), r"'/\\x1b\[2J.txt'"),
    "same name twice": (make_tar([("0.txt", b"x"), ("0.txt", b"y")]), "'0.txt': its name was there before"),
    "same key apart": (
        make_tar([("0.txt", b"x"), ("1.txt", b"y"), ("0.json", b"{}")]),
        "'0.json': its key was there before",
    ),
    "no text": (make_tar([("0.jpg", b"x"), ("0.json", b'{"caption": "a"}')]), "'0': no text: .* but .jpg, .json"),
    "text that is no string": (make_tar([("0.json", b'{"text": 5}')]), "no text"),
    "no JSON": (make_tar([("0.json", b"{text")]), "'0.json': it is not JSON"),
    "JSON too deep": (make_tar([("0.json", b"[" * 100_000)]), "'0.json': it is not JSON"),
    "text not UTF-8": (make_tar([("0.txt", b"ab\xff")]), r"'0.txt': it is not UTF-8 \(byte 2\)"),
    "JSON not UTF-8": (make_tar([("0.json", b'{"text": "\xff"}')]), "'0.json': it is not UTF-8"),
    "half a surrogate pair": (make_tar([("0.json", b'{"text": "\\ud800"}')]), "surrogate"),
    "domain with half a pair": (make_tar([("0.json", b'{"text": "", "domain": "\\udc00"}')]), "surrogate"),
    "claims 8 EiB": (huge(tarfile.REGTYPE, 1 << 63), "it claims 9,223,372,036,854,775,808 bytes"),
    "claims less than nothing": (huge(tarfile.REGTYPE, -512), "size of -512"),
    "long name of 1 TB": (huge(tarfile.GNUTYPE_LONGNAME, 1 << 40), "extended header of"),
    "ignored member of 1 TB": (huge(b"V", 1 << 40), "truncated within it"),
    "sparse file": (huge(tarfile.GNUTYPE_SPARSE, 512), "sparse"),
    "sparse file by pax": (pax(record(b"GNU.sparse.minor", b"0")), "sparse"),
    "pax size below nothing": (pax(record(b"size", b"-5")), "extended header is damaged"),
    "pax record too long": (pax(b"99 path=a\n"), "extended header is damaged"),
    "one name for all": (pax(record(b"path", b"a.txt"), tarfile.XGLTYPE), "gives all members one name"),
    "no tar": (b"just some text " * 100, "not a tar"),
    "nothing": (b"", "truncated"),
    "joined by cat": (make_tar([("0.txt", b"x")]) + make_tar([("1.txt", b"y")]), "more follows behind the end"),
    "not gzip after all": (b"\x1f\x8b" + bytes(600), "cannot be decompressed"),
    "not zstd after all": (b"\x28\xb5\x2f\xfd" + b"\xff" * 600, "cannot be decompressed"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_tars_are_refused_by_name(what: str) -> None:
    data, message = HOSTILE[what]
    with pytest.raises(ShardError, match=message) as caught:
        read(data)
    assert str(caught.value).startswith("shard s.tar") and str(caught.value).isprintable()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_tar_cut_anywhere_is_noticed(pack: Any) -> None:
    members = [(f"{number}.txt", f"text {number}".encode()) for number in range(4)]
    data = pack(make_tar(members).rstrip(b"\0").ljust(8 * 512, b"\0") + bytes(1024))
    cuts = range(0, len(data), 512 if pack is bytes else 1)
    for cut in cuts:
        with pytest.raises(ShardError):
            read(data[:cut])
    assert len(read(data)) == 4


def test_documents_before_the_damage_are_yielded_first() -> None:
    documents = read_text_shard(io.BytesIO(make_tar([("0.txt", b"good"), ("1.txt", b"\xff")])), "s.tar")
    assert next(documents).text == "good"
    with pytest.raises(ShardError, match=r"'1\.txt'"):
        next(documents)


def test_a_member_over_the_limit_is_refused_before_it_is_read() -> None:
    data = make_tar([("0.txt", bytes(5 << 20))])
    tracemalloc.start()
    with pytest.raises(ShardError, match=r"claims 5,242,880 bytes, a document may have 1,024"):
        read(data, max_bytes=1024)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20  # one chunk of the file, not the member


@pytest.mark.parametrize("pack", [lambda data: gzip.compress(data, 9), zstandard.ZstdCompressor(19).compress])
def test_a_bomb_is_refused_without_being_held(pack: Any) -> None:
    packed = pack(make_tar([("0.bin", bytes(400 << 20)), ("1.txt", b"x")]))
    assert len(packed) < 1 << 20
    tracemalloc.start()
    with pytest.raises(ShardError, match="unpacks to more than 500 times its size"):
        read(packed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 << 20


def test_a_document_of_100_megabytes_is_read() -> None:
    text = "0123456789" * 10_000_000
    assert read(make_tar([("0.json", document(text, "D"))])) == [("0", text, "D")]


def test_the_file_is_read_to_its_very_end() -> None:
    file = io.BytesIO(make_tar([("0.txt", b"x")]) + bytes(1 << 21))
    list(read_text_shard(file, "s.tar"))
    assert not file.read(1)


def test_a_path_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"shard gone\.tar cannot be read: No such file"):
        list(read_text_shard(tmp_path / "gone.tar", "gone.tar"))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_an_error_in_words_or_leaves_documents(data: st.DataObject) -> None:
    packings: list[Any] = [bytes, gzip.compress, zstandard.ZstdCompressor().compress]
    members = [("0.json", document("text", "D")), ("a" * 120 + ".txt", b"x")]
    damaged = bytearray(data.draw(st.sampled_from(packings))(make_tar(members, tarfile.PAX_FORMAT)))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, min(len(damaged), 4096) - 1))] = data.draw(st.integers(0, 255))
    try:
        for found in read_text_shard(io.BytesIO(damaged), "s.tar", ignored=Counter()):
            found.text.encode(), found.domain.encode(), found.key.encode()
    except ShardError as error:
        assert str(error).startswith("shard s.tar")

"""Raw files that lie elsewhere, read from real servers: a small hub, and web servers that fail."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import zstandard

from calm_lightning.errors import DataError
from data_pipelines.reading import remote
from data_pipelines.reading.sources import Document, find_sources, raw_records, read_documents

ROWS: list[dict[str, Any]] = [{"text": f"text {i} " + "é" * 300, "meta": {"pile_set_name": "D"}} for i in range(2000)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
PACKED = zstandard.ZstdCompressor().compress(LINES)
FILES = {
    "train/01.jsonl.zst": PACKED,
    "train/00.jsonl.zst": PACKED,
    "val.jsonl.zst": PACKED,
    "test.jsonl.zst": PACKED,
    "README.md": b"what it is",
}
REPOSITORY = "/api/datasets/someone/pile"


class Server(BaseHTTPRequestHandler):
    """The hub's listing and file routes over one data set, and the same files at /files/, whole or failing."""

    protocol_version = "HTTP/1.1"
    failures: ClassVar[list[Callable[[Server], None]]] = []
    requests: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0].rstrip("/")
        if path == REPOSITORY or path == f"{REPOSITORY}/revision/main":
            self.answer(json.dumps({"id": "someone/pile", "sha": "0" * 40, "siblings": []}).encode())
        elif path.startswith(f"{REPOSITORY}/tree/main"):
            self.tree(path.removeprefix(f"{REPOSITORY}/tree/main").strip("/"))
        else:
            name = next((n for n in FILES if path in (f"/datasets/someone/pile/resolve/main/{n}", f"/files/{n}")), None)
            if name is None:
                self.answer(b"", 404, {"X-Error-Code": "RepoNotFound"} if "/api/" in path else {})
            elif self.command == "GET" and self.failures:
                self.failures.pop()(self)
            else:
                self.file(FILES[name])

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.answer(json.dumps([self.entry(name) for name in FILES if f'"{name}"' in body or name in body]).encode())

    def entry(self, name: str) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(FILES[name]), "oid": "0" * 40}

    def tree(self, folder: str) -> None:
        names = [name for name in FILES if name.startswith(folder)]
        folders = sorted({name.split("/")[0] for name in names if "/" in name} - {folder})
        entries: list[dict[str, Any]] = [{"type": "directory", "path": one, "oid": "0" * 40} for one in folders]
        self.answer(json.dumps(entries + [self.entry(name) for name in names]).encode())

    def file(self, content: bytes) -> None:
        start, _, end = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
        part = content[int(start) : int(end) + 1 if end else None]
        place = f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}"
        self.answer(part, 206 if "Range" in self.headers else 200, {"Content-Range": place, "Accept-Ranges": "bytes"})

    def answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "ETag": '"0"', **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
        Server.failures.clear()
        Server.requests.clear()
        yield address
        running.shutdown()


@pytest.mark.parametrize("address", ["hf://someone/pile", "hf://datasets/someone/pile", "hf://someone/pile/"])
def test_a_data_set_of_the_hub_keeps_its_layout(server: str, address: str) -> None:
    sources = find_sources([address])
    assert [(source.name, source.split) for source in sources] == [
        ("train/00.jsonl.zst", "train"),
        ("train/01.jsonl.zst", "train"),
        ("val.jsonl.zst", "val"),
        ("test.jsonl.zst", "test"),
    ]
    assert {source.bytes for source in sources} == {len(PACKED)}
    documents = list(read_documents(sources[0]))
    assert documents[7] == Document(ROWS[7]["text"], "D", "train/00.jsonl.zst") and len(documents) == 2000


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/val.jsonl.zst", ["val.jsonl.zst"]),
        ("/train", ["train/00.jsonl.zst", "train/01.jsonl.zst"]),
        ("/train/*1.jsonl.zst", ["train/01.jsonl.zst"]),
        ("/train/{00..01}.jsonl.zst", ["train/00.jsonl.zst", "train/01.jsonl.zst"]),
    ],
)
def test_a_path_in_a_data_set_names_a_part_of_it(server: str, path: str, names: list[str]) -> None:
    assert [source.name for source in find_sources([f"hf://someone/pile{path}"])] == names


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://someone/nothing", "does not exist"),
        ("hf://someone/pile/nothing", "does not exist"),
        ("hf://pile", "names no data set"),
        ("hf://someone/pile/README.md", "is not one of"),
        ("foo://bar/a.jsonl", "of a kind that is not known"),
    ],
)
def test_addresses_that_lead_nowhere_are_refused(server: str, address: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_sources([address])


@pytest.mark.parametrize("address", ["hf://someone/other", "{closed}/a.jsonl"])
def test_a_server_that_is_not_there_is_one_sentence_within_seconds(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", closed)
        begin = time.monotonic()
        with pytest.raises(DataError, match=r"^source [^\n]* cannot be reached \([^\n]*\): check the address[^\n]*$"):
            find_sources([address.format(closed=closed)])
        assert time.monotonic() - begin < 10


def test_braces_name_several_files_of_a_web_server(server: str) -> None:
    sources = find_sources([f"{server}/files/train/{{00..01}}.jsonl.zst?download=true"])
    assert [source.name for source in sources] == ["train/00.jsonl.zst", "train/01.jsonl.zst"]
    assert len(list(read_documents(sources[1]))) == 2000


def test_a_password_or_signature_is_not_shown(server: str) -> None:
    address = server.replace("://", "://me:secret@") + "/files/none.jsonl?signature=secret"
    with pytest.raises(DataError, match="does not exist") as caught:
        find_sources([address])
    assert "secret" not in str(caught.value)


def status_500(request: Server) -> None:
    request.answer(b"", 500)


def status_404(request: Server) -> None:
    request.answer(b"", 404)


def broken_off(request: Server) -> None:
    request.send_response(206)
    request.send_header("Content-Length", str(len(PACKED)))
    request.send_header("Content-Range", f"bytes 0-{len(PACKED) - 1}/{len(PACKED)}")
    request.end_headers()
    request.wfile.write(PACKED[:100])
    request.close_connection = True


@pytest.mark.parametrize("failure", [status_500, broken_off])
def test_a_failing_server_is_asked_again_and_nothing_is_lost(
    server: str, failure: Callable[[Server], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_BLOCK", 1000)  # several requests, so that a failure falls in the middle
    source = find_sources([f"{server}/files/val.jsonl.zst"])[0]
    read: list[int] = []
    digest = hashlib.sha256()

    def fail_later(number: int) -> None:
        read.append(number)
        if len(read) == 2:
            Server.failures[:] = [failure] * 2

    records = list(raw_records(source, fail_later, digest))
    assert b"\n".join(record for _, record in records) == LINES.rstrip(b"\n")
    assert digest.hexdigest() == hashlib.sha256(PACKED).hexdigest()
    assert sum(read) == len(PACKED) and not Server.failures


@pytest.mark.parametrize(("failure", "asked"), [(status_500, remote.TRIES), (status_404, 1)])
def test_a_server_that_fails_for_good_is_given_up(server: str, failure: Callable[[Server], None], asked: int) -> None:
    source = find_sources([f"{server}/files/val.jsonl.zst"])[0]
    Server.failures[:] = [failure] * 10
    with pytest.raises(DataError, match=r"val\.jsonl\.zst (cannot be reached|does not exist)"):
        list(raw_records(source))
    assert 10 - len(Server.failures) == asked


def test_a_file_that_changes_between_listing_and_reading_is_noticed(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find_sources([f"{server}/files/val.jsonl.zst"])[0]
    monkeypatch.setitem(FILES, "val.jsonl.zst", PACKED + PACKED)
    with pytest.raises(DataError, match=r"val\.jsonl\.zst changed from \d+ to \d+ bytes"):
        list(raw_records(source))


def test_object_storage_is_listed_and_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    storage = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    storage.start()
    try:
        endpoint = f"http://127.0.0.1:{storage.get_host_and_port()[1]}"
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
        }.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="corpora")
        for name, content in FILES.items():
            client.put_object(Bucket="corpora", Key=f"pile/{name}", Body=content)
        sources = find_sources(["s3://corpora/pile"])
        assert [source.name for source in sources][::3] == ["train/00.jsonl.zst", "test.jsonl.zst"]
        assert sources[0].url == "s3://corpora/pile/train/00.jsonl.zst"
        assert len(list(read_documents(sources[2]))) == 2000
        with pytest.raises(DataError, match="does not exist"):
            find_sources(["s3://corpora/none.jsonl"])
    finally:
        storage.stop()

"""Text shards: tars of documents in the usual WebDataset layout, ours or other people's.

A sample is the consecutive members of one key. Its text is `KEY.txt` (UTF-8) or "text" in `KEY.json`; its domain is
"meta": {"pile_set_name"} or "domain" in `KEY.json`. Other extensions are passed over and counted. What cannot be read
as it stands is an error that names shard and member, never a smaller corpus.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from calm_lightning.data.shards.tar_members import Member, damaged, read_members
from calm_lightning.errors import ShardError

UNLABELLED = "unlabelled"
TEXT_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")
MAX_MEMBER_BYTES = 1 << 30
_TXT, _JSON = "txt", "json"


class TextDocument(NamedTuple):
    """One document of a text shard.

    Attributes:
        key: Key of its sample, unique in the shard.
        text: The text.
        domain: Its domain, or "unlabelled".
    """

    key: str
    text: str
    domain: str


def read_text_shard(
    file: BinaryIO | Path,
    name: str,
    *,
    max_bytes: int = MAX_MEMBER_BYTES,
    ignored: Counter[str] | None = None,
) -> Iterator[TextDocument]:
    """Yield the documents of a text shard, in order.

    The file is read once, from where it stands to its very end, so a checksum taken on the way is that of all of it.

    Args:
        file: The shard: a path, or an open binary file that need not be seekable.
        name: What to call the shard in messages.
        max_bytes: Largest member read as a document, in bytes.
        ignored: Told what was passed over: a number by extension ("cls"), or by kind ("link", "directory", "device",
            "without key", "meta").

    Raises:
        ShardError: The shard cannot be read or decompressed, is cut short, or holds something that is no document
            where one belongs; documents before it have been yielded.
    """
    passed_over: Counter[str] = Counter() if ignored is None else ignored
    try:
        with file.open("rb") if isinstance(file, Path) else nullcontext(file) as opened:
            yield from _documents(read_members(opened, name, (_TXT, _JSON), max_bytes, passed_over), name)
    except OSError as error:
        raise ShardError(f"shard {name} cannot be read: {error.strerror or error}") from None


def _documents(members: Iterator[Member], name: str) -> Iterator[TextDocument]:
    """Yield a document for every run of members with one key."""
    seen: set[str] = set()
    key = ""
    fields: dict[str, bytes] = {}
    for member in members:
        if member.key != key:
            if fields:
                yield _document(key, fields, name)
            if member.key in seen:
                raise damaged(name, member.name, "its key was there before: members of a sample must stand together")
            seen.add(member.key)
            key, fields = member.key, {}
        if member.extension in fields:
            raise damaged(name, member.name, "its name was there before")
        fields[member.extension] = member.content
    if fields:
        yield _document(key, fields, name)


def _document(key: str, fields: dict[str, bytes], name: str) -> TextDocument:
    """Return the document that the members of a sample are, by extension."""
    value: Any = None
    if _JSON in fields:
        try:
            value = json.loads(_utf8(fields[_JSON], f"{key}.{_JSON}", name))
        except (ValueError, RecursionError) as error:
            raise damaged(name, f"{key}.{_JSON}", f"it is not JSON ({error})") from None
    value = value if isinstance(value, dict) else {}
    if _TXT in fields:
        return TextDocument(key, _utf8(fields[_TXT], f"{key}.{_TXT}", name), _domain(value, key, name))
    text = value.get("text")
    if not isinstance(text, str):
        held = ", ".join(f".{extension}" for extension in fields)
        raise damaged(name, key, f'no text: neither a .txt nor a .json with a "text" string, but {held}')
    return TextDocument(key, _whole_unicode(text, key, name), _domain(value, key, name))


def _utf8(content: bytes, member: str, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise damaged(name, member, f"it is not UTF-8 (byte {error.start:,})") from None


def _domain(value: dict[str, Any], key: str, name: str) -> str:
    meta = value.get("meta")
    labels = (meta.get("pile_set_name") if isinstance(meta, dict) else None, value.get("domain"))
    label = next((label for label in labels if isinstance(label, str) and label), UNLABELLED)
    return _whole_unicode(label, key, name)


def _whole_unicode(text: str, key: str, name: str) -> str:
    """Return a text that JSON gave, which may have smuggled half of a surrogate pair past UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise damaged(name, f"{key}.{_JSON}", "it holds half of a surrogate pair, which is no valid Unicode") from None
    return text

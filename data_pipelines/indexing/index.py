"""`index`: a manifest for tars of text that others made, so that they can be trained on where they lie.

Every tar is read once, from its first byte to its last: validated, its documents counted by domain, its SHA-256 taken.
What is known of a finished tar goes into a work file beside the manifest, so an interrupted run continues, and another
run reads only what is new or has changed. Nothing is copied; the price is that the manifest is true only as long as the
tars stay as they are, which every reader of the corpus checks.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from calm_lightning import __version__
from calm_lightning.data.files.remote import shown
from calm_lightning.data.shards.manifest import (
    MANIFEST_FILE,
    SPLITS,
    TEXT,
    Counts,
    Manifest,
    Provenance,
    ShardRecord,
    SplitRecord,
)
from calm_lightning.errors import DataError
from data_pipelines.indexing.tars import Tar, TarContent, assign_splits, find_tars, place_tars, read_tar

WORK_FILE = ".index.jsonl"
_MADE_BY = "calm data index"


@dataclass(frozen=True)
class Progress:
    """How far an indexing is.

    Attributes:
        tars: Tars finished.
        tars_total: Tars in all.
        bytes_read: Bytes of tars read by this run.
        bytes_total: Bytes this run has to read, or None where remote tars do not tell.
    """

    tars: int
    tars_total: int
    bytes_read: int
    bytes_total: int | None


@dataclass(frozen=True)
class Indexed:
    """An indexed corpus.

    Attributes:
        manifest: Its manifest.
        shards_at: What data.shards_at has to be; "" where the tars are beside the manifest.
        ignored: Members that are no documents, by extension or kind.
        changed: False if the very same manifest was there already.
    """

    manifest: Manifest
    shards_at: str
    ignored: dict[str, int]
    changed: bool


@dataclass(frozen=True)
class _Known:
    """What is known of a tar that has been read to its end."""

    address: str
    changed_ns: int
    bytes: int
    sha256: str
    domains: dict[str, Counts]
    ignored: dict[str, int]

    def to_json(self) -> str:
        """Return one line of the work file."""
        domains = {name: [counts.documents, counts.text_bytes] for name, counts in self.domains.items()}
        return json.dumps(vars(self) | {"domains": domains}) + "\n"

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> _Known:
        """Return what a line of the work file says."""
        domains = {name: Counts(documents, 0, size) for name, (documents, size) in value["domains"].items()}
        return cls(**value | {"domains": domains})


def index(
    sources: Sequence[str],
    out: str | Path,
    *,
    val_shards: int | None = None,
    test_shards: int | None = None,
    force: bool = False,
    retries: int = 5,
    timeout: float = 60.0,
    pause: float = 0.5,
    progress: Callable[[Progress], None] | None = None,
) -> Indexed:
    """Make a corpus of text from tars in WebDataset layout. Idempotent, and continues where it was interrupted.

    Args:
        sources: Files, globs, directories, or addresses; braces are expanded (`https://host/{000..009}.tar`).
        out: The corpus directory to make; it gets the manifest, and links to local tars that lie in several places.
        val_shards: The last this many tars are "val", those of "test" not counted; for tars not laid out by split.
            None means 1, or 0 of a single tar.
        test_shards: The last this many tars are "test", likewise. None means 0.
        force: Replace the manifest of other tars at `out`.
        retries: Further attempts at a remote tar.
        timeout: Seconds without a byte after which an attempt has failed.
        pause: Seconds before the second attempt; doubled for each further one, up to 30.
        progress: Told how far the work is, about once per megabyte.

    Raises:
        DataError: Nothing is there, a tar is damaged or cannot be read, or `out` holds another corpus.
    """
    tars = assign_splits(find_tars(sources), val_shards, test_shards)
    target = Path(out).resolve()
    shards_at, links, names = place_tars(tars, target)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _work_file(target) as (known, remember):
            before = _manifest_before(target)
            entries = _read_all(
                tars, known, remember, progress, partial(read_tar, retries=retries, timeout=timeout, pause=pause)
            )
            manifest = _manifest(tars, names, entries)
            if before is not None and before.to_json() != manifest.to_json() and not force:
                raise DataError(
                    f"{out} holds the manifest of other tars: choose another --out, or add --force to replace it"
                )
            for link in links:
                link.make()
            changed = before is None or before.to_json() != manifest.to_json()
            if changed:
                manifest.save(target)
    except OSError as error:
        place = error.filename or out
        raise DataError(
            f"corpus {out} could not be indexed ({place}: {error.strerror or error}): mend that, then run the same "
            f"command again to continue"
        ) from None
    ignored = sum((Counter(entry.ignored) for entry in entries), Counter[str]())
    return Indexed(manifest, shards_at, dict(ignored), changed)


def _manifest_before(target: Path) -> Manifest | None:
    """Return the manifest that an earlier indexing left, or None."""
    if not (target / MANIFEST_FILE).exists():
        return None
    manifest = Manifest.load(target)
    if manifest.kind != TEXT or manifest.provenance.settings.get("made_by") != _MADE_BY:
        raise DataError(f"{target} holds a corpus made by `calm data prepare`: choose another --out")
    return manifest


@contextmanager
def _work_file(target: Path) -> Iterator[tuple[dict[str, _Known], Callable[[_Known], None]]]:
    """Yield what earlier runs found out, by address, and a function that remembers more; nobody else may meanwhile."""
    with (target / WORK_FILE).open("a+", encoding="ascii", errors="replace", newline="\n") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another process is indexing into {target}: wait for it, then run again") from None
        file.seek(0)
        text = file.read()
        if text and not text.endswith("\n"):
            file.write("\n")  # a killed run's last line
        known = {entry.address: entry for line in text.split("\n") if (entry := _parsed(line)) is not None}

        def remember(entry: _Known) -> None:
            file.write(entry.to_json())
            file.flush()
            os.fsync(file.fileno())

        yield known, remember


def _parsed(line: str) -> _Known | None:
    """Return what a line says, or None where it was cut short: that tar is read again."""
    try:
        return _Known.from_json(json.loads(line))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _read_all(
    tars: Sequence[Tar],
    known: dict[str, _Known],
    remember: Callable[[_Known], None],
    progress: Callable[[Progress], None] | None,
    read: Callable[[Tar, Callable[[int], None]], TarContent],
) -> list[_Known]:
    """Return what is in every tar, reading those that are new or have changed."""
    states = [tar.state() for tar in tars]
    entries = [_still_true(known.get(shown(tar.address)), state) for tar, state in zip(tars, states, strict=True)]
    waiting = [state for state, entry in zip(states, entries, strict=True) if entry is None]
    total = None if any(state is None for state in waiting) else sum(state[0] for state in waiting if state)
    finished, bytes_read = len(tars) - len(waiting), 0

    def on_bytes(number: int) -> None:
        nonlocal bytes_read
        bytes_read += number
        if progress:
            progress(Progress(finished, len(tars), bytes_read, total))

    result = []
    for tar, state, entry in zip(tars, states, entries, strict=True):
        if entry is None:
            content = read(tar, on_bytes)
            if state is not None and tar.state() != state:
                raise DataError(f"tar {tar.address} changed while it was read: run again when nothing writes to it")
            domains, ignored = dict(content.domains), dict(content.ignored)
            changed_ns = state[1] if state else 0
            entry = _Known(shown(tar.address), changed_ns, content.bytes, content.sha256, domains, ignored)
            remember(entry)
            finished += 1
            on_bytes(0)
        result.append(entry)
    return result


def _still_true(entry: _Known | None, state: tuple[int, int] | None) -> _Known | None:
    """Return what was known of a tar unless the file has changed; of a remote tar it is taken to be true."""
    if entry is None or (state is not None and state != (entry.bytes, entry.changed_ns)):
        return None
    return entry


def _manifest(tars: Sequence[Tar], names: Sequence[str], entries: Sequence[_Known]) -> Manifest:
    shards: dict[str, list[ShardRecord]] = {}
    for tar, name, entry in zip(tars, names, entries, strict=True):
        domains = {domain: entry.domains[domain] for domain in sorted(entry.domains)}
        shards.setdefault(tar.split, []).append(ShardRecord(name, entry.bytes, entry.sha256, domains))
    splits = {split: SplitRecord(tuple(shards[split])) for split in SPLITS if split in shards}
    provenance = Provenance(settings={"made_by": _MADE_BY}, versions={"calm-lightning": __version__})
    return Manifest(TEXT, None, "", splits, provenance)

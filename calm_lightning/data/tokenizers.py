"""Text <-> token ids: byte-level BPE, raw bytes, and Llama 3.

All of them encode text exactly as written: a string that looks like a special token (`<|endoftext|>`) is
ordinary text, so a document can never forge a document border. The border is `separator_id`, which only
the shard writer emits. One registry, `make_tokenizer`, turns a spec string into a tokenizer.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from calm_lightning.data.shards.manifest import TokenizerRecord
from calm_lightning.errors import DataError

SEPARATOR = "<|endoftext|>"
KNOWN_SPECS = "bpe:SIZE (for example bpe:1024), bytes, llama3, llama3:PATH, file:PATH"
_SEPARATOR_NAMES = (SEPARATOR, "<|end_of_text|>", "<|begin_of_text|>", "</s>", "<s>", "<eos>", "<bos>")


class Tokenizer(Protocol):
    """What every tokenizer offers."""

    @property
    def kind(self) -> str:
        """Name of the implementation, as the manifest records it."""

    @property
    def vocabulary(self) -> int:
        """Vocabulary size V; every id is below it."""

    @property
    def separator_id(self) -> int:
        """Id in front of every document; no text encodes to it."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 that changes whenever the mapping between text and ids may have changed."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, no separator added."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of every text, on several threads where the implementation can."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; incomplete UTF-8 shows as U+FFFD, separators by their name."""

    def save(self, directory: Path) -> str | None:
        """Write the tokenizer's file into `directory`; return the file's name, or None where there is none."""


class BytesTokenizer:
    """UTF-8 bytes as ids 0..255, and the separator 256. No training, no file, four times the tokens."""

    kind = "bytes"
    vocabulary = 257
    separator_id = 256
    fingerprint = hashlib.sha256(b"bytes: UTF-8 0..255, separator 256").hexdigest()

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        try:
            return list(text.encode())
        except UnicodeEncodeError:
            raise DataError("a text is not valid Unicode: half of a surrogate pair has no UTF-8") from None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer.encode_batch`."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        names = {self.separator_id: SEPARATOR.encode()}
        data = b"".join(bytes((i,)) if i < 256 else names.get(i, "\ufffd".encode()) for i in ids)
        return data.decode(errors="replace")

    def save(self, directory: Path) -> None:
        """Write nothing: the definition is the program's."""


class BPETokenizer:
    """A Hugging Face `tokenizer.json`, by default the byte-level BPE that `train_bpe` makes.

    The file's bytes are the tokenizer: they are copied unchanged and their SHA-256 is the fingerprint. What a
    file would add around a text (begin and end tokens, truncation, padding) is switched off.
    """

    kind = "bpe"
    file_name = "tokenizer.json"

    def __init__(self, data: bytes, origin: str) -> None:
        """Take the tokenizer that `data` describes.

        Args:
            data: Content of a tokenizer.json.
            origin: Where it comes from, for messages.

        Raises:
            DataError: It is not a tokenizer, or has no token that can separate documents.
        """
        from tokenizers import Tokenizer as HFTokenizer

        try:
            self._tokenizer: Any = HFTokenizer.from_str(data.decode())
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{origin} is not a Hugging Face tokenizer.json: {error}") from None
        self._data = data
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        ids = (self._tokenizer.token_to_id(name) for name in _SEPARATOR_NAMES)
        self.separator_id: int = next((i for i in ids if i is not None), -1)
        if self.separator_id < 0:
            raise DataError(f"{origin} has no separator token: it needs one of {', '.join(_SEPARATOR_NAMES)}")
        name = str(self._tokenizer.id_to_token(self.separator_id))
        if self.separator_id in self.encode(name):
            raise DataError(f"{origin}: its token {name} must be marked special, or text could forge a document border")
        self.vocabulary: int = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1  # ids may have gaps
        self.fingerprint = hashlib.sha256(data).hexdigest()

    def __reduce__(self) -> tuple[type[BPETokenizer], tuple[bytes, str]]:
        # the library's own pickling forgets that text must not forge special tokens
        return BPETokenizer, (self._data, "the tokenizer")

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer.encode_batch`."""
        return [item.ids for item in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def save(self, directory: Path) -> str:
        """See `Tokenizer.save`."""
        _write(directory / self.file_name, self._data)
        return self.file_name


def train_bpe(texts: Iterable[str], vocabulary: int) -> BPETokenizer:
    """Train a byte-level BPE; the separator gets id 0, the 256 bytes follow.

    Args:
        texts: Training texts; the order does not matter.
        vocabulary: Vocabulary size V, at least 257.

    Raises:
        DataError: `vocabulary` is too small, or the texts have too few distinct pairs to reach it.
    """
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocabulary < 257:
        raise DataError(f"tokenizer bpe:{vocabulary} is too small: 256 bytes and the separator need bpe:257 or more")
    tokenizer = HFTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    reached = tokenizer.get_vocab_size()
    if reached != vocabulary:
        raise DataError(
            f"tokenizer bpe:{vocabulary} cannot be trained: the train split is so small that it gives only "
            f"{reached} entries (use bpe:{reached} or less, or bytes)"
        )
    return BPETokenizer(tokenizer.to_str(pretty=True).encode(), f"bpe:{vocabulary}")


class Llama3Tokenizer:
    """Llama 3's tiktoken BPE: 128,000 ranks, 256 special ids, and one padding id (V = 128,257).

    The separator is begin-of-text (128000), as in the released CALM evaluation. Needs the `llama` extra.
    """

    kind = "llama3"
    file_name = "tokenizer.model"
    vocabulary = 128_257
    separator_id = 128_000
    _RANKS = 128_000
    # Published pattern of Llama 3's pre-tokeniser.
    _PATTERN = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )

    def __init__(self, data: bytes, origin: str) -> None:
        """Take the tokenizer that `data` describes.

        Args:
            data: Content of a `tokenizer.model` in tiktoken format (lines of base64 bytes and rank).
            origin: Where it comes from, for messages.

        Raises:
            DataError: It is not Llama 3's file, or tiktoken is not installed.
        """
        if importlib.util.find_spec("tiktoken") is None:
            raise DataError("tokenizer llama3 needs tiktoken: pip install 'calm-lightning[llama]'")
        try:
            pairs = [line.split() for line in data.splitlines() if line]
            self._ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
        except (ValueError, binascii.Error):
            raise DataError(f"{origin} is not a tokenizer file in tiktoken format") from None
        if sorted(self._ranks.values()) != list(range(self._RANKS)):
            raise DataError(f"{origin} has {len(self._ranks)} entries, Llama 3's tokenizer has {self._RANKS}")
        self._data = data
        self.fingerprint = hashlib.sha256(data).hexdigest()

    @cached_property
    def _encoding(self) -> Any:
        import tiktoken

        names = ["<|begin_of_text|>", "<|end_of_text|>"]
        names += [f"<|reserved_{i}|>" for i in range(self.vocabulary - self._RANKS - len(names))]
        special = {name: self._RANKS + i for i, name in enumerate(names)}
        return tiktoken.Encoding("llama3", pat_str=self._PATTERN, mergeable_ranks=self._ranks, special_tokens=special)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        ids: list[int] = self._encoding.encode_ordinary(text)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer.encode_batch`."""
        ids: list[list[int]] = self._encoding.encode_ordinary_batch(list(texts), num_threads=os.cpu_count() or 1)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        text: str = self._encoding.decode(list(ids))
        return text

    def save(self, directory: Path) -> str:
        """See `Tokenizer.save`."""
        _write(directory / self.file_name, self._data)
        return self.file_name


def find_llama3_file() -> Path:
    """Return the `tokenizer.model` of the installed `llama_models` package, without importing it.

    Raises:
        DataError: The package is not installed or does not hold the file.
    """
    spec = importlib.util.find_spec("llama_models")
    for location in (spec.submodule_search_locations or []) if spec else []:
        path = Path(location) / "llama3" / "tokenizer.model"
        if path.is_file():
            return path
    raise DataError(
        "Llama 3's tokenizer.model was not found: give its path (--tokenizer llama3:PATH) or "
        "pip install --no-deps llama-models, which carries it"
    )


def make_tokenizer(spec: str, train_texts: Iterable[str]) -> Tokenizer:
    """Return the tokenizer that a spec string names.

    Args:
        spec: One of `KNOWN_SPECS`.
        train_texts: Texts to train on; read by "bpe:SIZE" alone.

    Raises:
        DataError: Unknown spec, missing or damaged file, or training that cannot reach the size.
    """
    kind, _, argument = spec.partition(":")
    if kind == "bpe" and argument.isdecimal():
        return train_bpe(train_texts, int(argument))
    if spec == "bytes":
        return BytesTokenizer()
    if kind == "llama3":
        path = Path(argument) if argument else find_llama3_file()
        return Llama3Tokenizer(_read(path), str(path))
    if kind == "file" and argument:
        return BPETokenizer(_read(Path(argument)), argument)
    raise DataError(f"unknown tokenizer {spec!r}; known are {KNOWN_SPECS}")


def load_tokenizer(directory: Path, record: TokenizerRecord) -> Tokenizer:
    """Return the tokenizer that lies in a directory, checked against its record.

    Args:
        directory: The directory, of a corpus for example.
        record: What a manifest says of it.

    Raises:
        DataError: Its file is missing or is not the one the shards were made with.
    """
    return tokenizer_from(record, _file_of(directory, record), str(directory))


def tokenizer_from(record: TokenizerRecord, data: bytes | None, place: str) -> Tokenizer:
    """Return the tokenizer that a record describes.

    Args:
        record: What a manifest says of it.
        data: Content of its file, None where it has none.
        place: The corpus or directory it belongs to, for messages.

    Raises:
        DataError: The file is not the recorded one, or of a kind this program does not know.
    """
    check_content(record, data, place)
    kinds: dict[str, type[BPETokenizer] | type[Llama3Tokenizer]] = {"bpe": BPETokenizer, "llama3": Llama3Tokenizer}
    if data is None:
        return BytesTokenizer()
    if record.kind not in kinds:
        raise DataError(f"{place} was made with an unknown tokenizer kind {record.kind!r}; prepare the corpus again")
    return kinds[record.kind](data, f"the tokenizer of {place}")


def check_fingerprint(directory: Path, record: TokenizerRecord) -> None:
    """Check that a corpus' tokenizer is the one its shards were made with, without loading it.

    Raises:
        DataError: Its file is missing or another one.
    """
    check_content(record, _file_of(directory, record), str(directory))


def check_content(record: TokenizerRecord, data: bytes | None, place: str) -> None:
    """Check that the content of a tokenizer's file is the recorded one; arguments as `tokenizer_from`.

    Raises:
        DataError: It is another one.
    """
    found = BytesTokenizer.fingerprint if data is None else hashlib.sha256(data).hexdigest()
    if found != record.fingerprint:
        raise DataError(
            f"the tokenizer in {place} does not match its shards (fingerprint {found[:12]}, manifest "
            f"{record.fingerprint[:12]}): put the original file back or prepare the corpus again"
        )


def _file_of(directory: Path, record: TokenizerRecord) -> bytes | None:
    return _read(directory / record.file) if record.file else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"tokenizer file {path} cannot be read: {error.strerror}") from None


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(data)
    os.replace(temporary, path)


_RECORD = "record.json"


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write a tokenizer and what it is into a directory of its own; `open_tokenizer` reads it back."""
    directory.mkdir(parents=True, exist_ok=True)
    record = record_of(tokenizer, tokenizer.save(directory))
    _write(directory / _RECORD, json.dumps(asdict(record), indent=2).encode())


def open_tokenizer(directory: Path) -> Tokenizer:
    """Return the tokenizer that `save_tokenizer` wrote.

    Raises:
        DataError: The directory holds none, or its file is not the one that was written.
    """
    path = directory / _RECORD
    try:
        record = TokenizerRecord(**json.loads(_read(path)))
    except (ValueError, TypeError):
        raise DataError(f"{path} is not a tokenizer's record: put the original file back") from None
    return load_tokenizer(directory, record)


def record_of(tokenizer: Tokenizer, file: str | None) -> TokenizerRecord:
    """Return what a manifest says of a tokenizer whose file has the given name."""
    return TokenizerRecord(tokenizer.kind, file, tokenizer.vocabulary, tokenizer.separator_id, tokenizer.fingerprint)

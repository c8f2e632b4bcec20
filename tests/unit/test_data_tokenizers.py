"""Tokenizers: exact round trips, no forged borders, fingerprints."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calm_lightning.data.shards.manifest import TokenizerRecord
from calm_lightning.data.tokenizers import (
    SEPARATOR,
    BytesTokenizer,
    Tokenizer,
    check_fingerprint,
    load_tokenizer,
    make_tokenizer,
    train_bpe,
)
from calm_lightning.errors import DataError

TEXTS = [
    "the quick brown fox jumps over the lazy dog " * 3,
    "Gödel, Escher: naïve café\n\n\tdef f(x): return x**2",
]
BPE = train_bpe(TEXTS, 300)
TOKENIZERS: list[Tokenizer] = [BPE, BytesTokenizer()]
each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda tokenizer: tokenizer.kind)
unicode_text = st.text(st.characters(exclude_categories=["Cs"]))


def record_of(tokenizer: Tokenizer, file: str | None) -> TokenizerRecord:
    return TokenizerRecord(tokenizer.kind, file, tokenizer.vocabulary, tokenizer.separator_id, tokenizer.fingerprint)


@each_tokenizer
@given(text=unicode_text)
def test_decode_inverts_encode(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocabulary and i != tokenizer.separator_id for i in ids)


@each_tokenizer
def test_a_separator_written_in_a_text_is_ordinary_text(tokenizer: Tokenizer) -> None:
    text = f"before{SEPARATOR}after {SEPARATOR}"
    ids = tokenizer.encode(text)
    assert tokenizer.separator_id not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([tokenizer.separator_id]) == SEPARATOR


@each_tokenizer
def test_a_batch_equals_its_texts_one_by_one(tokenizer: Tokenizer) -> None:
    texts = [*TEXTS, "", SEPARATOR, "日本語"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@each_tokenizer
def test_a_saved_tokenizer_loads_as_it_was(tokenizer: Tokenizer, tmp_path: Path) -> None:
    loaded = load_tokenizer(tmp_path, record_of(tokenizer, tokenizer.save(tmp_path)))
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])


def test_bpe_has_the_size_asked_for_and_the_separator_first() -> None:
    assert (BPE.vocabulary, BPE.separator_id) == (300, 0)


def test_bpe_training_gives_the_same_bytes_again() -> None:
    assert train_bpe(TEXTS, 300).fingerprint == BPE.fingerprint


def test_bpe_sizes_that_cannot_be_reached_are_refused() -> None:
    with pytest.raises(DataError, match="bpe:257 or more"):
        train_bpe(TEXTS, 256)
    with pytest.raises(DataError, match="gives only"):
        train_bpe(["ab"], 2000)


def test_a_replaced_tokenizer_file_is_refused(tmp_path: Path) -> None:
    record = record_of(BPE, BPE.save(tmp_path))
    train_bpe(TEXTS, 290).save(tmp_path)
    with pytest.raises(DataError, match="does not match its shards"):
        check_fingerprint(tmp_path, record)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path, record)


def test_an_existing_file_is_taken_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes((tmp_path / BPE.save(tmp_path)).read_bytes())
    loaded = make_tokenizer(f"file:{path}", ())
    assert loaded.fingerprint == BPE.fingerprint
    assert loaded.encode(TEXTS[0]) == BPE.encode(TEXTS[0])


def edited_file(tmp_path: Path, edit: Any) -> str:
    value = json.loads((tmp_path / BPE.save(tmp_path)).read_text())
    edit(value)
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(value))
    return f"file:{path}"


def test_what_a_file_would_add_around_a_text_is_switched_off(tmp_path: Path) -> None:
    def edit(value: dict[str, Any]) -> None:
        value["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
        value["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": SEPARATOR, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {SEPARATOR: {"id": SEPARATOR, "ids": [0], "tokens": [SEPARATOR]}},
        }

    loaded = make_tokenizer(edited_file(tmp_path, edit), ())
    assert loaded.encode(TEXTS[0]) == BPE.encode(TEXTS[0])
    assert loaded.encode_batch(TEXTS) == BPE.encode_batch(TEXTS)


def test_a_file_whose_separator_could_be_forged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="marked special"):
        make_tokenizer(edited_file(tmp_path, lambda value: value["added_tokens"][0].update(special=False)), ())


def test_a_file_without_a_separator_is_refused(tmp_path: Path) -> None:
    def edit(value: dict[str, Any]) -> None:
        value["added_tokens"] = []
        value["model"]["vocab"]["<odd>"] = value["model"]["vocab"].pop(SEPARATOR)

    with pytest.raises(DataError, match="no separator"):
        make_tokenizer(edited_file(tmp_path, edit), ())


@pytest.mark.parametrize("spec", ["word", "bpe", "bpe:many", "bytes:2", "file:", ""])
def test_an_unknown_spec_names_the_known_ones(spec: str) -> None:
    with pytest.raises(DataError, match=r"unknown tokenizer.*bpe:1024"):
        make_tokenizer(spec, ())


@pytest.mark.parametrize("kind", ["file", "llama3"])
def test_a_file_that_is_missing_or_something_else_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        make_tokenizer(f"{kind}:{tmp_path / 'none'}", ())
    (tmp_path / "odd").write_bytes(b"\xff not a tokenizer")
    with pytest.raises(DataError, match=r"odd.* is not a"):
        make_tokenizer(f"{kind}:{tmp_path / 'odd'}", ())


def test_a_tiktoken_file_of_another_size_is_not_llama3(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_text("YQ== 0\nYg== 1\n")
    with pytest.raises(DataError, match="2 entries"):
        make_tokenizer(f"llama3:{tmp_path / 'tokenizer.model'}", ())


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_copy_in_another_process_lets_no_text_forge_a_border(tokenizer: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    text = f"a {SEPARATOR} b"
    assert copy.encode(text) == tokenizer.encode(text) and copy.separator_id not in copy.encode(text)
    assert copy.fingerprint == tokenizer.fingerprint

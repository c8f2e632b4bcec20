"""Llama 3's tokenizer against ids that the original gives.

Needs the golden numbers, and Llama 3's tokenizer.model: named by CALM_LLAMA3_TOKENIZER, or in the `llama-models`
package.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from calm_lightning.data.tokenizers import Llama3Tokenizer, find_llama3_file
from calm_lightning.errors import DataError

GOLDEN = Path(os.environ.get("CALM_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
CASES = GOLDEN / "tokenizer" / "llama3.json"
pytestmark = pytest.mark.skipif(not CASES.is_file(), reason=f"no golden numbers at {GOLDEN}; set CALM_GOLDEN")


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(CASES.read_text(encoding="utf-8"))
    return value


@pytest.fixture(scope="module")
def tokenizer() -> Llama3Tokenizer:
    pytest.importorskip("tiktoken", reason="needs the llama extra")
    try:
        path = Path(os.environ.get("CALM_LLAMA3_TOKENIZER") or find_llama3_file())
    except DataError as error:
        pytest.skip(str(error))
    return Llama3Tokenizer(path.read_bytes(), str(path))


def test_strings_have_the_original_ids(cases: dict[str, Any], tokenizer: Llama3Tokenizer) -> None:
    texts = [case["text"] for case in cases["strings"]]
    assert tokenizer.encode_batch(texts) == [case["ids"] for case in cases["strings"]]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts


def test_a_special_string_is_ordinary_text(tokenizer: Llama3Tokenizer) -> None:
    text = "a <|begin_of_text|> b<|end_of_text|>"
    ids = tokenizer.encode(text)
    assert max(ids) < 128_000 and tokenizer.decode(ids) == text
    assert tokenizer.decode([tokenizer.separator_id]) == "<|begin_of_text|>"
    assert tokenizer.vocabulary == 128_257


def test_wikitext_documents_have_the_original_counts(cases: dict[str, Any], tokenizer: Llama3Tokenizer) -> None:
    path = GOLDEN.parent / "data" / "wikitext-103-test.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    lines = path.read_text(encoding="utf-8").splitlines()
    counts = [len(ids) for ids in tokenizer.encode_batch([json.loads(line)["text"] for line in lines])]
    assert len(counts) == cases["wikitext_documents"]
    assert counts[: len(cases["wikitext_tokens_first_20_documents"])] == cases["wikitext_tokens_first_20_documents"]
    assert sum(counts) == 289_083

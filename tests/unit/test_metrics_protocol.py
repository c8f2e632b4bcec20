"""The protocol that every score carries, and the package as others import it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from calm_lightning import metrics
from calm_lightning.metrics import Protocol

ONE = Protocol(
    name="aligned",
    block_tokens=768,
    start_stride=24,
    samples=8,
    corpus="c" * 64,
    split="val",
    blocks=10,
    max_blocks=None,
    documents=31,
    tokens=7680,
    left_out_tokens=100,
    tokenizer="d" * 64,
    precision="32-true",
    seed=0,
    commit="e" * 40 + "-dirty",
    model={"model": "f" * 64},
)


def test_it_says_in_words_what_a_score_depends_on() -> None:
    said = ONE.describe()
    for part in (
        "aligned",
        "10 blocks of 768 tokens",
        "multiples of 24 tokens from 24 on",
        "S = 8",
        "T = 1",
        "32-true",
    ):
        assert part in said
    assert "split val of corpus cccccccccccc;" in said
    assert said.endswith("commit eeeeeeeeeeee (edited)")
    assert "commit" not in replace(ONE, commit="").describe()
    assert "on cpu" not in said and "batches" not in said
    assert "32-true on cpu; batches of 1,536 tokens;" in replace(ONE, batch_tokens=1536, device="cpu").describe()
    assert replace(ONE, start_stride=1).starts.startswith("every token from 1 on")
    assert replace(ONE, start_stride=None).starts == "every token"


def test_it_is_written_as_plain_values() -> None:
    value = json.loads(json.dumps(ONE.to_dict()))
    assert value["model"] == {"model": "f" * 64}
    assert value["starts"] == ONE.starts
    assert value["temperature"] == 1.0


def test_reading_names_does_not_load_torch() -> None:
    code = (
        "import sys, calm_lightning.metrics, calm_lightning.metrics.names as names; assert 'torch' not in sys.modules; "
        "from calm_lightning.metrics import BrierLM; assert 'torch' in sys.modules and names.BRIER_LM"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_there_and_others_are_not() -> None:
    assert {getattr(metrics, name).__name__ for name in metrics.__all__} == set(metrics.__all__)
    with pytest.raises(AttributeError, match="no attribute BrierML"):
        _ = metrics.BrierML

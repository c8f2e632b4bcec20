"""The batch temperature algorithm against the exact probabilities of the authors' implementation, on every pool."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from calm_lightning.sampling.temperature import batch_temperature, batch_temperature_weights

GOLDEN = Path(os.environ.get("CALM_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
FOLDER = GOLDEN / "temperature"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no golden numbers at {GOLDEN}; set CALM_GOLDEN")


def cases() -> list[Any]:
    if not FOLDER.is_dir():
        return []
    found = json.loads((FOLDER / "expected.json").read_text())
    return [pytest.param(case, id=f"pool{case['pool']}-n{case['inverse_temperature']}") for case in found]


@pytest.mark.parametrize("case", cases())
def test_probabilities_are_the_authors(case: dict[str, Any]) -> None:
    pool_SK = load_file(FOLDER / f"pool{case['pool']}.safetensors")["samples"]
    weights_S = batch_temperature_weights(pool_SK.unsqueeze(0), case["inverse_temperature"])[0]
    found: Counter[tuple[int, ...]] = Counter()
    for chunk, weight in zip(pool_SK.tolist(), weights_S.tolist(), strict=True):
        found[tuple(chunk)] += weight
    expected = {tuple(chunk): probability for chunk, probability in case["probabilities"]}
    assert {chunk: weight for chunk, weight in found.items() if weight > 0} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("case", cases())
def test_the_level_is_the_authors(case: dict[str, Any]) -> None:
    counts = Counter(map(tuple, load_file(FOLDER / f"pool{case['pool']}.safetensors")["samples"].tolist()))
    assert min(case["inverse_temperature"], max(counts.values())) == case["level_used"]
    torch.manual_seed(0)
    pool_SK = load_file(FOLDER / f"pool{case['pool']}.safetensors")["samples"]
    drawn = batch_temperature(pool_SK.expand(200, *pool_SK.shape), case["inverse_temperature"]).tolist()
    assert all(counts[tuple(chunk)] >= case["level_used"] for chunk in drawn)
    assert {tuple(chunk) for chunk in drawn} <= {tuple(chunk) for chunk, _ in case["probabilities"]}


def test_every_pool_has_cases() -> None:
    named = {case["pool"] for case in json.loads((FOLDER / "expected.json").read_text())}
    assert {path.stem.removeprefix("pool") for path in FOLDER.glob("pool*.safetensors")} == set(map(str, named))

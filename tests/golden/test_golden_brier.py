"""BrierLM against the authors' numbers: every case found in the golden folder, whatever its K."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from calm_lightning.metrics import BrierLM

GOLDEN = Path(os.environ.get("CALM_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
CASES = sorted(GOLDEN.glob("brier/*.safetensors"))
MODELS = [path for path in sorted(GOLDEN.glob("energy/*/case.safetensors")) if "brier" in load_file(path)]
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden numbers at {GOLDEN}; set CALM_GOLDEN")


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_score_of_two_samples(path: Path) -> None:
    case = load_file(path)
    samples_PSH = torch.stack((case["sample_1"], case["sample_2"]), dim=2).flatten(0, 1)
    metric = BrierLM()
    metric.update(samples_PSH, case["target"].flatten(0, 1))
    result = metric.compute()
    assert result.brier == pytest.approx((100 * case["brier"].flatten()).tolist(), rel=1e-6)
    assert result.value == pytest.approx(case["brierlm_percent"].item(), rel=1e-6)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_score_of_a_released_model(path: Path) -> None:
    case = load_file(path)
    K = int(path.parent.name.removeprefix("K"))
    samples_PSK = torch.stack((case["decoded_1"], case["decoded_2"])).reshape(2, -1, K).transpose(0, 1)
    target_PK = case["input_ids"][:, K:].reshape(-1, K)
    metric = BrierLM()
    metric.update(samples_PSK, target_PK)
    result = metric.compute()
    assert result.brier == pytest.approx((100 * case["brier"].flatten()).tolist(), rel=1e-5, abs=1e-5)

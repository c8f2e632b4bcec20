"""BrierLM against the authors' numbers: every case found in the golden folder, whatever its K or V."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.metrics import BrierLM
from calm_lightning.metrics.brier import brier_from_probabilities
from calm_lightning.models import open_model
from calm_lightning.sampling.continuations import baseline_probabilities

GOLDEN = Path(os.environ.get("CALM_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
CASES = sorted(GOLDEN.glob("brier/*.safetensors"))
MODELS = sorted(GOLDEN.glob("energy/*/case.safetensors"))
BASELINES = sorted(GOLDEN.glob("baseline/*/case.safetensors"))
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
    if "brier" not in case:
        pytest.skip("the case holds no score (K < 4)")
    K = case["decoded_1"].shape[-1]
    samples_PSK = torch.stack((case["decoded_1"], case["decoded_2"])).reshape(2, -1, K).transpose(0, 1)
    target_PK = case["input_ids"][:, K:].reshape(-1, K)
    metric = BrierLM()
    metric.update(samples_PSK, target_PK)
    result = metric.compute()
    assert result.brier == pytest.approx((100 * case["brier"].flatten()).tolist(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.parent.name)
def test_baseline_against_the_enumeration_of_all_continuations(path: Path) -> None:
    """P(y) and the collision of one token are exact; longer collisions are estimates, unbiased to 5 standard errors."""
    case = load_file(path)
    model = open_model(path.parent / "checkpoint").model
    assert isinstance(model, TokenLM)
    torch.manual_seed(0)
    starts_G = torch.arange(1, case["p_gold"].shape[1] + 1)
    with torch.no_grad():
        runs = [baseline_probabilities(model, case["input_ids"], starts_G, 400) for _ in range(20)]
    torch.testing.assert_close(runs[0].gold, case["p_gold"], rtol=1e-5, atol=1e-9)
    estimates = torch.stack([run.collision for run in runs])
    torch.testing.assert_close(estimates[0, ..., 0], case["collision"][..., 0], rtol=1e-5, atol=1e-9)
    error = estimates.std(0) / len(runs) ** 0.5
    assert ((estimates.mean(0) - case["collision"]).abs() < 5 * error + 1e-6).all()
    brier = brier_from_probabilities(runs[0].gold, case["collision"])
    torch.testing.assert_close(brier.float(), case["brier_per_position"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(brier.mean((0, 1)).float(), case["brier_mean"], rtol=1e-5, atol=1e-7)

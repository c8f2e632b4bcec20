"""Accuracy against collision rate, of samplers whose distribution is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from calm_lightning.diagnostics import calibration
from calm_lightning.diagnostics.report import grouped_mean
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.metrics.resampling import mean_errors, sum_by_key
from calm_lightning.sampling.temperature import batch_temperature_weights

CONFIG = LanguageModelConfig(d=16, intermediate=32, layers=1, heads=2, vocabulary=7)


def ids(drawn_P2SK: Tensor, target_PK: Tensor) -> tuple[Tensor, Tensor]:
    """Return pools (2, P, S, K) and targets (P, K) as prefix numbers."""
    found = calibration.prefix_ids(torch.cat((drawn_P2SK.flatten(1, 2), target_PK.unsqueeze(1)), dim=1))
    return torch.stack(found[:, :-1].split(drawn_P2SK.shape[2], dim=1)), found[:, -1]


def test_prefix_ids_are_equal_for_equal_beginnings_in_a_row_only() -> None:
    tokens_PSK = torch.tensor([[[1, 2, 3], [1, 2, 4], [1, 5, 3]], [[1, 2, 3], [9, 2, 3], [1, 2, 3]]])
    found = calibration.prefix_ids(tokens_PSK)
    for k in range(3):
        first, second = found[0, :, k].tolist(), found[1, :, k].tolist()
        beginnings = [tuple(chunk[: k + 1]) for chunk in tokens_PSK[0].tolist()]
        assert len(set(first)) == len(set(beginnings))
        assert not set(first) & set(second)
    assert found[1, 0].tolist() == found[1, 2].tolist()


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_agreement_equals_comparing_every_pair(n: int) -> None:
    torch.manual_seed(0)
    drawn_P2SK, target_PK = torch.randint(3, (20, 2, 6, 2)), torch.randint(3, (20, 2))
    right_Pn, agree_Pn = calibration.agreement(*ids(drawn_P2SK, target_PK), n, (1, 2))
    weight_P2S = batch_temperature_weights(drawn_P2SK.flatten(0, 1), n).view(20, 2, 6)
    for column, length in enumerate((1, 2)):
        same = (drawn_P2SK[:, 0, :, None, :length] == drawn_P2SK[:, 1, None, :, :length]).all(-1).double()
        agree = (weight_P2S[:, 0, :, None] * same * weight_P2S[:, 1, None]).sum((1, 2))
        hit = (drawn_P2SK[..., :length] == target_PK[:, None, None, :length]).all(-1).double()
        assert torch.allclose(agree_Pn[:, column], agree)
        assert torch.allclose(right_Pn[:, column], (weight_P2S * hit).sum((1, 2)) / 2)


@pytest.mark.parametrize("sharpness", [1.0, 2.0])
def test_a_sampler_of_the_truth_is_calibrated_and_a_sharper_one_is_too_sure(sharpness: float) -> None:
    torch.manual_seed(0)
    P, S = 2000, 8
    p_PV = torch.rand(P, 6).softmax(-1)
    q_PV = p_PV**sharpness / (p_PV**sharpness).sum(-1, keepdim=True)
    target_PK = torch.multinomial(p_PV, 1)
    drawn_P2SK = torch.multinomial(q_PV, 2 * S, replacement=True).view(P, 2, S, 1)
    right_Pn, agree_Pn = calibration.agreement(*ids(drawn_P2SK, target_PK), 1, (1,))
    mean, error = grouped_mean((right_Pn - agree_Pn)[:, 0], torch.arange(P))
    expected = float(((q_PV * p_PV).sum(-1) - q_PV.square().sum(-1)).mean())
    assert abs(mean - expected) < 4 * error
    assert (expected == pytest.approx(0, abs=1e-6)) == (sharpness == 1.0)


def test_lower_temperatures_of_a_softmax_model_are_exact_for_one_token() -> None:
    torch.manual_seed(0)
    model = TokenLM(CONFIG, 7)
    torch.nn.init.normal_(model.lm_head.weight, std=1.0)
    tokens_BT, starts_G = torch.randint(7, (3, 24)), torch.tensor([4, 8, 12])
    rows = calibration.token_calibration(model, tokens_BT, starts_G, [1.0, 0.5], (1, 4), samples=4)
    finding = calibration.finding(rows)
    logits_BGV = model(tokens_BT).detach()[:, starts_G - 1]
    for temperature in (1.0, 0.5):
        p_BGV = (logits_BGV / temperature).softmax(-1)
        right = p_BGV.gather(-1, tokens_BT[:, starts_G].unsqueeze(-1)).mean()
        agree = p_BGV.square().sum(-1).mean()
        assert finding.value(calibration.accuracy(1), "baseline", temperature) == pytest.approx(float(right), rel=1e-5)
        assert finding.value(calibration.collision(1), "baseline", temperature) == pytest.approx(float(agree), rel=1e-5)
    assert torch.equal(model(tokens_BT)[:, starts_G - 1], logits_BGV)  # the model itself is as it was


def test_errors_are_those_of_groups() -> None:
    values_P, group_P = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1, 2, 2])
    mean, error = grouped_mean(values_P, group_P)
    sums_G1 = sum_by_key(values_P.double().unsqueeze(1), group_P)
    assert mean == pytest.approx(4 / 6)
    assert error == pytest.approx(float(mean_errors(sums_G1, torch.tensor([2.0, 2.0, 2.0]).double())[0]))
    assert error > float(values_P.std()) / 6**0.5

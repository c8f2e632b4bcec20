"""The transformer's own kernels and its branched continuation against plain definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from calm_lightning.backbone.config import BackboneConfig
from calm_lightning.backbone.layers import RMSNorm, rotary_table, rotate
from calm_lightning.backbone.transformer import BranchCache, Transformer, causal_attention

SHAPE = BackboneConfig(d=16, intermediate=24, layers=2, heads=2)


def transformer() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(SHAPE).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_rms_norm_gradient_is_the_derivative() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(5, 1e-6).double()
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    norm.weight.data.normal_()
    assert torch.autograd.gradcheck(
        lambda x, weight: torch.func.functional_call(norm, {"weight": weight}, x), (x, norm.weight)
    )


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (2, 3, 4, 7)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_rms_norm_equals_the_library(shape: tuple[int, ...], scale: float) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(7, 1e-6)
    norm.weight.data.normal_()
    ours = (scale * torch.randn(shape)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    result = norm(ours)
    expected = functional.rms_norm(theirs, (7,), norm.weight.detach(), 1e-6)
    torch.testing.assert_close(result, expected)
    upstream = torch.randn(shape)
    result.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_rms_norm_takes_strided_tensors_and_bf16() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(6, 1e-6)
    x = torch.randn(6, 3, 2, requires_grad=True)
    (norm(x.permute(2, 1, 0)).permute(1, 0, 2) ** 2).sum().backward()
    plain = x.detach().permute(2, 1, 0).contiguous().requires_grad_()
    (functional.rms_norm(plain, (6,), eps=1e-6) ** 2).sum().backward()
    assert x.grad is not None and plain.grad is not None
    torch.testing.assert_close(x.grad.permute(2, 1, 0), plain.grad)
    low = torch.randn(4, 6).bfloat16().requires_grad_()
    norm(low).sum().backward()
    assert low.grad is not None and low.grad.dtype == torch.bfloat16
    torch.testing.assert_close(norm(low), functional.rms_norm(low.float(), (6,), eps=1e-6))


@pytest.mark.parametrize("length", [1, 2, 17, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_causal_attention_equals_the_library(length: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mine = [torch.randn(2, 3, length, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
    exact = [tensor.detach().double().requires_grad_() for tensor in mine]
    result = causal_attention(*mine)
    expected = functional.scaled_dot_product_attention(*exact, is_causal=True)
    assert result.shape == expected.shape
    assert result.dtype == dtype
    tolerance = {torch.bfloat16: 3e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)
    upstream = torch.randn_like(expected)
    result.backward(upstream.to(dtype))
    expected.backward(upstream)
    for ours, theirs in zip(mine, exact, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=tolerance, atol=2 * tolerance)


def test_attention_sees_no_later_position() -> None:
    model = transformer()
    x = torch.randn(1, 9, 16, dtype=torch.float64, requires_grad=True)
    model(x)[0, 4].sum().backward()
    assert x.grad is not None
    assert (x.grad[0, 5:] == 0).all()
    assert (x.grad[0, :5] != 0).any(-1).all()


def test_rotary_scores_depend_on_distance_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 8, dtype=torch.float64)
    cos, sin = rotary_table(torch.arange(40), 8, 10_000.0)

    def score(i: int, j: int) -> torch.Tensor:
        return rotate(q, cos[i], sin[i]) @ rotate(k, cos[j], sin[j])

    torch.testing.assert_close(score(7, 3), score(37, 33), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(score(0, 0), q @ k)
    assert (score(7, 3) - score(7, 4)).abs() > 1e-3


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    steps=st.integers(1, 4),
    batch=st.integers(1, 2),
    seed=st.integers(0, 2**16),
)
def test_a_branch_equals_a_forward_pass_over_its_whole_sequence(
    lengths: list[int], steps: int, batch: int, seed: int
) -> None:
    model = transformer()
    torch.manual_seed(seed)
    prefix_BLD = torch.randn(batch, max(lengths) + seed % 3, 16, dtype=torch.float64)
    own_BRJD = torch.randn(batch, len(lengths), steps, 16, dtype=torch.float64)
    with torch.no_grad():
        hidden_BLD, cache = model.prefill(prefix_BLD)
        torch.testing.assert_close(hidden_BLD, model(prefix_BLD))
        own = BranchCache()
        for step in range(steps):
            assert own.steps == step
            result_BRD = model.branch_step(own_BRJD[:, :, step], cache, own, torch.tensor(lengths))
            for branch, length in enumerate(lengths):
                sequence = torch.cat((prefix_BLD[:, :length], own_BRJD[:, branch, : step + 1]), dim=1)
                # the branch takes its softmax in float32
                torch.testing.assert_close(result_BRD[:, branch], model(sequence)[:, -1], rtol=1e-5, atol=1e-5)

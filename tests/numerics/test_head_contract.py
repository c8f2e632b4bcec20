"""What every generative head must do, whatever its mathematics: a new head inherits these tests from the registry."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.language_model.heads.base import GenerativeHead
from calm_lightning.language_model.heads.diffusion import DiffusionHead, reverse_step
from calm_lightning.language_model.heads.flow import FlowHead
from calm_lightning.language_model.heads.registry import HEADS, build_head
from calm_lightning.language_model.heads.schedule import Chain

CONFIG = LanguageModelConfig(K=2, l=24, d=16, heads=2, head_blocks=2, noise_size=5, N=4, M=7)
VARIANTS = [
    pytest.param(replace(CONFIG, head=head, solver=solver, sampling_steps=8 if solver else None), id=f"{head}-{solver}")
    for head, entry in HEADS.items()
    for solver in (entry.solvers or [None])
] + [pytest.param(replace(CONFIG, noise="gaussian"), id="energy-gaussian")]
every_head = pytest.mark.parametrize("config", VARIANTS)


def awake(config: LanguageModelConfig) -> GenerativeHead:
    """Return a head whose zero-initialised parts are not zero, so that everything in it matters."""
    torch.manual_seed(0)
    head = build_head(config)
    for parameter in head.parameters():
        if parameter.ndim == 2 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return head


@every_head
def test_draws_are_independent_seeded_and_see_the_hidden_state(config: LanguageModelConfig) -> None:
    head = awake(config)
    same_PD = torch.randn(1, config.d).expand(3, -1)
    torch.manual_seed(1)
    drawn_NPZ = head.sample(same_PD, 4)
    assert drawn_NPZ.shape == (4, 3, 24) and drawn_NPZ.isfinite().all()
    assert len(drawn_NPZ.flatten(0, 1).unique(dim=0)) == 12, "no two draws share their noise"
    torch.manual_seed(1)
    assert torch.equal(head.sample(same_PD, 4), drawn_NPZ)
    torch.manual_seed(1)
    assert not torch.allclose(head.sample(torch.randn(1, config.d).expand(3, -1), 4), drawn_NPZ)


@every_head
def test_a_position_is_drawn_from_its_own_hidden_state(config: LanguageModelConfig) -> None:
    head = awake(config)
    hidden_PD = torch.randn(5, config.d)
    changed_PD = hidden_PD.clone()
    changed_PD[2] += 1
    draws = []
    for each in (hidden_PD, changed_PD):
        torch.manual_seed(3)
        draws.append(head.sample(each, 2))
    differs_P = (draws[0] - draws[1]).abs().amax((0, 2)) > 1e-4
    assert differs_P.tolist() == [False, False, True, False, False]


@every_head
def test_loss_is_one_number_per_position_and_reaches_every_parameter(config: LanguageModelConfig) -> None:
    head = awake(config)
    hidden_PD = torch.randn(9, config.d, requires_grad=True)
    loss_P = head.loss(hidden_PD, torch.randn(head.targets, 9, 24))
    assert loss_P.shape == (9,) and loss_P.dtype == torch.float32 and loss_P.isfinite().all()
    loss_P.mean().backward()
    assert hidden_PD.grad is not None and (hidden_PD.grad != 0).any(1).all()
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


@every_head
def test_a_head_built_without_memory_can_be_filled_and_used(config: LanguageModelConfig) -> None:
    with torch.device("meta"):
        empty = build_head(config)
    filled = awake(config)
    empty.load_state_dict(filled.state_dict(), assign=True)
    drawn = []
    for head in (empty, filled):
        torch.manual_seed(4)
        drawn.append(head.sample(torch.ones(2, config.d), 3))
    assert torch.equal(*drawn)


@every_head
def test_bf16_autocast_keeps_the_loss_in_float32(config: LanguageModelConfig) -> None:
    head = awake(config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_P = head.loss(torch.randn(9, config.d), torch.randn(head.targets, 9, 24))
        drawn_NPZ = head.sample(torch.randn(9, config.d), 2)
    assert loss_P.dtype == torch.float32 and loss_P.isfinite().all() and drawn_NPZ.isfinite().all()


@pytest.mark.slow
@every_head
def test_a_head_learns_a_distribution_that_depends_on_the_hidden_state(config: LanguageModelConfig) -> None:
    """Two hidden states; under one the latent has two modes, under the other it is one narrow bump elsewhere."""
    torch.manual_seed(0)
    head = build_head(replace(config, d=64, l=2, noise_size=16, N=8, M=16, sampling_steps=config.solver and 40))
    hidden_PD = torch.randn(2, 64).repeat(32, 1)

    def truth(num: int) -> Tensor:
        noise_MPZ = 0.1 * torch.randn(num, 64, 2)
        noise_MPZ[:, ::2, 0] += torch.randint(2, (num, 32)) * 2.0 - 1.0  # modes at -1 and +1
        noise_MPZ[:, 1::2, 1] += 0.5
        return noise_MPZ

    optimizer = torch.optim.Adam(head.parameters(), lr=2e-3)
    for _ in range(500):
        optimizer.zero_grad()
        head.loss(hidden_PD, truth(head.targets)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        drawn_NPZ = head.sample(hidden_PD[:2], 4000)
    two_modes_NZ, bump_NZ = drawn_NPZ.unbind(1)
    assert (two_modes_NZ[:, 0] > 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert two_modes_NZ[:, 0].abs().median() == pytest.approx(1.0, abs=0.15)
    assert (two_modes_NZ[:, 0].abs() < 0.5).float().mean() < 0.05, "little mass between the modes"
    assert bump_NZ.median(0).values.tolist() == pytest.approx([0, 0.5], abs=0.1)
    assert ((bump_NZ - bump_NZ.median(0).values).abs().quantile(0.9, dim=0) < 0.4).all()


def test_flow_of_a_constant_velocity_arrives_exactly() -> None:
    config = replace(CONFIG, head="flow", sampling_steps=5)
    head = build_head(config)
    assert isinstance(head, FlowHead)
    torch.nn.init.constant_(head.net.to_output.bias, 0.7)  # everything else at the end of the network is zero
    start_NPZ = torch.randn(2, 3, 24)
    torch.testing.assert_close(head.integrate(torch.randn(3, 16), start_NPZ), start_NPZ + 0.7)


def test_midpoint_is_of_second_order_and_euler_of_first() -> None:
    """On dx/dt = (1 + t) x, whose solution is known, halving the steps divides the error by 4 and by 2."""
    orders = {}
    for solver in ("midpoint", "euler"):
        errors = []
        for steps in (8, 16):
            head = build_head(replace(CONFIG, head="flow", solver=solver, sampling_steps=steps))
            assert isinstance(head, FlowHead)
            head.velocity = lambda state, time, _: (1 + time) * state  # type: ignore[method-assign]
            end = head.integrate(torch.zeros(1, 16), torch.ones(1, 1, 24))
            errors.append(abs(end[0, 0, 0].item() - math.exp(1.5)))
        orders[solver] = math.log2(errors[0] / errors[1])
    assert orders["midpoint"] == pytest.approx(2, abs=0.3)
    assert orders["euler"] == pytest.approx(1, abs=0.3)


def test_the_cosine_chain_ends_in_pure_noise_and_respacing_keeps_what_is_kept() -> None:
    chain = Chain.full(1000)
    assert chain.kept[0] > 0.999 and chain.kept[-1] < 1e-4
    few = chain.respaced(50)
    assert few.time[0] == 0 and few.time[-1] == 999
    torch.testing.assert_close(few.kept, chain.kept[few.time])
    with pytest.raises(ValueError, match="respaced to 2 to 1000, not 1"):
        chain.respaced(1)


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_the_reverse_chain_restores_a_gaussian_when_the_noise_is_predicted_exactly(solver: str) -> None:
    """For latents N(m, s^2) the best prediction of the noise is known in closed form."""
    m, s = 0.8, 0.3
    head = build_head(replace(CONFIG, head="diffusion", solver=solver, sampling_steps=200))
    assert isinstance(head, DiffusionHead)

    def predict(state: Tensor, step: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        kept = head.sampling_chain.kept[step].float()
        noise = (1 - kept).sqrt() * (state - kept.sqrt() * m) / (kept * s**2 + 1 - kept)
        return noise, torch.full_like(state, -1.0)  # the posterior's variance

    head.predict = predict  # type: ignore[method-assign]
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = head.sample(torch.zeros(1, 16), 5000)
    assert drawn.mean().item() == pytest.approx(m, abs=0.01)
    assert drawn.std().item() == pytest.approx(s, rel=0.05)


def test_the_variance_bound_trains_no_mean_and_vanishes_at_the_truth() -> None:
    head = awake(replace(CONFIG, head="diffusion"))
    assert isinstance(head, DiffusionHead)
    latent, noise, step = torch.randn(3, 4, 24), torch.randn(3, 4, 24), torch.full((3, 4), 400)
    _, bound = head.errors(torch.randn(4, 16), latent, noise, step)
    bound.sum().backward()
    grad = head.net.to_output.weight.grad
    assert grad is not None and not grad[:24].any() and grad[24:].any()
    mean, log_variance = reverse_step(
        head.training_chain, head.add_noise(latent, noise, step), noise, -torch.ones_like(noise), step
    )
    torch.testing.assert_close(log_variance[..., :1], head.training_chain.log_posterior[step].unsqueeze(-1))
    chain = head.training_chain
    noisy = head.add_noise(latent, noise, step)
    expected = chain.mean_latent[400] * latent + chain.mean_state[400] * noisy
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-4)

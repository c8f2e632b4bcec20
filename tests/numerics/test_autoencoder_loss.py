"""The autoencoder's objective in cases whose value is known, and what its regularisers do."""

from __future__ import annotations

import math

import pytest
import torch

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.autoencoder.loss import autoencoder_loss, kl_per_dimension
from calm_lightning.autoencoder.model import ChunkAutoencoder, draw_posterior

C, K, Z, V = 6, 3, 5, 7


def test_kl_is_that_of_two_normal_distributions() -> None:
    torch.manual_seed(0)
    mean, log_std = torch.randn(C, Z), torch.randn(C, Z)
    posterior = torch.distributions.Normal(mean, log_std.exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_per_dimension(mean, log_std), expected, rtol=1e-5, atol=1e-6)
    assert (kl_per_dimension(torch.zeros(1, 1), torch.zeros(1, 1)) == 0).all()


def test_known_values() -> None:
    tokens = torch.randint(V, (C, K))
    mean, log_std = torch.full((C, Z), 2.0), torch.zeros(C, Z)
    loss = autoencoder_loss(torch.zeros(C, K, V), tokens, mean, log_std, beta=1e-3, kl_clip=0.5)
    assert loss.cross_entropy.item() == pytest.approx(math.log(V), rel=1e-6)
    assert loss.kl.item() == pytest.approx(Z * 2.0, rel=1e-6), "mu^2 / 2 per dimension"
    assert loss.kl_clipped.item() == pytest.approx(Z * 2.0, rel=1e-6)
    assert loss.total.item() == pytest.approx(K * math.log(V) + 1e-3 * Z * 2.0, rel=1e-6)


def test_dimensions_below_the_floor_cost_the_floor_and_get_no_gradient() -> None:
    tokens = torch.zeros(C, K, dtype=torch.int64)
    mean = torch.tensor([0.1, 3.0]).repeat(C, 1).requires_grad_()  # KL 0.005 and 4.5
    loss = autoencoder_loss(torch.zeros(C, K, V), tokens, mean, torch.zeros(C, 2), beta=1.0, kl_clip=0.5)
    assert loss.kl.item() == pytest.approx(4.505, rel=1e-5)
    assert loss.kl_clipped.item() == pytest.approx(5.0, rel=1e-5)
    loss.kl_clipped.backward()
    assert mean.grad is not None
    assert (mean.grad[:, 0] == 0).all()
    torch.testing.assert_close(mean.grad[:, 1], torch.full((C,), 3.0 / C))


def test_each_chunk_is_clipped_by_itself() -> None:
    mean = torch.tensor([[0.0], [2.0]])
    tokens = torch.zeros(2, K, dtype=torch.int64)
    loss = autoencoder_loss(torch.zeros(2, K, V), tokens, mean, torch.zeros(2, 1), beta=1.0, kl_clip=0.5)
    assert loss.kl_clipped.item() == pytest.approx((0.5 + 2.0) / 2)


def test_posterior_draws_have_the_posteriors_moments_and_carry_gradient() -> None:
    torch.manual_seed(0)
    mean, log_std = torch.tensor([1.0, -2.0]).requires_grad_(), torch.tensor([-1.0, 0.5]).requires_grad_()
    z = draw_posterior(mean, log_std, 200_000)
    assert z.shape == (200_000, 2)
    torch.testing.assert_close(z.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(z.std(0), log_std.exp(), rtol=0.02, atol=0)
    z.mean(0).sum().backward()
    assert mean.grad is not None and log_std.grad is not None
    torch.testing.assert_close(mean.grad, torch.ones(2))


def test_drops_happen_in_training_only_and_replace_inputs_not_targets() -> None:
    torch.manual_seed(0)
    config = AutoencoderConfig(d=8, intermediate=12, drop_token=0.5, drop_latent=0.5, mask_id=0)
    model = ChunkAutoencoder(config, K, Z, V)
    tokens = torch.randint(1, V, (500, K))
    seen: list[torch.Tensor] = []
    model.embedding.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model.train()
    model.encode(tokens)
    model.eval()
    model.encode(tokens)
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    kept = seen[0] != 0
    assert torch.equal(seen[0][kept], tokens[kept])
    assert torch.equal(seen[1], tokens)
    latent = torch.randn(20, Z)
    assert torch.equal(model.decode(latent), model.decode(latent))
    model.train()
    assert not torch.equal(model.decode(latent), model.decode(latent))


def test_chunks_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    model = ChunkAutoencoder(AutoencoderConfig(d=8, intermediate=12), K, Z, V).eval()
    tokens = torch.randint(V, (C, K))
    alone = torch.cat([model.encode(chunk.unsqueeze(0))[0] for chunk in tokens])
    torch.testing.assert_close(model.encode(tokens)[0], alone)

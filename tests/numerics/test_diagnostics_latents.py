"""Distances, round trips, noise and quantisation of a codec whose every number is known: a quantiser on a line."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from calm_lightning.diagnostics import foreign, noise
from calm_lightning.diagnostics.drift import latent_rows, posterior_draws
from calm_lightning.diagnostics.latents import confidence, decoded, distance, posterior, round_trip_changes, z_scores
from calm_lightning.sampling.temperature import Draws

V, SIGMA = 4, 0.25


class Quantiser:
    """Token t is the point t - 1.5 on a line of its own; decoding takes the nearest point."""

    K, vocabulary = 3, V

    def encode(self, tokens_CK: Tensor) -> tuple[Tensor, Tensor]:
        mean_CZ = tokens_CK.float() - 1.5
        return mean_CZ, torch.full_like(mean_CZ, math.log(SIGMA))

    def decode_tokens(self, latent_xZ: Tensor) -> Tensor:
        return (latent_xZ + 1.5).round().clamp(0, V - 1).long()

    def decode(self, latent_CZ: Tensor) -> Tensor:
        return -(latent_CZ.unsqueeze(-1) - (torch.arange(V) - 1.5)).square()


class Forgetful(Quantiser):
    """A quantiser whose encoder takes token 3 for token 0."""

    def encode(self, tokens_CK: Tensor) -> tuple[Tensor, Tensor]:
        return super().encode(tokens_CK.masked_fill(tokens_CK == 3, 0))


@pytest.fixture
def tokens_CK() -> Tensor:
    torch.manual_seed(0)
    return torch.randint(V, (4000, Quantiser.K))


def normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def test_distance_counts_posterior_standard_deviations(tokens_CK: Tensor) -> None:
    mean_CZ, std_CZ = posterior(Quantiser(), tokens_CK)
    assert torch.allclose(distance(z_scores(Quantiser(), mean_CZ + 1.5 * std_CZ, tokens_CK)), torch.tensor(1.5))
    scores_CZ = z_scores(Quantiser(), mean_CZ - 2 * std_CZ, tokens_CK)
    assert torch.allclose(scores_CZ, torch.tensor(-2.0))


def test_true_text_is_one_standard_deviation_away(tokens_CK: Tensor) -> None:
    draws = posterior_draws(Quantiser(), tokens_CK.view(40, 100, -1))
    moved = (draws.tokens != tokens_CK.view(40, 100, -1)).float().mean()
    # a drawn latent leaves its cell with probability 1 - P(|N| < 2), at the ends of the line half as often
    assert float(moved) == pytest.approx(0.75 * 2 * normal_cdf(-0.5 / SIGMA), rel=0.2)
    kept = Draws(tokens_CK.view(40, 100, -1), draws.latents)
    rows = latent_rows("true text", Quantiser(), kept, windows=4)
    assert [row.x for row in rows[:4]] == [75, 150, 225, 300]
    # the root of a mean of three squares: its mean is below 1
    expected = math.sqrt(2 / 3) * math.gamma(2) / math.gamma(1.5)
    for row in rows[:4]:
        assert row.standard_error is not None and abs(row.value - expected) < 4 * row.standard_error
    assert all(row.value == 0 for row in rows[4:])


def test_round_trip_changes_what_the_encoder_forgets(tokens_CK: Tensor) -> None:
    assert not round_trip_changes(Quantiser(), tokens_CK).any()
    assert torch.equal(round_trip_changes(Forgetful(), tokens_CK), tokens_CK == 3)


def test_confidence_is_the_largest_probability(tokens_CK: Tensor) -> None:
    at_points = confidence(Quantiser(), posterior(Quantiser(), tokens_CK)[0])
    between = confidence(Quantiser(), torch.zeros(1, 3))
    weights = [math.exp(-((point - 1.5) ** 2)) for point in range(V)]
    assert torch.allclose(between, torch.tensor(weights[1] / sum(weights)))
    assert bool((at_points > between.max()).all())


def test_noise_follows_the_normal_distribution(tokens_CK: Tensor) -> None:
    found = noise.noise(Quantiser(), tokens_CK)
    inner = float(((tokens_CK > 0) & (tokens_CK < V - 1)).float().mean())
    for row in found.select(noise.TOKENS, noise.SCALED):
        assert row.x is not None
        outside = normal_cdf(-0.5 / (row.x * SIGMA)) if row.x else 0.0
        expected = inner * (1 - 2 * outside) + (1 - inner) * (1 - outside)
        assert abs(row.value - expected) <= 4 * (row.standard_error or 0) + 1e-9
    assert found.value(noise.TOKENS, noise.SCALED, 0.0) == found.value(noise.CHUNKS, noise.SCALED, 0.0) == 1


def test_steps_below_half_a_cell_change_nothing_and_longer_ones_more_and_more(tokens_CK: Tensor) -> None:
    found = noise.noise(Quantiser(), tokens_CK)
    rows = found.select(noise.TOKENS, noise.RANDOM)
    assert all(row.value == 1 for row in rows if row.x is not None and row.x < 0.5)
    assert all(later.value <= earlier.value + 0.02 for earlier, later in pairwise(rows))
    assert rows[-1].value < 0.7
    for radius in (0.3, 2.0):
        moved = noise.stepped(torch.zeros(50, 3), torch.randn(50, 3), radius)
        assert torch.allclose(moved.norm(dim=-1), torch.tensor(radius))


def test_bits(tokens_CK: Tensor) -> None:
    found = noise.noise(Quantiser(), tokens_CK)
    # one bit leaves the points -0.75 and 0.75, which decode to tokens 1 and 2; two bits reach every cell
    inner = ((tokens_CK > 0) & (tokens_CK < V - 1)).double().mean()
    assert found.value(noise.TOKENS, noise.GRID, 1) == pytest.approx(float(inner))
    assert all(row.value == 1 for row in found.select(noise.TOKENS, noise.GRID)[1:])
    assert ("bits per dimension for 99.9 % of tokens", "2 (2 per token)") in found.table


def test_crossing() -> None:
    assert noise.crossing([1.0, 10.0, 100.0], [0.0, 0.2, 0.6], 0.4) == pytest.approx(10**1.5)
    assert noise.crossing([1.0, 10.0], [0.5, 0.6], 0.4) == 1.0
    assert noise.crossing([1.0, 10.0], [0.0, 0.1], 0.4) == math.inf


def test_reconstruction_of_a_codec_that_forgets(tokens_CK: Tensor) -> None:
    texts = {foreign.OWN: tokens_CK[(tokens_CK < 3).all(-1)], "threes": tokens_CK}
    found = foreign.foreign(Forgetful(), texts)
    share = float((tokens_CK != 3).double().mean())
    assert found.value(foreign.TOKENS, foreign.OWN) == 1
    assert found.value(foreign.TOKENS, "threes") == pytest.approx(share)
    assert found.value(foreign.CHUNKS, "threes") == pytest.approx(float((tokens_CK < 3).all(-1).double().mean()))
    assert found.value(foreign.SIGMA, "threes") == pytest.approx(SIGMA)
    logits = Quantiser().decode(Forgetful().encode(tokens_CK)[0])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens_CK.flatten())
    assert found.value(foreign.CROSS_ENTROPY, "threes") == pytest.approx(float(expected), rel=1e-5)
    assert "threes" in found.says


def test_decoding_in_slices_loses_nothing() -> None:
    many = torch.randint(V, (10_001, 3))
    assert torch.equal(decoded(Quantiser(), posterior(Quantiser(), many)[0]), many)


def test_passages_are_text_in_their_scripts() -> None:
    texts = foreign.passages()
    assert {"German", "Russian", "Chinese", "Arabic", "Hindi", "Python code"} <= texts.keys()
    assert all(len(text.encode()) > 500 for text in texts.values())
    assert "class ChunkAutoencoder" in texts["Python code"]

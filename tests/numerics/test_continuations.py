"""Continuing all positions at once against continuing them one by one, and the baseline against enumeration."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.checkpoints.released import baseline_weights
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.metrics.brier_lm import brier_from_probabilities
from calm_lightning.sampling.continuations import baseline_probabilities, continue_chunks, start_positions, targets_at
from calm_lightning.sampling.generate import generate_chunks, generate_tokens

GOLDEN = Path(os.environ.get("CALM_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
V = 11


def scramble(model: torch.nn.Module) -> None:
    """Give every matrix, those that start at zero included, values that matter."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)


def calm_pair(K: int) -> tuple[ContinuousLM, ChunkAutoencoder]:
    torch.manual_seed(K)
    config = LanguageModelConfig(K=K, l=6, d=16, intermediate=24, layers=2, heads=2, noise_size=5)
    model = ContinuousLM(config, V).eval()
    autoencoder = ChunkAutoencoder(AutoencoderConfig(d=12, intermediate=16), K, 6, V).eval()
    scramble(model)
    scramble(autoencoder)
    return model, autoencoder


@pytest.mark.parametrize("K", [1, 2, 3, 4, 8])
def test_all_positions_at_once_equal_one_by_one(K: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample s of every position gets the noise of s at each of its steps, so a mixed-up branch shows."""
    model, autoencoder = calm_pair(K)
    samples, B = 3, 2
    tokens_BT = torch.randint(V, (B, 48))
    starts_G = torch.tensor([24, 24 + K, 24 + 2 * K])
    noise_SU = torch.rand(samples, 5) - 0.5

    def fixed(size: tuple[int, int, int], device: torch.device) -> Tensor:
        num, positions, _ = size
        which = torch.arange(num).unsqueeze(1) if num == samples else torch.arange(positions).unsqueeze(0) % samples
        return noise_SU[which.expand(num, positions)] + 0.5

    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(torch, "rand", fixed)
        drawn_BGS4 = continue_chunks(model, autoencoder.decode_tokens, tokens_BT, starts_G, samples)
    assert drawn_BGS4.shape == (B, len(starts_G), samples, 4)
    assert len(drawn_BGS4.flatten(0, 2).unique(dim=0)) > 6, "positions and noise must matter"
    for b, (g, start), s in itertools.product(range(B), enumerate(starts_G.tolist()), range(samples)):
        sequence = tokens_BT[b, :start]
        with torch.no_grad():
            while len(sequence) < start + 4:
                hidden_D = model(sequence.view(1, -1, K))[0, -1]
                latent_1Z = model.head(hidden_D.unsqueeze(0), noise_SU[s].view(1, 1, -1))[0]
                sequence = torch.cat((sequence, autoencoder.decode_tokens(latent_1Z)[0]))
        assert drawn_BGS4[b, g, s].tolist() == sequence[start : start + 4].tolist()


def test_samples_of_a_position_are_independent_draws() -> None:
    model, autoencoder = calm_pair(2)
    tokens = torch.randint(V, (1, 8))
    with torch.no_grad():
        drawn = continue_chunks(model, autoencoder.decode_tokens, tokens, torch.tensor([4]), 64)
    assert len(drawn.view(64, 4).unique(dim=0)) > 2


def test_start_positions_leave_context_before_and_four_tokens_after() -> None:
    assert start_positions(96, 24).tolist() == [24, 48, 72]
    assert start_positions(100, 24).tolist() == [24, 48, 72, 96]
    tokens = torch.arange(200).view(2, 100)
    assert targets_at(tokens, torch.tensor([24, 96])).tolist() == [
        [[24, 25, 26, 27], [96, 97, 98, 99]],
        [[124, 125, 126, 127], [196, 197, 198, 199]],
    ]


def enumerate_continuations(model: TokenLM, prefix_T: Tensor, n: int) -> Tensor:
    """Return P of all V^n continuations of a prefix, (V,) * n, float64, by one forward pass each."""
    outcomes = torch.cartesian_prod(*[torch.arange(model.vocabulary)] * n).view(-1, n)
    rows = torch.cat((prefix_T.expand(len(outcomes), -1), outcomes), dim=1)
    with torch.no_grad():
        log_p = model(rows)[:, len(prefix_T) - 1 : -1].double().log_softmax(-1)
    return log_p.gather(-1, outcomes.unsqueeze(-1)).sum((1, 2)).exp().view((model.vocabulary,) * n)


def test_baseline_probabilities_against_enumeration() -> None:
    torch.manual_seed(0)
    shape = LanguageModelConfig(d=16, intermediate=24, layers=2, heads=2)
    model = TokenLM(shape, 4).eval()
    scramble(model)
    tokens_BT, starts_G = torch.randint(4, (2, 9)), torch.tensor([1, 3, 5])
    with torch.no_grad():
        gold, first, drawn = baseline_probabilities(model, tokens_BT, starts_G, 2000)
        estimates = torch.stack(
            [first, *(baseline_probabilities(model, tokens_BT, starts_G, 2000)[1] for _ in range(19))]
        )
    assert drawn.shape == (2, 3, 2000, 3)
    error = estimates.std(0) / len(estimates) ** 0.5
    for b, (g, start), n in itertools.product(range(2), enumerate(starts_G.tolist()), range(1, 5)):
        p = enumerate_continuations(model, tokens_BT[b, :start], n)
        torch.testing.assert_close(p.sum().item(), 1.0, rtol=1e-5, atol=0)
        truth = tuple(tokens_BT[b, start : start + n].tolist())
        assert gold[b, g, n - 1].item() == pytest.approx(p[truth].item(), rel=1e-4)
        collision = p.square().sum().item()
        assert abs(estimates[:, b, g, n - 1].mean().item() - collision) < 5 * error[b, g, n - 1].item() + 1e-6


def test_drawn_prefixes_follow_the_model() -> None:
    torch.manual_seed(1)
    model = TokenLM(LanguageModelConfig(d=16, intermediate=24, layers=1, heads=2), 3).eval()
    scramble(model)
    tokens_BT, samples = torch.randint(3, (1, 8)), 20_000
    with torch.no_grad():
        _, _, drawn = baseline_probabilities(model, tokens_BT, torch.tensor([4]), samples)
    expected = samples * enumerate_continuations(model, tokens_BT[0, :4], 3).flatten()
    codes = (drawn[0, 0] * torch.tensor([9, 3, 1])).sum(-1)
    counts = torch.bincount(codes, minlength=27).double()
    kept = expected > 5
    statistic, freedom = ((counts - expected).square() / expected)[kept].sum().item(), int(kept.sum()) - 1
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden numbers at {GOLDEN}; set CALM_GOLDEN")
def test_baseline_against_the_authors_enumeration() -> None:
    folder = GOLDEN / "baseline" / "V8"
    config = json.loads((folder / "checkpoint" / "config.json").read_text())
    case = load_file(folder / "case.safetensors")
    shape = LanguageModelConfig(
        d=config["hidden_size"],
        intermediate=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
    )
    model = TokenLM(shape, config["vocab_size"]).eval()
    model.load_state_dict(baseline_weights(load_file(folder / "checkpoint" / "model.safetensors"), shape.layers))
    torch.manual_seed(0)
    starts_G = torch.arange(1, 11)
    with torch.no_grad():
        runs = [baseline_probabilities(model, case["input_ids"], starts_G, 400) for _ in range(20)]
    torch.testing.assert_close(runs[0][0], case["p_gold"], rtol=1e-4, atol=1e-7)
    estimates = torch.stack([collision for _, collision, _ in runs])
    torch.testing.assert_close(estimates[0, ..., 0], case["collision"][..., 0], rtol=1e-4, atol=1e-7)
    error = estimates.std(0) / len(runs) ** 0.5
    assert ((estimates.mean(0) - case["collision"]).abs() < 5 * error + 1e-6).all()
    brier = brier_from_probabilities(runs[0][0], case["collision"])
    torch.testing.assert_close(brier.float(), case["brier_per_position"], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(brier.mean((0, 1)).float(), case["brier_mean"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("K", [1, 3, 4])
def test_generation_is_the_sequential_one(K: int) -> None:
    model, autoencoder = calm_pair(K)
    torch.nn.init.zeros_(model.head.noise_embedding.weight)
    prompt = torch.randint(V, (8,))
    with torch.no_grad():
        text = generate_chunks(model, autoencoder.decode_tokens, prompt, 10, 1)
        cooled = generate_chunks(model, autoencoder.decode_tokens, prompt, 10, 3)
        sequence = prompt[len(prompt) % K :]
        start = len(sequence)
        while len(sequence) < start + 10:
            hidden_D = model(sequence.view(1, -1, K))[0, -1]
            latent_1Z = model.head(hidden_D.unsqueeze(0), torch.zeros(1, 1, 5))[0]
            sequence = torch.cat((sequence, autoencoder.decode_tokens(latent_1Z)[0]))
    assert text.tolist() == sequence[start : start + 10].tolist()
    assert cooled.tolist() == text.tolist(), "where all samples agree, temperature changes nothing"


def test_token_generation_at_low_temperature_is_greedy() -> None:
    torch.manual_seed(2)
    model = TokenLM(LanguageModelConfig(d=16, intermediate=24, layers=2, heads=2), V).eval()
    scramble(model)
    prompt = torch.randint(V, (5,))
    with torch.no_grad():
        text = generate_tokens(model, prompt, 8, 1e-4)
        sequence = prompt
        for _ in range(8):
            sequence = torch.cat((sequence, model(sequence.unsqueeze(0))[:, -1].argmax(-1)))
    assert text.tolist() == sequence[5:].tolist()

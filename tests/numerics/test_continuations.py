"""Continuing all positions at once against continuing them one by one, and the baseline against enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.metrics.brier import brier_from_probabilities
from calm_lightning.sampling.continuations import (
    TokenScores,
    baseline_probabilities,
    continue_chunks,
    start_positions,
    targets_at,
)
from calm_lightning.sampling.generate import generate_chunks, generate_tokens

V = 11


def scramble(model: torch.nn.Module) -> None:
    """Give every matrix, those that start at zero included, values that matter."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)


def calm_pair(K: int, reads: str = "discrete") -> tuple[ContinuousLM, ChunkAutoencoder]:
    """Return a language model and an autoencoder whose posterior has no width: a true chunk has one latent."""
    torch.manual_seed(K)
    config = LanguageModelConfig(K=K, l=6, d=16, intermediate=24, layers=2, heads=2, noise_size=5, input=reads)
    model = ContinuousLM(config, V).eval()
    autoencoder = ChunkAutoencoder(AutoencoderConfig(d=12, intermediate=16), K, 6, V).eval()
    scramble(model)
    scramble(autoencoder)
    torch.nn.init.zeros_(autoencoder.encoder.to_latent.weight[6:])
    torch.nn.init.constant_(autoencoder.encoder.to_latent.bias[6:], -100.0)
    return model, autoencoder


def sequential(
    model: ContinuousLM, autoencoder: ChunkAutoencoder, prefix_T: Tensor, noise_U: Tensor, horizon: int
) -> list[int]:
    """Continue one prefix chunk by chunk, each time through the whole sequence, with the same noise at every step."""
    tokens_LK = prefix_T.view(-1, model.K)
    latents_LZ = autoencoder.encode(tokens_LK)[0]
    start = len(tokens_LK)
    while (len(tokens_LK) - start) * model.K < horizon:
        read_1LZ = latents_LZ.unsqueeze(0) if model.reads_latents else None
        hidden_1D = model(tokens_LK.unsqueeze(0), read_1LZ)[:, -1]
        latent_1Z = model.head(hidden_1D, noise_U.view(1, 1, -1))[0]
        latents_LZ = torch.cat((latents_LZ, latent_1Z))
        tokens_LK = torch.cat((tokens_LK, autoencoder.decode_tokens(latent_1Z)))
    return tokens_LK[start:].flatten()[:horizon].tolist()


@pytest.mark.parametrize("max_elements", [500, 2**24])
@pytest.mark.parametrize(
    ("K", "horizon", "reads"),
    [
        *((K, 4, "discrete") for K in (1, 2, 3, 4)),
        *((8, horizon, "discrete") for horizon in (4, 8)),
        *((K, 4, reads) for K in (1, 3) for reads in ("latent", "both")),
        (3, 7, "both"),
        (8, 8, "latent"),
    ],
)
def test_all_positions_at_once_equal_one_by_one(
    K: int, horizon: int, reads: str, max_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sample s of every position gets the noise of s at each of its steps, so a mixed-up branch shows."""
    model, autoencoder = calm_pair(K, reads)
    samples, B = 3, 2
    tokens_BT = torch.randint(V, (B, 48))
    starts_G = torch.tensor([K, 24, 24 + K, 24 + 2 * K])
    noise_SU = 3 * torch.randn(samples, 5)

    def fixed(size: tuple[int, int, int], **where: object) -> Tensor:
        num, positions, _ = size
        which = torch.arange(num).unsqueeze(1) if num == samples else torch.arange(positions).unsqueeze(0) % samples
        return noise_SU[which.expand(num, positions)] + 0.5

    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(torch, "rand", fixed)
        drawn_BGSH = continue_chunks(model, autoencoder, tokens_BT, starts_G, samples, horizon, max_elements)
    assert drawn_BGSH.shape == (B, len(starts_G), samples, horizon)
    assert len(drawn_BGSH.flatten(0, 2).unique(dim=0)) > 6, "positions and noise must matter"
    for b, (g, start), s in itertools.product(range(B), enumerate(starts_G.tolist()), range(samples)):
        with torch.no_grad():
            expected = sequential(model, autoencoder, tokens_BT[b, :start], noise_SU[s], horizon)
        assert drawn_BGSH[b, g, s].tolist() == expected


@pytest.mark.parametrize("max_elements", [1, 2**24])
def test_samples_of_a_position_are_independent_draws(max_elements: int) -> None:
    model, autoencoder = calm_pair(2)
    tokens = torch.randint(V, (1, 8))
    with torch.no_grad():
        drawn = continue_chunks(model, autoencoder, tokens, torch.tensor([4]), 64, max_elements=max_elements)
    assert len(drawn.view(64, 4).unique(dim=0)) > 2


class LargestTensor(TorchFunctionMode):
    """Remembers the size of the largest tensor that any operation returned."""

    largest = 0

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: object = None
    ) -> object:
        found = func(*args, **(kwargs or {}))  # type: ignore[dict-item]
        if isinstance(found, Tensor) and found._base is None:
            self.largest = max(self.largest, found.numel())
        return found


def test_no_tensor_grows_with_the_number_of_positions() -> None:
    """All branches at once would need attention weights 8 times and logits 4 times the limit."""
    torch.manual_seed(0)
    V, T, limit = 2000, 512, 2**20
    shape = LanguageModelConfig(K=1, l=6, d=16, intermediate=24, layers=1, heads=8, noise_size=5)
    model, token_model = ContinuousLM(shape, V).eval(), TokenLM(shape, V).eval()
    autoencoder = ChunkAutoencoder(AutoencoderConfig(d=12, intermediate=16), 1, 6, V).eval()
    tokens_BT, starts_G = torch.randint(V, (1, T)), start_positions(T, 1)
    for score in (
        lambda: continue_chunks(model, autoencoder, tokens_BT, starts_G, 4, max_elements=limit),
        lambda: baseline_probabilities(token_model, tokens_BT, starts_G, 4, max_elements=limit),
    ):
        with torch.inference_mode(), LargestTensor() as seen:
            score()
        assert limit / 8 < seen.largest <= limit


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


def check_against_enumeration(runs: list[TokenScores], model: TokenLM, tokens_BT: Tensor, starts: list[int]) -> None:
    """Hold the average of independent runs against the sums over all continuations."""
    collisions = torch.stack([run.collision for run in runs]).double()
    marginals = torch.stack([brier_from_probabilities(run.marginal_gold, run.marginal_collision) for run in runs])
    error, marginal_error = (values.std(0) / len(runs) ** 0.5 for values in (collisions, marginals))
    for b, (g, start), n in itertools.product(range(len(tokens_BT)), enumerate(starts), range(1, 5)):
        p = enumerate_continuations(model, tokens_BT[b, :start], n)
        torch.testing.assert_close(p.sum().item(), 1.0, rtol=1e-5, atol=0)
        truth = tuple(tokens_BT[b, start : start + n].tolist())
        assert runs[0].gold[b, g, n - 1].item() == pytest.approx(p[truth].item(), rel=1e-4)
        difference = collisions[:, b, g, n - 1].mean().item() - p.square().sum().item()
        assert abs(difference) < 5 * error[b, g, n - 1].item() + 1e-6
        last_V = p.reshape(-1, model.vocabulary).sum(0)
        brier = (2 * last_V[truth[-1]] - last_V.square().sum()).item()
        assert abs(marginals[:, b, g, n - 1].mean().item() - brier) < 5 * marginal_error[b, g, n - 1].item() + 1e-6


@pytest.mark.parametrize(("samples", "repeats", "max_elements"), [(2000, 20, 2**24), (2, 400, 2**24), (50, 40, 400)])
def test_baseline_probabilities_against_enumeration(samples: int, repeats: int, max_elements: int) -> None:
    torch.manual_seed(0)
    shape = LanguageModelConfig(d=16, intermediate=24, layers=2, heads=2)
    model = TokenLM(shape, 4).eval()
    scramble(model)
    tokens_BT, starts_G = torch.randint(4, (2, 9)), torch.tensor([1, 3, 5])
    with torch.no_grad():
        runs = [baseline_probabilities(model, tokens_BT, starts_G, samples, max_elements) for _ in range(repeats)]
    assert {part.shape for run in runs for part in run} == {(2, 3, 4)}
    check_against_enumeration(runs, model, tokens_BT, starts_G.tolist())


def test_slices_read_the_same_gold_probabilities() -> None:
    torch.manual_seed(1)
    model = TokenLM(LanguageModelConfig(d=16, intermediate=24, layers=1, heads=2), 5).eval()
    scramble(model)
    tokens_BT, starts_G = torch.randint(5, (3, 40)), start_positions(40, 1)
    with torch.no_grad():
        whole = baseline_probabilities(model, tokens_BT, starts_G, 2)
        sliced = baseline_probabilities(model, tokens_BT, starts_G, 2, max_elements=1)
        for stride in (7, 24):
            some = start_positions(40, stride)
            apart = baseline_probabilities(model, tokens_BT, some, 2)
            torch.testing.assert_close(apart.gold, whole.gold[:, some - 1])
    torch.testing.assert_close(sliced.gold, whole.gold)
    torch.testing.assert_close(sliced.collision[..., 0], whole.collision[..., 0])
    torch.testing.assert_close(sliced.marginal_gold[..., 0], whole.gold[..., 0])
    with pytest.raises(ValueError, match="at least 2 samples"):
        baseline_probabilities(model, tokens_BT, starts_G, 1)


@pytest.mark.parametrize("K", [1, 3, 4])
def test_generation_is_the_sequential_one(K: int) -> None:
    model, autoencoder = calm_pair(K)
    torch.nn.init.zeros_(model.head.noise_embedding.weight)
    prompt = torch.randint(V, (8,))
    with torch.no_grad():
        text = generate_chunks(model, autoencoder, prompt, 10, 1)
        cooled = generate_chunks(model, autoencoder, prompt, 10, 3)
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

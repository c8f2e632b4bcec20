"""Long continuations and held-out latents of a tiny model: what is measured is what was generated."""

from __future__ import annotations

import pytest
import torch

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.diagnostics import drift, roundtrip
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.sampling.chunks import ChunkSampling

V, K, Z = 11, 2, 8


def networks(reads: str) -> tuple[ContinuousLM, ChunkAutoencoder]:
    torch.manual_seed(0)
    config = LanguageModelConfig(
        K=K, l=Z, vocabulary=V, d=16, intermediate=32, layers=2, heads=2, head_blocks=1, noise_size=4, input=reads
    )
    codec = ChunkAutoencoder(AutoencoderConfig(d=16, intermediate=32), K, Z, V).eval()
    torch.nn.init.normal_(codec.decoder.from_latent.weight, std=1.0)
    return ContinuousLM(config, V).eval(), codec


@pytest.mark.parametrize("reads", ["discrete", "both"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_latents_are_those_of_the_tokens(reads: str, temperature: float) -> None:
    model, codec = networks(reads)
    prompts_BLK = torch.randint(V, (3, 2, K))
    draws = drift.long_continuations(model, codec, prompts_BLK, 5, ChunkSampling(temperature, 8))
    assert draws.tokens.shape == (3, 5, K) and draws.latents.shape == (3, 5, Z)
    assert torch.equal(codec.decode_tokens(draws.latents), draws.tokens)


def test_rows_of_both_models() -> None:
    model, codec = networks("discrete")
    torch.manual_seed(1)
    text = drift.DriftText(torch.randint(V, (4, 6)), torch.randint(V, (4, 32)), torch.randint(V, (200,)), windows=4)
    rows = drift.chunk_drift(model, codec, text, (1.0, 0.5), samples=4)
    token_model = TokenLM(model.config, V).eval()
    rows += drift.token_drift(token_model, text, (1.0,), true_text=False)
    found = drift.finding(rows, prompt_tokens=6, trained_tokens=24)
    assert found.series(drift.REPEATED) == ["true text", "CALM T=1", "CALM T=0.5", "baseline T=1"]
    assert found.series(drift.DISTANCE) == ["true text", "CALM T=1", "CALM T=0.5"]
    assert all(len(found.select(measure, "true text")) == 4 for measure in drift.MEASURES)
    assert [row.x for row in found.select(drift.DIVERGENCE, "baseline T=1")] == [8, 16, 24, 32]
    assert found.marks == {"trained context": 18}
    looping = drift.token_rows("loop", text, torch.full((4, 32), 3), V)
    assert [row.value for row in looping if row.measure == drift.REPEATED][1:] == [1, 1, 1]
    assert all(row.value == 1 / 8 for row in looping if row.measure == drift.DISTINCT_1)


def test_held_out_latents_stand_for_the_next_chunk() -> None:
    model, codec = networks("both")
    tokens_BT = torch.randint(V, (3, 12))
    latents, block_P = roundtrip.held_out_latents(model, codec, tokens_BT)
    assert {tuple(values.shape) for values in latents.values()} == {(15, Z)}
    assert block_P.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    with torch.no_grad():
        mean_PZ, log_std_PZ = codec.encode(tokens_BT.unflatten(1, (-1, K))[:, 1:].flatten(0, 1))
    scores = (latents[roundtrip.TRUE] - mean_PZ) / log_std_PZ.exp()
    assert float(scores.square().mean()) == pytest.approx(1, abs=0.35)
    rows = [row for kind, z in latents.items() for row in roundtrip.latent_rows(kind, codec, z, block_P)]
    found = roundtrip.finding(rows)
    quantiles = [row.value for row in found.select(roundtrip.CONFIDENCE, roundtrip.PREDICTED) if row.x is not None]
    assert quantiles == sorted(quantiles) and quantiles[0] >= 1 / V
    assert len(found.select(roundtrip.DIMENSION_RMS, roundtrip.TRUE)) == Z

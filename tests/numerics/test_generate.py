"""Generation against its sequential definition: batches, caches, chunk grids, stops, seeds; nearest tokens, streams."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calm_lightning.autoencoder import nearest
from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.autoencoder.nearest import NearestTokens
from calm_lightning.backbone.config import BackboneConfig
from calm_lightning.backbone.transformer import BranchCache, Transformer
from calm_lightning.data.tokenizers import BytesTokenizer
from calm_lightning.errors import SamplingError
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.language_model.heads.energy import EnergyHead
from calm_lightning.sampling.chunks import ChunkSampling, chunk_beginning_with
from calm_lightning.sampling.generate import stream_chunks, stream_tokens
from calm_lightning.sampling.prompts import AlignedPrompt, align_prompt
from calm_lightning.sampling.text import TextStream

V, K = 11, 4


def scramble(model: torch.nn.Module, std: float = 0.5) -> None:
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=std)


def calm_pair(seed: int = 0, reads: str = "discrete", noisy: bool = True) -> tuple[ContinuousLM, ChunkAutoencoder]:
    torch.manual_seed(seed)
    config = LanguageModelConfig(K=K, l=6, d=16, intermediate=24, layers=2, heads=2, noise_size=5, input=reads)
    model = ContinuousLM(config, V).eval()
    autoencoder = ChunkAutoencoder(AutoencoderConfig(d=12, intermediate=16), K, 6, V).eval()
    scramble(model)
    scramble(autoencoder)
    assert isinstance(model.head, EnergyHead)
    if not noisy:
        torch.nn.init.zeros_(model.head.noise_embedding.weight)
        torch.nn.init.zeros_(autoencoder.encoder.to_latent.weight[6:])
        torch.nn.init.constant_(autoencoder.encoder.to_latent.bias[6:], -30)
    return model, autoencoder


def token_lm() -> TokenLM:
    torch.manual_seed(2)
    model = TokenLM(LanguageModelConfig(d=16, intermediate=24, layers=2, heads=2), V).eval()
    scramble(model)
    return model


def joined(steps: list[list[list[int]]]) -> list[list[int]]:
    """Return the tokens of each row of a stream."""
    return [[token for step in steps for token in step[row]] for row in range(len(steps[0]))]


def plain(tokens: Tensor) -> AlignedPrompt:
    return AlignedPrompt(tokens.view(-1, K), None)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=2, max_size=4), steps=st.integers(1, 9), seed=st.integers(0, 999))
def test_rows_may_continue_from_different_lengths(lengths: list[int], steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = Transformer(BackboneConfig(d=16, intermediate=24, layers=2, heads=2)).eval()
    prefix_BLD = torch.randn(len(lengths), max(lengths) + 2, 16)
    own_BJD = torch.randn(len(lengths), steps, 16)
    own, lengths_B1 = BranchCache(), torch.tensor(lengths).unsqueeze(1)
    with torch.no_grad():
        hidden_BLD, cache = model.prefill(prefix_BLD)
        for step in range(steps):
            result_B1D = model.branch_step(own_BJD[:, step : step + 1], cache, own, lengths_B1)
            assert own.steps == step + 1
        for row, length in enumerate(lengths):
            sequence = torch.cat((prefix_BLD[row, :length], own_BJD[row]))
            torch.testing.assert_close(result_B1D[row, 0], model(sequence.unsqueeze(0))[0, -1], rtol=1e-4, atol=1e-5)
            alone = model(prefix_BLD[row, :length].unsqueeze(0))[0, -1]
            torch.testing.assert_close(hidden_BLD[row, length - 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reads", ["discrete", "latent", "both"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_batch_of_prompts_equals_each_alone_by_full_forward_passes(reads: str, temperature: float) -> None:
    model, autoencoder = calm_pair(3, reads, noisy=False)
    prompts = [torch.randint(V, (length,)) for length in (4, 12, 20)]
    sampling = ChunkSampling(temperature, samples=5)
    aligned = [align_prompt(model, autoencoder, prompt, sampling) for prompt in prompts]
    found = joined(list(stream_chunks(model, autoencoder, aligned, 10, sampling)))
    for prompt, text in zip(prompts, found, strict=True):
        chunks_LK = prompt.view(-1, K)
        latents_LZ = autoencoder.encode(chunks_LK)[0]
        expected: list[int] = []
        with torch.no_grad():
            while len(expected) < 10:
                hidden_1D = model(chunks_LK.unsqueeze(0), latents_LZ.unsqueeze(0))[:, -1]
                latent_1Z = model.head(hidden_1D, torch.zeros(1, 1, 5))[0]
                chunk_1K = autoencoder.decode(latent_1Z).argmax(-1)
                chunks_LK, latents_LZ = torch.cat((chunks_LK, chunk_1K)), torch.cat((latents_LZ, latent_1Z))
                expected += chunk_1K[0].tolist()
        assert text == expected[:10]


def test_a_batch_of_token_prompts_is_greedy_at_low_temperature() -> None:
    model = token_lm()
    prompts = [torch.randint(V, (length,)) for length in (1, 5, 3)]
    found = joined(list(stream_tokens(model, prompts, 8, 1e-4)))
    for prompt, text in zip(prompts, found, strict=True):
        sequence = prompt
        with torch.no_grad():
            for _ in range(8):
                sequence = torch.cat((sequence, model(sequence.unsqueeze(0))[:, -1].argmax(-1)))
        assert text == sequence[len(prompt) :].tolist()


def test_text_stops_inside_a_chunk_and_ended_rows_cost_no_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    model, autoencoder = calm_pair(1, noisy=False)
    prompts = [plain(torch.randint(V, (8,))) for _ in range(4)]
    sampling = ChunkSampling(1.0)
    free = joined(list(stream_chunks(model, autoencoder, prompts, 24, sampling)))
    stop = free[0][5]
    drawn: list[int] = []
    sample = model.head.sample
    monkeypatch.setattr(model.head, "sample", lambda hidden, num: drawn.append(len(hidden)) or sample(hidden, num))
    steps = list(stream_chunks(model, autoencoder, prompts, 24, sampling, stop_ids=[stop]))
    ended = joined(steps)
    for whole, text in zip(free, ended, strict=True):
        assert text == (whole[: whole.index(stop)] if stop in whole else whole)
    assert len(ended[0]) <= 5
    chunks = [-(-(len(text) + (len(text) < 24)) // K) for text in ended]
    assert sum(drawn) == sum(chunks), "a row is drawn for until the chunk that ends it"


def test_the_same_seed_gives_the_same_text() -> None:
    model, autoencoder = calm_pair()
    prompts = [plain(torch.randint(V, (8,))), plain(torch.randint(V, (4,)))]

    def text(seed: int, sampling: ChunkSampling) -> list[list[int]]:
        torch.manual_seed(seed)
        return joined(list(stream_chunks(model, autoencoder, prompts, 30, sampling)))

    for sampling in (ChunkSampling(), ChunkSampling(1.0), ChunkSampling(0.7, method="exact", budget=100_000)):
        assert text(1, sampling) == text(1, sampling)
        assert text(1, sampling) != text(2, sampling)
        assert [len(row) for row in text(3, sampling)] == [30, 30]


def conditional(model: ContinuousLM, autoencoder: ChunkAutoencoder, prompt_T: Tensor, power: int) -> dict[int, float]:
    """Return the distribution of the last token of a chunk given its first three, as a power, from many draws."""
    with torch.no_grad():
        hidden_1D = model(prompt_T[:-3].view(1, -1, K))[:, -1]
        chunks_SK = autoencoder.decode_tokens(model.head.sample(hidden_1D, 100_000)[:, 0])
    last = chunks_SK[(chunks_SK[:, :3] == prompt_T[-3:]).all(1), 3]
    share_V = (torch.bincount(last, minlength=V) / len(last)).double() ** power
    return dict(enumerate((share_V / share_V.sum()).tolist()))


@pytest.mark.parametrize(("temperature", "method"), [(1.0, "batch"), (0.5, "batch"), (0.5, "exact")])
def test_the_end_of_a_prompt_is_matched_in_distribution(temperature: float, method: str) -> None:
    model, autoencoder = calm_pair(5)
    prefix_T = torch.randint(V, (8,))
    with torch.no_grad():
        hidden_1D = model(prefix_T.view(1, -1, K))[:, -1]
        chunks_SK = autoencoder.decode_tokens(model.head.sample(hidden_1D, 20_000)[:, 0])
    begins, counts = chunks_SK[:, :3].unique(dim=0, return_counts=True)
    several = [len(chunks_SK[(chunks_SK[:, :3] == begin).all(1), 3].unique()) > 1 for begin in begins]
    begin_3 = begins[(counts * torch.tensor(several)).argmax()]
    prompt_T = torch.cat((prefix_T, begin_3))
    sampling = ChunkSampling(temperature, samples=100, method=method)  # type: ignore[arg-type]
    aligned = [align_prompt(model, autoencoder, prompt_T, sampling, "match") for _ in range(300)]
    for one in aligned:
        assert (one.generated, one.left_out) == (1, 0)
        assert torch.equal(one.chunks.flatten()[:-1], prompt_T)
    found = [int(one.chunks[-1, -1]) for one in aligned]
    for token, share in conditional(model, autoencoder, prompt_T, round(1 / temperature)).items():
        error = (share * (1 - share) / len(found)) ** 0.5 + 0.01
        assert abs(found.count(token) / len(found) - share) < 5 * error
    steps = list(stream_chunks(model, autoencoder, aligned[:1], 6, sampling))
    assert steps[0] == [[found[0]]], "the token drawn to fill the chunk is the first of the text"
    assert len(joined(steps)[0]) == 6


def test_a_prompt_off_the_grid_is_cut_where_it_cannot_be_matched() -> None:
    model, autoencoder = calm_pair(1, noisy=False)
    prompt_T = torch.randint(V, (10,))
    sampling = ChunkSampling(budget=50)
    with pytest.raises(SamplingError, match=r"2 tokens at the end .* 0 of 50 samples.*--budget.*--align cut"):
        align_prompt(model, autoencoder, prompt_T, sampling, "match")
    for align in ("auto", "cut"):
        found = align_prompt(model, autoencoder, prompt_T, sampling, align)  # type: ignore[arg-type]
        assert (found.left_out, found.generated) == (2, 0)
        assert torch.equal(found.chunks.flatten(), prompt_T[2:])
    with pytest.raises(
        SamplingError, match="3 tokens, document separator included, is shorter than one chunk of K = 4"
    ):
        align_prompt(model, autoencoder, prompt_T[:3], sampling)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0.7}, r"choose 1 or 1/2, or --method exact"),
        ({"temperature": 0.36}, r"choose 1/2 or 1/3, or --method exact"),
        ({"temperature": 1e-320}, "is too small"),
        ({"temperature": 1.5}, r"not in \(0, 1\]"),
        ({"temperature": 0}, r"not in \(0, 1\]"),
        ({"samples": 0}, "at least 1"),
        ({"method": "beam"}, "batch or exact"),
    ],
)
def test_senseless_sampling_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        ChunkSampling(**values)  # type: ignore[arg-type]


def test_rounded_temperatures_and_those_beyond_the_pool_are_taken() -> None:
    assert [ChunkSampling(t).inverse_temperature for t in (1.0, 0.33, 0.3333, 0.143, 0.01)] == [1, 3, 3, 7, 100]
    assert ChunkSampling(1e-300, samples=9).inverse_temperature == 9
    model, autoencoder = calm_pair(1, noisy=False)
    steps = stream_chunks(model, autoencoder, [plain(torch.randint(V, (8,)))], 4, ChunkSampling(1e-300, samples=9))
    assert len(joined(list(steps))[0]) == 4


@pytest.mark.parametrize("temperature", [1e-40, 1e-320])
def test_the_baseline_is_greedy_however_small_the_temperature(temperature: float) -> None:
    model, prompt = token_lm(), torch.randint(V, (5,))
    with torch.no_grad():
        best = int(model(prompt.unsqueeze(0))[0, -1].argmax())
    assert joined(list(stream_tokens(model, [prompt], 1, temperature))) == [[best]]
    for wrong in (0.0, float("inf"), float("nan")):
        with pytest.raises(SamplingError, match="is not above 0 and finite"):
            list(stream_tokens(model, [prompt], 1, wrong))


class _TwoTokenHead:
    """Draws "latents" that are chunks: the first token is 0 with a given chance, the second one of three."""

    def __init__(self, chance: float) -> None:
        self.chance, self.drawn = chance, 0

    def sample(self, hidden_PD: Tensor, num: int) -> Tensor:
        shape = (num, len(hidden_PD))
        self.drawn += num * len(hidden_PD)
        return torch.stack(((torch.rand(shape) >= self.chance).float(), torch.randint(3, shape).float()), dim=-1)


class _IdentityCodec:
    def decode_tokens(self, latent_xZ: Tensor) -> Tensor:
        return latent_xZ.long()


@pytest.mark.parametrize(("chance", "budget"), [(1.0, 1_000), (0.1, 10_000)])
def test_exact_sampling_spends_its_budget_on_matches_alone(chance: float, budget: int) -> None:
    """At T = 1/5 it takes about 120 matches: nearly always there within 1,000, unless matches are thrown away."""
    torch.manual_seed(0)
    found, head = 0, _TwoTokenHead(chance)
    model = SimpleNamespace(K=2, l=2, head=head)
    for _ in range(40):
        sampling = ChunkSampling(0.2, method="exact", budget=budget)
        try:
            drawn = chunk_beginning_with(model, _IdentityCodec(), torch.zeros(1, 4), torch.tensor([0]), sampling)  # type: ignore[arg-type]
        except SamplingError:
            continue
        assert drawn.tokens[0, 0] == 0 and torch.equal(drawn.tokens, drawn.latents.long())
        found += 1
    assert found >= 37
    assert head.drawn / 40 < 400 / chance


@pytest.mark.parametrize("autocast", [False, True])
def test_positions_decode_as_the_whole_chunk_does(autocast: bool) -> None:
    _, autoencoder = calm_pair()
    latents_CZ = torch.randn(50, 6)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        whole_CK = autoencoder.decode_tokens(latents_CZ)
        states_CE = autoencoder.decoder.chunk_states(latents_CZ)
        parts = torch.stack([autoencoder.decode_position(states_CE, position) for position in range(K)], dim=-1)
        if not autocast:
            assert torch.equal(whole_CK, autoencoder.decode(latents_CZ).argmax(-1))
    assert (parts == whole_CK).float().mean() > (0.97 if autocast else 0.999)


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-5])
@pytest.mark.parametrize("fast", [False, True])
def test_the_nearest_token_is_that_of_float32(spread: float, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a spread of 1e-3 and below, bf16 logits alone tell most tokens wrongly."""
    monkeypatch.setattr(nearest, "_bf16_is_fast", lambda: fast)
    monkeypatch.setattr(nearest, "SMALLEST_SCREENED", 1)
    monkeypatch.setattr(nearest, "LOGITS_BYTES", 4 * 3000 * 16)
    generator = torch.Generator().manual_seed(0)
    weight_VE = torch.randn(64, generator=generator) + spread * torch.randn(3000, 64, generator=generator)
    states_CE = torch.randn(5, 50, 64, generator=generator)
    search = NearestTokens()
    found = search(states_CE, weight_VE)
    logits = states_CE.double() @ weight_VE.double().T
    shortfall = logits.amax(-1) - logits.gather(-1, found.unsqueeze(-1)).squeeze(-1)
    assert shortfall.max() < 64 * 2**-23 * float(states_CE.norm(dim=-1).max() * weight_VE.norm(dim=1).max())
    if spread < 1:
        assert ((states_CE.bfloat16() @ weight_VE.bfloat16().T).argmax(-1) != logits.argmax(-1)).float().mean() > 0.3
    weight_VE.copy_(weight_VE.flip(0))
    assert torch.equal(search(states_CE, weight_VE), NearestTokens()(states_CE, weight_VE)), "changed weights are seen"


@settings(max_examples=100, deadline=None)
@given(
    data=st.binary(max_size=40) | st.text(max_size=20).map(str.encode), cuts=st.lists(st.integers(1, 4), max_size=40)
)
def test_streamed_pieces_join_to_the_decoded_text(data: bytes, cuts: list[int]) -> None:
    stream, place, pieces = TextStream(BytesTokenizer().decode), 0, []
    for width in [*cuts, len(data)]:
        pieces.append(stream.push(list(data[place : place + width])))
        place += width
        assert "".join(pieces) == data[:place].decode(errors="replace")[: len("".join(pieces))]
    pieces.append(stream.finish())
    assert "".join(pieces) == data.decode(errors="replace")
    assert stream.finish() == ""


def test_a_character_that_the_prompt_begins_is_shown_once_it_is_whole() -> None:
    euro = list("€".encode())
    stream = TextStream(BytesTokenizer().decode, before=euro[:1])
    assert [stream.push([byte]) for byte in euro[1:]] == ["", "€"]

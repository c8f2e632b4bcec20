"""Attention that keeps to documents against every document's own part run alone."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from calm_lightning.autoencoder.config import AutoencoderConfig
from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.backbone.config import BackboneConfig
from calm_lightning.backbone.layers import rotary_table
from calm_lightning.backbone.transformer import Block, BranchCache, Transformer, causal_attention, visibility
from calm_lightning.config import load_config
from calm_lightning.data.texts import PackedText
from calm_lightning.data.tokenizers import make_tokenizer
from calm_lightning.diagnostics import calibration, drift, roundtrip
from calm_lightning.errors import DataError
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.config import LanguageModelConfig
from calm_lightning.language_model.documents import document_begins, last_document
from calm_lightning.models import OpenModel
from calm_lightning.programs.diagnosis import DiagnosisOptions, diagnose
from calm_lightning.programs.evaluation import EvaluationOptions, evaluate
from calm_lightning.sampling.chunks import ChunkSampling
from calm_lightning.sampling.continuations import baseline_probabilities, continue_chunks
from calm_lightning.stages.autoencoder import AutoencoderStage
from calm_lightning.stages.baseline import BaselineStage
from calm_lightning.stages.calm import CalmStage
from calm_lightning.stages.config import EvaluationConfig, OptimConfig

SHAPE = BackboneConfig(d=16, intermediate=24, layers=2, heads=2)
NARROW = LanguageModelConfig(d=16, intermediate=24, layers=2, heads=2, noise_size=5, N=3, M=2)
RECIPE = (OptimConfig(), EvaluationConfig(samples=2))
V = 11
near = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
"""As near as rotary angles in float32 let two places of the same text come."""


def scramble(model: torch.nn.Module) -> None:
    """Give every matrix, those that start at zero included, values that matter."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)


def transformer() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(SHAPE).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def at_its_place(model: Transformer, piece_BLD: Tensor, begin: int) -> Tensor:
    """Run a piece alone, with the rotary positions from `begin` on, by the layers' own parts."""
    cos, sin = rotary_table(torch.arange(begin, begin + piece_BLD.shape[1]), SHAPE.d // SHAPE.heads, SHAPE.rope_theta)
    for block in model.blocks:
        assert isinstance(block, Block)
        query, key, value = block.attention.project(block.attention_norm(piece_BLD), cos, sin)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        piece_BLD = block.finish(piece_BLD, mixed)
    return model.norm(piece_BLD)


def numbered(length: int, borders: list[int]) -> Tensor:
    """Return the document of each token, (length,), where documents begin at 0 and at the borders."""
    return 7 + torch.bucketize(torch.arange(length), torch.tensor(sorted(borders)), right=True)


def pieces(begins_L: Tensor) -> list[tuple[int, int]]:
    """Return where each document begins and ends."""
    begins = begins_L.unique().tolist()
    return list(itertools.pairwise([*begins, len(begins_L)]))


rows_of_borders = st.lists(st.lists(st.integers(1, 23), max_size=5), min_size=1, max_size=3)


@given(rows=rows_of_borders, K=st.sampled_from([1, 2, 3, 4]))
def test_a_chunk_is_of_the_document_of_its_last_token(rows: list[list[int]], K: int) -> None:
    documents_BT = torch.stack([numbered(24, borders) for borders in rows])
    found = document_begins(documents_BT, K)
    for row, documents in zip(found.tolist(), documents_BT.tolist(), strict=True):
        last = documents[K - 1 :: K]
        assert row == [last.index(document) for document in last]


@settings(max_examples=25, deadline=None)
@given(rows=rows_of_borders, seed=st.integers(0, 2**16))
def test_a_block_of_documents_equals_each_of_them_alone(rows: list[list[int]], seed: int) -> None:
    model = transformer()
    torch.manual_seed(seed)
    input_BLD = torch.randn(len(rows), 24, 16, dtype=torch.float64)
    first_BL = document_begins(torch.stack([numbered(24, borders) for borders in rows]))
    with torch.no_grad():
        whole_BLD = model(input_BLD, first_BL)
        assert torch.equal(model.prefill(input_BLD, first_BL)[0], whole_BLD)
        for b in range(len(rows)):
            for begin, end in pieces(first_BL[b]):
                piece, found = input_BLD[b : b + 1, begin:end], whole_BLD[b : b + 1, begin:end]
                torch.testing.assert_close(found, at_its_place(model, piece, begin), rtol=1e-10, atol=1e-10)
                near(found, model(piece))


def test_without_borders_the_products_are_those_of_plain_causal_attention() -> None:
    model, input_BLD = transformer(), torch.randn(2, 24, 16, dtype=torch.float64)
    with torch.no_grad():
        plain_BLD = model(input_BLD)
        assert torch.equal(plain_BLD, at_its_place(model, input_BLD, 0))
        unbounded = model(input_BLD, torch.zeros(2, 24, dtype=torch.int64))
    torch.testing.assert_close(unbounded, plain_BLD, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 17, 64, 1100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_attention_with_borders_equals_its_definition(length: int, dtype: torch.dtype) -> None:
    """At 1,100 positions the kernels go block by block, and whole blocks of keys are hidden."""
    torch.manual_seed(0)
    mine = [torch.randn(2, 3, length, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
    exact = [tensor.detach().double().requires_grad_() for tensor in mine]
    rows = ([length // 3, length - length // 8], [1, length // 2])
    first_BL = document_begins(torch.stack([numbered(length, borders) for borders in rows]))
    position_L = torch.arange(length)
    hidden_BLL = (position_L > position_L[:, None]) | (position_L < first_BL[:, :, None])
    logits_BHLL = (exact[0] @ exact[1].transpose(-1, -2) * 8**-0.5).masked_fill(hidden_BLL.unsqueeze(1), -torch.inf)
    expected = logits_BHLL.softmax(-1) @ exact[2]
    result = causal_attention(mine[0], mine[1], mine[2], visibility(first_BL, dtype))
    assert result.dtype == dtype
    tolerance = {torch.bfloat16: 3e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)
    upstream = torch.randn_like(expected)
    result.backward(upstream.to(dtype))
    expected.backward(upstream)
    for ours, theirs in zip(mine, exact, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=tolerance, atol=2 * tolerance)


@pytest.mark.parametrize("low", [False, True])
def test_no_gradient_crosses_a_border(low: bool) -> None:
    model = transformer().float() if low else transformer()
    x = torch.randn(2, 24, 16, dtype=torch.float32 if low else torch.float64, requires_grad=True)
    first_BL = document_begins(torch.stack([numbered(24, [5, 11]), numbered(24, [9])]))
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        model(x, first_BL)[0, 13].sum().backward()
    assert x.grad is not None
    assert (x.grad[0, :11] == 0).all() and (x.grad[0, 14:] == 0).all() and (x.grad[1] == 0).all()
    assert (x.grad[0, 11:14] != 0).any(-1).all()


@settings(max_examples=25, deadline=None)
@given(
    borders=st.lists(st.integers(1, 8), max_size=3),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    per_row=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_a_branch_stays_in_its_document(borders: list[int], lengths: list[int], per_row: bool, seed: int) -> None:
    model, R, B, J = transformer(), len(lengths), 2, 3
    torch.manual_seed(seed)
    prefix_BLD = torch.randn(B, 9, 16, dtype=torch.float64)
    own_BRJD = torch.randn(B, R, J, 16, dtype=torch.float64)
    first_BL = document_begins(torch.stack([numbered(9, borders), numbered(9, borders if not per_row else [4])]))
    length_R = torch.tensor(lengths)
    first_BR = first_BL[:, length_R - 1]
    with torch.no_grad():
        _, cache = model.prefill(prefix_BLD, first_BL)
        own, own_2 = BranchCache(), BranchCache()
        for step in range(J):
            shared = first_BR if per_row else first_BR[0]
            result_BRD = model.branch_step(own_BRJD[:, :, step], cache, own, length_R, shared)
            again_BRD = model.branch_step(own_BRJD[:, :, step], cache, own_2, length_R.expand(B, R), first_BR)
            torch.testing.assert_close(result_BRD, again_BRD)
            for b, (r, length) in itertools.product(range(B), enumerate(lengths)):
                begin = int(first_BR[b, r])
                sequence = torch.cat((prefix_BLD[b, begin:length], own_BRJD[b, r, : step + 1])).unsqueeze(0)
                near(result_BRD[b, r], model(sequence)[0, -1])


def calm_pair(K: int, reads: str = "discrete", apart: bool = True) -> tuple[ContinuousLM, ChunkAutoencoder]:
    """Return a language model and an autoencoder whose posterior has no width: a true chunk has one latent."""
    torch.manual_seed(K)
    config = replace(NARROW, K=K, l=6, input=reads, cross_document_attention=not apart)
    model = ContinuousLM(config, V).eval()
    autoencoder = ChunkAutoencoder(AutoencoderConfig(d=12, intermediate=16), K, 6, V).eval()
    scramble(model)
    scramble(autoencoder)
    torch.nn.init.zeros_(autoencoder.encoder.to_latent.weight[6:])
    torch.nn.init.constant_(autoencoder.encoder.to_latent.bias[6:], -100.0)
    return model, autoencoder


def token_model(vocabulary: int = V, apart: bool = True) -> TokenLM:
    torch.manual_seed(0)
    model = TokenLM(replace(NARROW, cross_document_attention=not apart), vocabulary).eval()
    scramble(model)
    return model


def calm_stage(reads: str, apart: bool = True) -> CalmStage:
    return CalmStage(*calm_pair(4, reads, apart), *RECIPE)


def sequential(
    model: ContinuousLM, autoencoder: ChunkAutoencoder, prefix_T: Tensor, noise_U: Tensor, horizon: int
) -> list[int]:
    """Continue one document chunk by chunk, each time through the whole sequence, with the same noise at every step."""
    tokens_LK = prefix_T.view(-1, model.K)
    latents_LZ = autoencoder.encode(tokens_LK)[0]
    start = len(tokens_LK)
    while (len(tokens_LK) - start) * model.K < horizon:
        read_1LZ = latents_LZ.unsqueeze(0) if model.reads_latents else None
        latent_1Z = model.head(model(tokens_LK.unsqueeze(0), read_1LZ)[:, -1], noise_U.view(1, 1, -1))[0]
        latents_LZ = torch.cat((latents_LZ, latent_1Z))
        tokens_LK = torch.cat((tokens_LK, autoencoder.decode_tokens(latent_1Z)))
    return tokens_LK[start:].flatten()[:horizon].tolist()


@pytest.mark.parametrize("max_elements", [500, 2**24])
@pytest.mark.parametrize("K, reads", [(1, "discrete"), (2, "both"), (3, "latent"), (4, "discrete"), (8, "both")])
def test_continuations_equal_those_of_the_document_alone(
    K: int, reads: str, max_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Borders lie before a start position, on it, within a chunk, and within what is continued."""
    model, autoencoder = calm_pair(K, reads)
    samples, rows = 3, ([24 - K, 25], [5, 24, 24 + 2 * K])
    tokens_BT, documents_BT = torch.randint(V, (2, 48)), torch.stack([numbered(48, row) for row in rows])
    starts_G = torch.tensor([K, 24, 24 + K, 24 + 2 * K])
    noise_SU = 3 * torch.randn(samples, 5)

    def fixed(size: tuple[int, int, int], **where: object) -> Tensor:
        num, positions, _ = size
        which = torch.arange(num).unsqueeze(1) if num == samples else torch.arange(positions).unsqueeze(0) % samples
        return noise_SU[which.expand(num, positions)] + 0.5

    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(torch, "rand", fixed)
        drawn_BGSH = continue_chunks(model, autoencoder, tokens_BT, starts_G, samples, 4, max_elements, documents_BT)
    for b, (g, start), s in itertools.product(range(2), enumerate(starts_G.tolist()), range(samples)):
        begin = K * int(document_begins(documents_BT[b : b + 1, :start], K)[0, -1])
        with torch.no_grad():
            expected = sequential(model, autoencoder, tokens_BT[b, begin:start], noise_SU[s], 4)
        assert drawn_BGSH[b, g, s].tolist() == expected


def enumerate_continuations(model: TokenLM, prefix_T: Tensor, n: int) -> Tensor:
    """Return P of all V^n continuations of a prefix, (V,) * n, float64, by one forward pass each."""
    outcomes = torch.cartesian_prod(*[torch.arange(model.vocabulary)] * n).view(-1, n)
    rows = torch.cat((prefix_T.expand(len(outcomes), -1), outcomes), dim=1)
    with torch.no_grad():
        log_p = model(rows)[:, len(prefix_T) - 1 : -1].double().log_softmax(-1)
    return log_p.gather(-1, outcomes.unsqueeze(-1)).sum((1, 2)).exp().view((model.vocabulary,) * n)


def test_baseline_scores_one_distribution_though_a_document_ends() -> None:
    """Also where the true document ends within the scored tokens, P(y) is of the distribution that is sampled."""
    model, starts = token_model(4), [2, 4, 7]
    tokens_BT, documents_BT = torch.randint(4, (2, 11)), torch.stack([numbered(11, [3, 5]), numbered(11, [4, 8])])
    with torch.no_grad():
        runs = [
            baseline_probabilities(model, tokens_BT, torch.tensor(starts), 400, elements, documents_BT)
            for elements in [2**24, 400] * 10
        ]
    collisions = torch.stack([run.collision for run in runs]).double()
    error = collisions.std(0) / len(runs) ** 0.5
    for b, (g, start), n in itertools.product(range(2), enumerate(starts), range(1, 5)):
        begin = int(document_begins(documents_BT[b : b + 1])[0, start - 1])
        p = enumerate_continuations(model, tokens_BT[b, begin:start], n)
        truth = tuple(tokens_BT[b, start : start + n].tolist())
        assert runs[0].gold[b, g, n - 1].item() == pytest.approx(p[truth].item(), rel=1e-4)
        difference = collisions[:, b, g, n - 1].mean().item() - p.square().sum().item()
        assert abs(difference) < 5 * error[b, g, n - 1].item() + 1e-6


@settings(max_examples=10, deadline=None)
@given(borders=st.lists(st.integers(1, 23), max_size=4))
def test_baseline_loss_is_that_of_every_document_with_the_next_one_s_first_token(borders: list[int]) -> None:
    stage = BaselineStage(token_model(), *RECIPE)
    tokens_1T, documents_1T = torch.randint(V, (1, 24)), numbered(24, borders).unsqueeze(0)
    expected = []
    for begin, end in pieces(document_begins(documents_1T)[0]):
        read_1T, next_1T = tokens_1T[:, begin : min(end, 23)], tokens_1T[:, begin + 1 : end + 1]
        if read_1T.shape[1]:
            expected.append(functional.cross_entropy(stage.model(read_1T)[0], next_1T[0], reduction="sum"))
    near(stage.loss(tokens_1T, documents_1T), sum(expected, torch.zeros(())) / 23)


@pytest.mark.parametrize("reads", ["discrete", "both"])
def test_calm_loss_is_taken_at_the_hidden_states_of_every_document_alone(reads: str) -> None:
    """A chunk that straddles a border is the first of the later document."""
    stage = calm_stage(reads)
    model, autoencoder = stage.model, stage.autoencoder
    tokens_BT = torch.randint(V, (4, 32))
    documents_BT = torch.stack([numbered(32, [border]) for border in (16, 17, 19, 8)])
    hidden: list[Tensor] = []
    with torch.no_grad():
        handle = model.register_forward_hook(lambda _, __, output: hidden.append(output))
        assert torch.isfinite(stage.loss(tokens_BT, documents_BT))
        handle.remove()
        for b, border in enumerate((4, 4, 4, 2)):
            chunks_1LK = tokens_BT[b : b + 1, :28].unflatten(1, (-1, 4))
            latents_1LZ = autoencoder.encode(chunks_1LK[0])[0].unsqueeze(0) if model.reads_latents else None
            for part in (slice(0, border), slice(border, 7)):
                alone = model(chunks_1LK[:, part], None if latents_1LZ is None else latents_1LZ[:, part])
                near(hidden[0][b : b + 1, part], alone)


@pytest.mark.parametrize("low", [False, True])
def test_a_model_that_attends_across_documents_does_not_look_at_them(low: bool) -> None:
    tokens_BT, documents_BT = torch.randint(V, (2, 32)), torch.stack([numbered(32, [9]), numbered(32, [18])])
    for stage in (calm_stage("both", apart=False), BaselineStage(token_model(apart=False), *RECIPE)):
        found = []
        for documents in (None, documents_BT):
            torch.manual_seed(1)
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                found.append((stage.loss(tokens_BT, documents), *stage.scores(tokens_BT, torch.tensor([8]), documents)))
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_model_that_keeps_to_documents_asks_for_them() -> None:
    model, autoencoder = calm_pair(4)
    tokens_BT, starts_G = torch.randint(V, (2, 32)), torch.tensor([8])
    calm, baseline = calm_stage("discrete"), BaselineStage(token_model(), *RECIPE)
    for ask in (
        lambda: calm.loss(tokens_BT),
        lambda: baseline.loss(tokens_BT),
        lambda: calm.scores(tokens_BT, starts_G),
        lambda: baseline.scores(tokens_BT, starts_G),
        lambda: roundtrip.held_out_latents(model, autoencoder, tokens_BT),
        lambda: calibration.chunk_calibration(model, autoencoder, tokens_BT, starts_G, (1,), (4,)),
    ):
        with pytest.raises(DataError, match=r"model\.cross_document_attention=false needs the document"):
            ask()
    assert torch.isfinite(AutoencoderStage(autoencoder, *RECIPE).loss(tokens_BT))


def test_a_prompt_of_several_documents_is_read_from_the_last_one_on() -> None:
    apart, together = token_model().config, token_model(apart=False).config
    prompt_T, documents_T = torch.arange(14), numbered(14, [3, 9])
    assert last_document(apart, prompt_T, documents_T).tolist() == [*range(9, 14)]
    # chunks of 4 end with the prompt: 2-5, 6-9 (the border is in it), 10-13
    assert last_document(apart, prompt_T, documents_T, 4).tolist() == [*range(6, 14)]
    assert last_document(together, prompt_T, documents_T, 4) is prompt_T
    assert last_document(apart, prompt_T, None) is prompt_T
    assert len(last_document(apart, prompt_T[:3], documents_T[:3], 4)) == 3
    stage, found = BaselineStage(token_model(), *RECIPE), []
    for prompt, documents in ((prompt_T % V, documents_T), (prompt_T[9:] % V, None)):
        torch.manual_seed(3)
        found.append(stage.generate(prompt, 20, 1.0, documents).tolist())
    assert found[0] == found[1]


def test_drift_continues_the_last_document_of_a_prompt() -> None:
    (model, autoencoder), (other, _) = calm_pair(2), calm_pair(2, apart=False)
    prompts_BT, documents_BT = torch.randint(V, (3, 12)), numbered(12, [5]).expand(3, -1)
    found = []
    for reader, prompts, documents in ((model, prompts_BT, documents_BT), (other, prompts_BT[:, 4:], None)):
        torch.manual_seed(3)
        sampling = ChunkSampling(1.0, 4)
        chunks_BLK = prompts.unflatten(1, (-1, 2))
        found.append(drift.long_continuations(reader, autoencoder, chunks_BLK, 6, sampling, documents))
    assert torch.equal(found[0].tokens, found[1].tokens)
    near(found[0].latents, found[1].latents)


def test_evaluation_and_diagnosis_keep_to_the_documents_that_training_kept_to() -> None:
    """Brier-1 and the accuracy of one token are exact, so they can be had from every document alone."""
    config = load_config(["model/documents", "data.block_tokens=32", "evaluation.start_stride=4"], stage="baseline")
    model, tokenizer = token_model(257, not config.model.cross_document_attention), make_tokenizer("bytes", ())
    config = replace(config, model=replace(model.config, vocabulary=257))
    opened = OpenModel(Path("run"), "baseline", config, model, None, tokenizer, {})
    texts = ["to be or not to be", "whether", "it is nobler in the mind to suffer", "slings and arrows", "of fortune"]
    text = PackedText([(one, "") for one in texts], tokenizer)
    (batch,) = text.batches(32, 9, None)
    assert batch.documents is not None
    right, agree = [], []
    for tokens_T, documents_T in zip(batch.tokens, batch.documents, strict=True):
        for start in range(4, 29, 4):
            prefix_T = last_document(model.config, tokens_T[:start], documents_T[:start])
            with torch.no_grad():
                p_V = model(prefix_T.unsqueeze(0))[0, -1].softmax(-1)
            right.append(p_V[tokens_T[start]].item())
            agree.append(p_V.square().sum().item())
    brier = 2 * sum(right) / len(right) - sum(agree) / len(agree)
    result = evaluate(opened, text, EvaluationOptions(precision="32-true"))
    assert result.score is not None
    assert result.score.brier[0] == pytest.approx(100 * brier, rel=1e-4)
    (finding,) = diagnose(opened, text, DiagnosisOptions(only=("calibration",)))
    found = finding.value(calibration.accuracy(1), calibration.BASELINE, 1.0)
    assert found == pytest.approx(sum(right) / len(right), rel=1e-4)

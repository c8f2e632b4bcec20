"""A finished model, a text and a protocol -> scores that say how they were made.

Language models get BrierLM with its interval, by domain and by offset in the chunk; autoencoders get reconstruction.
Two protocols: "aligned" (the default) scores compared models at the same start positions; "released" is the authors'.

Shape suffixes: B blocks, T tokens, C chunks, K tokens per chunk, Z latent dimension, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from calm_lightning.assembly import resolve_precision
from calm_lightning.autoencoder.loss import autoencoder_loss
from calm_lightning.autoencoder.model import ChunkAutoencoder, draw_posterior
from calm_lightning.data.batch import TokenBatch
from calm_lightning.data.texts import EvaluationText
from calm_lightning.errors import ConfigError, DataError
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.heads.registry import sampling_in_words
from calm_lightning.metrics.brier_lm import BrierLMResult, BrierScores
from calm_lightning.metrics.protocol import (
    ALIGNED,
    PROTOCOLS,
    RELEASED,
    RELEASED_BLOCK_TOKENS,
    RELEASED_SAMPLES,
    Protocol,
)
from calm_lightning.models import OpenModel
from calm_lightning.programs.arithmetic import arithmetic, best_device
from calm_lightning.programs.soundness import look_first
from calm_lightning.sampling.continuations import HORIZON, largest_tensor, start_positions
from calm_lightning.stages.scoring import add_scores, chunk_scores, token_scores
from calm_lightning.tracking.provenance import commit

PRECISIONS = ("auto", "32-true", "bf16-mixed")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EvaluationOptions:
    """What may be chosen; None stands for the protocol's or the model's own.

    Attributes:
        protocol: "aligned" or "released".
        block_tokens: Tokens per block; by default the block length of training, or the released 8,192 (2,048).
        samples: Samples S per start position; by default the run's, or the released 2.
        start_stride: Tokens between start positions, "aligned" only; by default the run's.
        precision: "auto", "32-true" or "bf16-mixed".
        batch_tokens: Tokens per batch; by default the run's.
        max_blocks: Read this many evenly spaced blocks.
        seed: Seed of the draws; every batch begins anew with it and the number of its first block.
    """

    protocol: str = ALIGNED
    block_tokens: int | None = None
    samples: int | None = None
    start_stride: int | None = None
    precision: str = "auto"
    batch_tokens: int | None = None
    max_blocks: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Reconstruction:
    """How well an autoencoder restores text.

    Attributes:
        accuracy_mean: Fraction of tokens restored from z = mu.
        accuracy_sampled: Fraction of tokens restored from z drawn from the posterior.
        cross_entropy: Of the tokens given a drawn z, nats per token.
        kl: KL of posterior and prior before clipping, nats per chunk.
    """

    accuracy_mean: float
    accuracy_sampled: float
    cross_entropy: float
    kl: float


@dataclass(frozen=True)
class Evaluation:
    """What was found, and how.

    Attributes:
        stage: "calm", "baseline" or "autoencoder".
        K: Tokens per chunk (1 for the baseline).
        protocol: How it was scored.
        trained_block_tokens: Block length that the model was trained with.
        score: BrierLM of a language model.
        reconstruction: Reconstruction of an autoencoder.
        seconds: Seconds it took.
    """

    stage: str
    K: int
    protocol: Protocol
    trained_block_tokens: int
    score: BrierLMResult | None
    reconstruction: Reconstruction | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON knows: what is unknown (infinite) becomes None."""
        value = asdict(self)
        value["score"] = _score_dict(self.score) if self.score else None
        value["protocol"] = self.protocol.to_dict()
        return value


def _score_dict(score: BrierLMResult) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, part in score._asdict().items():
        if isinstance(part, tuple):
            value[name] = [_finite(number) for number in part]
        else:
            value[name] = _finite(part) if isinstance(part, float) else part
    return value | {"domains": {name: _score_dict(domain) for name, domain in score.domains.items()}}


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def evaluate(
    opened: OpenModel, text: EvaluationText, options: EvaluationOptions, on_batch: Progress | None = None
) -> Evaluation:
    """Score a model on a text.

    Args:
        opened: The model.
        text: The text, in ids of the model's tokenizer.
        options: The protocol and what deviates from it.
        on_batch: Called with the number of blocks scored and the number there are, before and after every batch.

    Raises:
        ConfigError: The options contradict one another or the model, or the text is in other ids.
        DataError: The text is shorter than a block.
        CheckpointError: The model's weights or outputs are not finite numbers.
    """
    began = time.perf_counter()
    protocol = _protocol(opened, text, options)
    device = torch.device(protocol.device)
    model = opened.model.to(device)
    codec = opened.autoencoder.to(device) if opened.autoencoder is not None else None
    batches = text.batches(protocol.block_tokens, protocol.batch_tokens // protocol.block_tokens, options.max_blocks)
    shown = _seeded(_progress(batches, protocol.blocks, on_batch), options.seed)
    networks = [model] if codec is None else [model, codec]
    score, reconstruction = None, None
    with torch.random.fork_rng(), arithmetic(networks, protocol.precision, device), torch.inference_mode():
        checked = look_first(shown, opened, protocol.precision, device)
        if isinstance(model, ChunkAutoencoder):
            reconstruction, documents = _reconstruct(model, checked, device)
        else:
            assert isinstance(model, ContinuousLM | TokenLM)
            score = _score(model, codec, checked, text.domains, protocol, device)
            documents = score.documents
    return Evaluation(
        stage=opened.stage,
        K=_K(opened),
        protocol=Protocol(**{**asdict(protocol), "documents": documents}),
        trained_block_tokens=opened.config.data.block_tokens,
        score=score,
        reconstruction=reconstruction,
        seconds=time.perf_counter() - began,
    )


def _K(opened: OpenModel) -> int:
    return 1 if opened.stage == "baseline" else int(opened.config.model.K)


def _protocol(opened: OpenModel, text: EvaluationText, options: EvaluationOptions) -> Protocol:
    """Return the protocol that options and model amount to, its number of documents not yet known."""
    _check_text(opened, text)
    released, language_model = options.protocol == RELEASED, opened.stage != "autoencoder"
    evaluation, T = opened.config.evaluation, opened.config.data.block_tokens
    block_tokens = options.block_tokens or (RELEASED_BLOCK_TOKENS[opened.stage] if released else T)
    samples = options.samples or (RELEASED_SAMPLES if released else evaluation.samples)
    stride = _K(opened) if released else options.start_stride or evaluation.start_stride
    if problem := _problem(opened, options, block_tokens, samples, stride):
        raise ConfigError(problem)
    wanted = options.batch_tokens or opened.config.data.eval_batch_tokens
    blocks = len(text.block_numbers(block_tokens, options.max_blocks))
    if not blocks:
        shorter = min(text.tokens // _K(opened) * _K(opened), T)
        fits = shorter >= (stride + HORIZON if language_model else _K(opened))
        cure = f"take a longer text or shorter blocks (--block-tokens {shorter})" if fits else "take a longer text"
        raise DataError(f"the text has {text.tokens:,} tokens, no whole block of {block_tokens:,}: {cure}")
    return Protocol(
        name=options.protocol,
        block_tokens=block_tokens,
        start_stride=stride if language_model else None,
        samples=samples if language_model else 1,
        corpus=text.sha256,
        split=text.split,
        blocks=blocks,
        max_blocks=options.max_blocks,
        documents=0,
        tokens=blocks * block_tokens,
        left_out_tokens=text.tokens - blocks * block_tokens,
        tokenizer=text.tokenizer,
        precision=str(resolve_precision(options.precision)),
        seed=options.seed,
        commit=commit(),
        model=opened.lineage,
        sampler=sampling_in_words(opened.config.model) if opened.stage == "calm" else "",
        batch_tokens=max(1, wanted // block_tokens) * block_tokens,
        device=best_device().type,
    )


def _check_text(opened: OpenModel, text: EvaluationText) -> None:
    """Check that a text is in the ids that a model knows.

    Raises:
        ConfigError: It was made with another tokenizer.
    """
    V = int(opened.config.model.vocabulary or 0)
    other = opened.tokenizer is not None and opened.tokenizer.fingerprint != text.tokenizer
    if other or text.vocabulary > V:
        raise ConfigError(
            f"{opened.path} was trained with another tokenizer than the text's (fingerprint {text.tokenizer[:12]}, "
            f"{text.vocabulary} ids; the model has {V}): use the tokenizer it was trained with"
        )


def _problem(opened: OpenModel, options: EvaluationOptions, block_tokens: int, samples: int, stride: int) -> str:
    """Return what is wrong with the options, or ""."""
    K = _K(opened)
    if options.protocol not in PROTOCOLS:
        return f"protocol {options.protocol} is unknown: choose one of {', '.join(PROTOCOLS)}"
    if options.precision not in PRECISIONS:
        return f"precision {options.precision} is unknown: choose one of {', '.join(PRECISIONS)}"
    numbers = (
        ("block length", block_tokens),
        ("batch size", options.batch_tokens),
        ("block limit", options.max_blocks),
    )
    for name, value in (*numbers, ("start stride", stride)):
        if value is not None and value < 1:
            return f"a {name} of {value} makes no sense: it must be at least 1"
    if block_tokens % K:
        below = max(K, block_tokens // K * K)
        return f"blocks of {block_tokens} tokens do not hold whole chunks of K={K}: use {below} or {below + K}"
    if opened.stage == "autoencoder":
        return ""
    if options.protocol == RELEASED and options.start_stride is not None:
        return "the released protocol scores every chunk (every token of a baseline): leave out the start stride"
    if stride % K:
        return f"a start stride of {stride} does not fall on chunk borders of K={K}: 24 does for K = 1, 2, 3, 4, 6, 8"
    if samples < 2:
        return f"BrierLM needs at least 2 samples per position, got {samples}"
    if block_tokens < stride + HORIZON:
        return f"blocks of {block_tokens} tokens hold no start position: they need at least {stride + HORIZON}"
    return ""


def _progress(batches: Iterator[TokenBatch], blocks: int, on_batch: Progress | None) -> Iterator[TokenBatch]:
    """Yield the batches and tell how far they are."""
    done = 0
    for batch in batches:
        if on_batch:
            on_batch(done, blocks)
        yield batch
        done += len(batch.blocks)
    if on_batch:
        on_batch(done, blocks)


def _seeded(batches: Iterator[TokenBatch], seed: int) -> Iterator[TokenBatch]:
    """Yield the batches, each with random numbers of its own, whatever was drawn for those before it."""
    for batch in batches:
        # Hashed, because the generator of CPUs reads 32 bits of a seed: sums and shifts of the two would collide.
        digest = hashlib.sha256(f"{seed} {int(batch.blocks[0])}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8]))
        yield batch


def _score(
    model: ContinuousLM | TokenLM,
    codec: ChunkAutoencoder | None,
    batches: Iterator[TokenBatch],
    domains: tuple[str, ...],
    protocol: Protocol,
    device: torch.device,
) -> BrierLMResult:
    """Score a language model at the protocol's start positions."""
    assert protocol.start_stride is not None
    starts_G = start_positions(protocol.block_tokens, protocol.start_stride)
    metric = BrierScores(domains=domains).to(device)
    for batch in batches:
        tokens_BT = batch.tokens.to(device)
        documents_BT = None if batch.documents is None else batch.documents.to(device)
        if isinstance(model, TokenLM):
            found = token_scores(model, tokens_BT, starts_G, protocol.samples, documents_BT)
        else:
            assert codec is not None
            found = chunk_scores(model, codec, tokens_BT, starts_G, protocol.samples, documents_BT)
        add_scores(metric, batch, starts_G, found)
    result: BrierLMResult = metric.compute()
    return result


def _reconstruct(
    model: ChunkAutoencoder, batches: Iterator[TokenBatch], device: torch.device
) -> tuple[Reconstruction, int]:
    """Return the reconstruction of all chunks and the number of documents they are of; logits in bounded slices."""
    sums_4, documents, chunks = torch.zeros(4, device=device), set[int](), 0
    for batch in batches:
        tokens_CK = batch.tokens.to(device).view(-1, model.K)
        assert batch.documents is not None
        documents.update(batch.documents.unique().tolist())
        chunks += len(tokens_CK)
        for part_CK in tokens_CK.split(max(1, largest_tensor(device) // (model.K * model.vocabulary))):
            sums_4 += len(part_CK) * _reconstruct_part(model, part_CK)
    means = (sums_4 / chunks).tolist()
    return Reconstruction(*means), len(documents)


def _reconstruct_part(model: ChunkAutoencoder, tokens_CK: Tensor) -> Tensor:
    """Return the means that `Reconstruction` lists, over some chunks, (4,)."""
    mean_CZ, log_std_CZ = model.encode(tokens_CK)
    logits_CKV = model.decode(draw_posterior(mean_CZ, log_std_CZ, 1)[0])
    loss = autoencoder_loss(logits_CKV, tokens_CK, mean_CZ, log_std_CZ, model.config.beta, model.config.kl_clip)
    from_mean = (model.decode_tokens(mean_CZ) == tokens_CK).float().mean()
    from_draw = (logits_CKV.argmax(-1) == tokens_CK).float().mean()
    return torch.stack((from_mean, from_draw, loss.cross_entropy, loss.kl)).float()

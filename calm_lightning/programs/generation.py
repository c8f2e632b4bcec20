"""Prompts and an opened model -> text, as it is drawn.

Joins what lower rooms know apart: the tokenizer, the chunk grid, the samplers, the device and its precision.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from calm_lightning.assembly import resolve_precision
from calm_lightning.data.tokenizers import Tokenizer
from calm_lightning.errors import SamplingError
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.models import OpenModel
from calm_lightning.programs.arithmetic import arithmetic, best_device
from calm_lightning.sampling.chunks import ChunkSampling, Method
from calm_lightning.sampling.generate import stream_chunks, stream_tokens
from calm_lightning.sampling.prompts import Align, align_prompt
from calm_lightning.sampling.text import TextStream
from calm_lightning.stages.allocator import keep_freed_memory

LLAMA3_END_OF_TEXT = 128_001
"""Llama 3 ends a document with an id of its own; its separator, begin-of-text, starts the next one."""


@dataclass(frozen=True)
class GenerationOptions:
    """What may be chosen.

    Attributes:
        tokens: Most tokens per prompt.
        temperature: T in (0, 1], 1 or 1/n with the batch method; the token baseline takes any above 0.
        samples: Pool size S of the batch method (`ChunkSampling`; not for the baseline, as the next three).
        method: "batch" or "exact".
        budget: Most samples per chunk of the exact method, and for matching the end of a prompt.
        align: What is done with prompts that do not fill their last chunk: "auto", "match" or "cut".
        seed: Seed of all draws.
        batch_size: Prompts continued together.
        precision: "auto", "32-true" or "bf16-mixed".
    """

    tokens: int = 128
    temperature: float = 0.5
    samples: int = 200
    method: Method = "batch"
    budget: int = 10_000
    align: Align = "auto"
    seed: int = 0
    batch_size: int = 8
    precision: str = "auto"


@dataclass
class Continuation:
    """What a prompt was continued with.

    Attributes:
        prompt: The prompt.
        text: The generated text.
        tokens: Its token ids.
        ended: Whether the model ended the document.
        left_out: How many of the prompt's oldest tokens, its separator included, the model did not read.
        matched: How many of its newest tokens were matched by drawing the chunk they begin.
    """

    prompt: str
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    left_out: int = 0
    matched: int = 0


@dataclass(frozen=True)
class Generation:
    """All continuations, and how fast they were.

    Attributes:
        continuations: One per prompt, in their order.
        seconds: Seconds of alignment, prefill and drawing together.
        precision: The precision that was used.
    """

    continuations: list[Continuation]
    seconds: float
    precision: str

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens of all prompts per second."""
        return sum(len(one.tokens) for one in self.continuations) / self.seconds


OnText = Callable[[int, str], None]


def ignore_text(number: int, piece: str) -> None:
    """Do nothing with new text: it is in the result, too."""


def generate_text(
    opened: OpenModel,
    prompts: Sequence[str],
    options: GenerationOptions,
    tokenizer: Tokenizer | None = None,
    on_text: OnText = ignore_text,
) -> Generation:
    """Continue prompts, in batches. Torch's random state is afterwards as it was.

    Args:
        opened: A language model; moved to the GPU if there is one, and otherwise left as it is.
        prompts: Texts, none of them empty. Each is read as the beginning of a document.
        options: How to continue them.
        tokenizer: Used where the model carries none.
        on_text: Called with a prompt's number and each new piece of its text.

    Raises:
        SamplingError: The model, a prompt or an option does not allow it.
    """
    known = opened.tokenizer or tokenizer
    _check(opened, prompts, known, options)
    assert known is not None
    keep_freed_memory()
    device = best_device()
    networks = [network.to(device) for network in (opened.model, opened.autoencoder) if network is not None]
    precision = str(resolve_precision(options.precision))
    found = [Continuation(prompt) for prompt in prompts]
    begin = time.perf_counter()
    with torch.random.fork_rng(), arithmetic(networks, precision, device):
        torch.manual_seed(options.seed)
        for first in range(0, len(prompts), options.batch_size):
            batch = found[first : first + options.batch_size]
            for row, piece in _continue(opened, batch, known, options):
                batch[row].text += piece
                on_text(first + row, piece)
    return Generation(found, time.perf_counter() - begin, precision)


def _check(opened: OpenModel, prompts: Sequence[str], tokenizer: Tokenizer | None, options: GenerationOptions) -> None:
    if not isinstance(opened.model, (ContinuousLM, TokenLM)):
        raise SamplingError(f"{opened.path} is an autoencoder: only runs of stage calm or baseline generate text")
    if isinstance(opened.model, ContinuousLM) and opened.autoencoder is None:
        raise SamplingError(f"{opened.path} was found without its autoencoder: name it with --autoencoder DIR")
    if tokenizer is None:
        raise SamplingError(
            f"{opened.path} carries no tokenizer: name the one it was trained with, for example --tokenizer llama3"
        )
    if tokenizer.vocabulary > opened.model.vocabulary:
        raise SamplingError(
            f"the tokenizer has {tokenizer.vocabulary:,} ids, the model {opened.path} knows {opened.model.vocabulary:,}"
        )
    if not prompts:
        raise SamplingError("no prompt is given: --prompt TEXT or --prompts FILE")
    if not all(prompts):
        raise SamplingError("a prompt is empty: give at least one character to continue")
    if options.tokens < 1 or options.batch_size < 1:
        raise SamplingError(f"tokens ({options.tokens}) and batch size ({options.batch_size}) must be at least 1")


def _continue(
    opened: OpenModel, batch: list[Continuation], tokenizer: Tokenizer, options: GenerationOptions
) -> Iterator[tuple[int, str]]:
    """Continue one batch, fill in all but the text of its continuations, and yield that: row and new piece."""
    ids = [[tokenizer.separator_id, *one] for one in tokenizer.encode_batch([one.prompt for one in batch])]
    streams = [TextStream(tokenizer.decode, one) for one in ids]
    for new in _steps(opened, batch, ids, tokenizer, options):
        for row, tokens in enumerate(new):
            batch[row].tokens += tokens
            if piece := streams[row].push(tokens):
                yield row, piece
    for row, one in enumerate(batch):
        one.ended = len(one.tokens) < options.tokens
        if piece := streams[row].finish():
            yield row, piece


def _steps(
    opened: OpenModel,
    batch: list[Continuation],
    ids: list[list[int]],
    tokenizer: Tokenizer,
    options: GenerationOptions,
) -> Iterator[list[list[int]]]:
    """Return the sampler's steps for one batch of prompts, and note how they were put on the chunk grid."""
    model, codec = opened.model, opened.autoencoder
    prompts = [torch.tensor(one, device=next(model.parameters()).device) for one in ids]
    stop_ids = {tokenizer.separator_id, *([LLAMA3_END_OF_TEXT] if tokenizer.kind == "llama3" else [])}
    if isinstance(model, TokenLM):
        return stream_tokens(model, prompts, options.tokens, options.temperature, stop_ids)
    assert isinstance(model, ContinuousLM) and codec is not None
    sampling = ChunkSampling(options.temperature, options.samples, options.method, options.budget)
    aligned = []
    for one, prompt_T in zip(batch, prompts, strict=True):
        try:
            prompt = align_prompt(model, codec, prompt_T, sampling, options.align)
        except SamplingError as error:
            raise SamplingError(f"prompt {one.prompt[:40]!r}: {error}") from None
        aligned.append(prompt)
        one.left_out = prompt.left_out
        one.matched = model.K - prompt.generated if prompt.generated else 0
    return stream_chunks(model, codec, aligned, options.tokens, sampling, stop_ids)

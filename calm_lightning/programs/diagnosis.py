"""A finished model and a held-out text -> what the method's critics ask, answered by `calm_lightning.diagnostics`.

Decides which text every diagnosis reads and how much of it; the mathematics is in the room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from calm_lightning.autoencoder.model import ChunkAutoencoder
from calm_lightning.data.texts import EvaluationText
from calm_lightning.diagnostics import calibration, drift, foreign, noise, roundtrip
from calm_lightning.diagnostics.report import Finding
from calm_lightning.errors import CheckpointError, ConfigError, DataError
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.heads.registry import sampling_in_words
from calm_lightning.models import OpenModel, tokenizer_of
from calm_lightning.programs.arithmetic import best_device
from calm_lightning.sampling.chunks import ChunkSampling
from calm_lightning.sampling.continuations import start_positions

ANSWERS = {
    "drift": ("calm", "baseline"),
    "roundtrip": ("calm",),
    "noise": ("calm", "autoencoder"),
    "calibration": ("calm", "baseline"),
    "foreign": ("calm", "autoencoder"),
}
"""The diagnoses, and the stages whose models each of them can look at."""
_KINDS = {"calm": "a continuous language model", "baseline": "a token language model", "autoencoder": "an autoencoder"}
_WINDOWS = 8
_LEAST_ROWS = 2
_DIGITS = 8192


@dataclass(frozen=True)
class DiagnosisOptions:
    """What may be chosen.

    Attributes:
        only: Names of diagnoses; empty means all that the model can answer.
        tokens: Held-out tokens that each diagnosis but drift reads.
        prompts: Prompts B that drift continues.
        length: Tokens that drift generates from each prompt; 0 means twice the trained block.
        temperatures: Temperatures of drift, 1 or 1/n each.
        samples: Pool size S of drift, and the largest of calibration.
        seed: Seed of all draws.
    """

    only: tuple[str, ...] = ()
    tokens: int = 32_768
    prompts: int = 32
    length: int = 0
    temperatures: tuple[float, ...] = (1.0, 0.5)
    samples: int = 200
    seed: int = 0


@dataclass
class _Subject:
    """The model under examination, on its device, with its text."""

    opened: OpenModel
    baseline: OpenModel | None
    text: EvaluationText
    options: DiagnosisOptions
    device: torch.device
    foreign_texts: Mapping[str, str] = field(default_factory=dict)
    say: Callable[[str], None] = field(default=lambda _: None)

    @property
    def K(self) -> int:
        """Tokens per chunk; 1 for a token model."""
        return 1 if self.opened.stage == "baseline" else int(self.opened.config.model.K)

    @property
    def codec(self) -> ChunkAutoencoder:
        """The autoencoder, the model itself if it is one."""
        codec = self.opened.autoencoder or self.opened.model
        assert isinstance(codec, ChunkAutoencoder)
        return codec

    def token_model(self) -> TokenLM | None:
        """Return the token language model, the model itself if it is one."""
        model = self.opened.model if self.baseline is None else self.baseline.model
        return model if isinstance(model, TokenLM) else None

    def blocks(self, block_tokens: int, most: int, least: int, why: str) -> tuple[Tensor, Tensor | None]:
        """Return the tokens of evenly spaced blocks and the documents they are of, each (B, T).

        Raises:
            DataError: There are fewer than `least`.
        """
        found = len(self.text.block_numbers(block_tokens, most))
        if found < least:
            raise DataError(
                f"the text has {self.text.tokens:,} tokens; {why} needs at least {least} blocks of {block_tokens:,}: "
                f"give a longer text"
            )
        batches = list(self.text.batches(block_tokens, found, most))
        documents = [batch.documents for batch in batches if batch.documents is not None]
        tokens_BT = torch.cat([batch.tokens for batch in batches]).to(self.device)
        return tokens_BT, torch.cat(documents).to(self.device) if documents else None

    def trained_blocks(self, why: str) -> tuple[Tensor, Tensor | None]:
        """Return held-out blocks as long as those of training: tokens and documents, each (B, T)."""
        T = self.opened.config.data.block_tokens
        return self.blocks(T, max(_LEAST_ROWS, self.options.tokens // T), _LEAST_ROWS, why)

    def chunks(self, why: str) -> Tensor:
        """Return held-out chunks, (C, K)."""
        return self.trained_blocks(why)[0].view(-1, self.K)


def diagnose(
    opened: OpenModel,
    text: EvaluationText,
    options: DiagnosisOptions,
    *,
    baseline: OpenModel | None = None,
    foreign_texts: Mapping[str, str] | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Iterator[Finding]:
    """Answer the questions one after the other; each has random numbers of its own from the seed.

    Args:
        opened: The model.
        text: Held-out text in ids of its tokenizer.
        options: What is asked, and how thoroughly.
        baseline: A token model trained with the same tokenizer, whose curves stand beside the model's.
        foreign_texts: More texts for `foreign`, by name.
        on_step: Told in words what is done next; each diagnosis by name and number before it begins.

    Yields:
        The findings.

    Raises:
        CheckpointError: The model cannot answer a question, or a model was made with another tokenizer.
        ConfigError: An option makes no sense.
        DataError: The text is too short.
    """
    names = asked(opened, options)
    _check(opened, baseline, text, options)
    device = best_device()
    for one in (opened, baseline):
        if one is not None:
            one.model.to(device)
            if one.autoencoder is not None:
                one.autoencoder.to(device)
    subject = _Subject(opened, baseline, text, options, device, foreign_texts or {})
    for number, name in enumerate(names, start=1):
        if on_step:
            step = f"{name} ({number} of {len(names)})"
            subject.say = partial(_say, on_step, step)
            on_step(step)
        with _seeded(options.seed, device), torch.inference_mode():
            finding = _ANSWER[name](subject)
        yield finding


def _say(on_step: Callable[[str], None], step: str, what: str) -> None:
    on_step(f"{step}: {what}")


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def settings(
    opened: OpenModel, text: EvaluationText, options: DiagnosisOptions, baseline: OpenModel | None
) -> dict[str, Any]:
    """Return what the numbers depend on, for the file they are in."""
    return {
        "model": str(opened.path),
        "stage": opened.stage,
        "lineage": opened.lineage,
        "baseline": None if baseline is None else baseline.lineage,
        "text": {"sha256": text.sha256, "split": text.split, "tokens": text.tokens, "tokenizer": text.tokenizer},
        "trained_block_tokens": opened.config.data.block_tokens,
        "sampler": sampling_in_words(opened.config.model) if opened.stage == "calm" else "",
        "precision": "32-true",
        **asdict(options),
    }


def with_tokenizer(opened: OpenModel, spec: str) -> OpenModel:
    """Return a model with the tokenizer that a spec names; checkpoints in the released format carry none.

    Args:
        opened: The model.
        spec: As `make_tokenizer` takes it; "" leaves the model as it is.

    Raises:
        CheckpointError: The model has another tokenizer.
        DataError: The spec cannot be used.
    """
    if not spec:
        return opened
    tokenizer, _ = tokenizer_of(spec, int(opened.config.model.vocabulary or 0), opened.path)
    own = opened.tokenizer
    if own is not None and tokenizer is not None and own.fingerprint != tokenizer.fingerprint:
        raise CheckpointError(f"{opened.path} was trained with another tokenizer than {spec}: leave --tokenizer out")
    return replace(opened, tokenizer=own or tokenizer)


def asked(opened: OpenModel, options: DiagnosisOptions) -> Sequence[str]:
    """Return the diagnoses to make, each once.

    Raises:
        ConfigError: There is no such diagnosis.
        CheckpointError: The model cannot answer it.
    """
    for name in options.only:
        if name not in ANSWERS:
            raise ConfigError(f"diagnosis {name!r} is unknown: choose from {', '.join(ANSWERS)}")
        if opened.stage not in ANSWERS[name]:
            wanted = " or ".join(_KINDS[stage] for stage in ANSWERS[name])
            raise CheckpointError(f"{opened.path} is {_KINDS[opened.stage]}: {name} needs {wanted}")
    return list(dict.fromkeys(options.only)) or [name for name, stages in ANSWERS.items() if opened.stage in stages]


def _check(opened: OpenModel, baseline: OpenModel | None, text: EvaluationText, options: DiagnosisOptions) -> None:
    for name in ("tokens", "prompts", "samples"):
        if getattr(options, name) < 2:
            raise ConfigError(f"{name} {getattr(options, name)} is too few: at least 2")
    if options.length < 0:
        raise ConfigError(f"length {options.length} is negative: at least 1, or 0 for twice the trained block")
    if baseline is not None and baseline.stage != "baseline":
        raise CheckpointError(f"{baseline.path} is {_KINDS[baseline.stage]}: a baseline is a token language model")
    for one in (opened, baseline):
        if one is None:
            continue
        other = one.tokenizer is not None and one.tokenizer.fingerprint != text.tokenizer
        if other or text.vocabulary > int(one.config.model.vocabulary or 0):
            raise CheckpointError(f"{one.path} was trained with another tokenizer than the text's: use its own")
    if opened.stage == "calm":
        for temperature in options.temperatures:
            ChunkSampling(temperature, options.samples)


def _drift(subject: _Subject) -> Finding:
    options, K = subject.options, subject.K
    trained = subject.opened.config.data.block_tokens
    unit = _WINDOWS * max(K, 2)  # a window of one token has no 2-grams
    length = -(-(options.length or 2 * trained) // unit) * unit
    prompt = max(1, trained // 4 // K) * K
    blocks_BT, documents_BT = subject.blocks(prompt + length, 2 * options.prompts, 2 * _LEAST_ROWS, "drift")
    rows_BT, others_BT = blocks_BT[::2], blocks_BT[1::2]  # every other block is the reference
    prompted = None if documents_BT is None else documents_BT[::2, :prompt]
    text = drift.DriftText(rows_BT[:, :prompt], rows_BT[:, prompt:], others_BT.flatten(), _WINDOWS, prompted)
    model, token_model, rows = subject.opened.model, subject.token_model(), []
    work = f"{len(rows_BT)} prompts by {length:,} tokens, {len(options.temperatures)} temperatures"
    if isinstance(model, ContinuousLM):
        subject.say(f"CALM, {work}")
        rows += drift.chunk_drift(model, subject.codec, text, options.temperatures, options.samples)
    if token_model is not None:
        subject.say(f"baseline, {work}")
        rows += drift.token_drift(token_model, text, options.temperatures, true_text=not rows)
    return drift.finding(rows, prompt, trained)


def _roundtrip(subject: _Subject) -> Finding:
    model, rows = subject.opened.model, []
    assert isinstance(model, ContinuousLM)
    latents, block_P = roundtrip.held_out_latents(model, subject.codec, *subject.trained_blocks("roundtrip"))
    for series, latents_PZ in latents.items():
        rows += roundtrip.latent_rows(series, subject.codec, latents_PZ, block_P)
    return roundtrip.finding(rows)


def _noise(subject: _Subject) -> Finding:
    return noise.noise(subject.codec, subject.chunks("noise"))


def _calibration(subject: _Subject) -> Finding:
    (tokens_BT, documents_BT), evaluation = subject.trained_blocks("calibration"), subject.opened.config.evaluation
    starts_G = start_positions(tokens_BT.shape[1], evaluation.start_stride)
    inverses, model, token_model, rows = (1, 2, 3, 4, 8), subject.opened.model, subject.token_model(), []
    lengths: tuple[int, ...] = (1, 4)
    if isinstance(model, ContinuousLM):
        pools = sorted({max(2, subject.options.samples // part) for part in (1, 4, 10)})
        lengths = calibration.compared_lengths(model.K)
        rows += calibration.chunk_calibration(model, subject.codec, tokens_BT, starts_G, inverses, pools, documents_BT)
    if token_model is not None:
        temperatures = [1 / n for n in inverses]
        rows += calibration.token_calibration(
            token_model, tokens_BT, starts_G, temperatures, lengths, samples=16, documents_BT=documents_BT
        )
    return calibration.finding(rows)


def _foreign(subject: _Subject) -> Finding:
    K, tokenizer, device = subject.K, subject.opened.tokenizer, subject.device
    if tokenizer is None:
        raise CheckpointError(
            f"{subject.opened.path} carries no tokenizer, so foreign cannot read other texts: name it with --tokenizer"
        )

    def ids(text: str) -> Tensor:
        return torch.tensor(tokenizer.encode(text), device=device)

    own_CK = subject.chunks("foreign")
    digits = "".join(map(str, torch.randint(10, (_DIGITS,)).tolist()))
    texts = {foreign.OWN: own_CK.flatten()}
    texts |= {name: ids(text) for name, text in {**foreign.passages(), **subject.foreign_texts}.items()}
    texts |= foreign.made_up(own_CK.flatten(), subject.codec.vocabulary, K, ids(digits))
    for name, tokens_N in texts.items():
        if len(tokens_N) < 2 * K:
            raise DataError(
                f"the text {name} has {len(tokens_N)} tokens, fewer than two chunks of K={K}: give a longer one"
            )
    return foreign.foreign(subject.codec, {n: t[: len(t) // K * K].view(-1, K) for n, t in texts.items()})


_ANSWER = {
    "drift": _drift,
    "roundtrip": _roundtrip,
    "noise": _noise,
    "calibration": _calibration,
    "foreign": _foreign,
}

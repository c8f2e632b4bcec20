"""Does error accumulate over long generations? Continuations window by window, beside the true text.

Shape suffixes: B rows (prompts), L chunks, T tokens, K tokens per chunk, Z latent dimension, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calm_lightning.autoencoder.model import draw_posterior
from calm_lightning.backbone.transformer import BranchCache
from calm_lightning.diagnostics.latents import decoded, distance, posterior, round_trip_changes, z_scores
from calm_lightning.diagnostics.ngrams import distinct_share, repeated, unigram_divergence
from calm_lightning.diagnostics.report import TRUE_TEXT, Finding, Row, cell
from calm_lightning.language_model.baseline import TokenLM
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.language_model.documents import last_document
from calm_lightning.sampling.chunks import ChunkSampling, next_chunks
from calm_lightning.sampling.codec import Codec, true_latents
from calm_lightning.sampling.generate import stream_tokens
from calm_lightning.sampling.temperature import Draws

NAME = "drift"
DISTANCE, CHANGED = "latent distance (posterior sd)", "share of tokens changed by a round trip"
REPEATED, DIVERGENCE = "share of 4-grams seen before", "unigram KL to held-out text (nats)"
DISTINCT_1, DISTINCT_2 = "distinct-1", "distinct-2"
MEASURES = (DISTANCE, CHANGED, REPEATED, DISTINCT_1, DISTINCT_2, DIVERGENCE)
_X = "tokens generated"
_LIMITS = (
    "A flat curve says that long text is no further from what the encoder makes of it, and repeats no more, than short "
    "text; not that it is good, or that it stays on its subject. Beyond the trained context two effects mix: drift and "
    "positions that the model has not been trained on."
)


@dataclass(frozen=True)
class DriftText:
    """What is continued, and what with.

    Attributes:
        prompts: True tokens, (B, T'); for continuous models T' is a multiple of K.
        continuation: What truly follows, (B, T).
        reference: Other tokens of the same source, (N,).
        windows: Number W of windows that T is cut into; it divides T.
        documents: Document of every prompt token, (B, T'); needed where a model keeps to documents.
    """

    prompts: Tensor
    continuation: Tensor
    reference: Tensor
    windows: int
    documents: Tensor | None = None


@torch.no_grad()
def long_continuations(
    model: ContinuousLM,
    codec: Codec,
    prompts_BLK: Tensor,
    chunks: int,
    sampling: ChunkSampling,
    documents_BT: Tensor | None = None,
) -> Draws:
    """Continue prompts, and keep the latents that the tokens were decoded from.

    Args:
        model: The continuous language model.
        codec: Its autoencoder.
        prompts_BLK: Prompts, (B, L', K).
        chunks: Chunks L to generate, document borders ignored.
        sampling: Temperature and method.
        documents_BT: Document of every prompt token, (B, L' K); needed where the model keeps to documents, of which it
            then continues the last one.

    Returns:
        Tokens (B, L, K) and latents (B, L, Z). Cost: one position of the backbone with its cache per chunk.
    """
    first_BL = model.first_seen(documents_BT)
    input_BLD = model.input(prompts_BLK, true_latents(model, codec, prompts_BLK))
    hidden_BLD, prefix = model.backbone.prefill(input_BLD, first_BL)
    first_B1 = None if first_BL is None else first_BL[:, -1:]
    hidden_BD, own = hidden_BLD[:, -1], BranchCache()
    lengths_B1 = torch.full((len(prompts_BLK), 1), prompts_BLK.shape[1], device=prompts_BLK.device)
    drawn = [next_chunks(model, codec, hidden_BD, sampling)]
    while len(drawn) < chunks:
        read_B1Z = drawn[-1].latents.unsqueeze(1) if model.reads_latents else None
        input_B1D = model.input(drawn[-1].tokens.unsqueeze(1), read_B1Z)
        hidden_BD = model.backbone.branch_step(input_B1D, prefix, own, lengths_B1, first_B1)[:, 0]
        drawn.append(next_chunks(model, codec, hidden_BD, sampling))
    return Draws(*(torch.stack(parts, dim=1) for parts in zip(*drawn, strict=True)))


def posterior_draws(codec: Codec, tokens_BLK: Tensor) -> Draws:
    """Draw the latents of true chunks from their posteriors, and decode them: the level a perfect model would have.

    Returns:
        Decoded tokens (B, L, K) and latents (B, L, Z). Cost: one encoder and one decoder pass.
    """
    mean_CZ, std_CZ = posterior(codec, tokens_BLK.flatten(0, 1))
    latents_CZ = draw_posterior(mean_CZ, std_CZ.log(), 1)[0]
    return Draws(*(part.unflatten(0, tokens_BLK.shape[:2]) for part in (decoded(codec, latents_CZ), latents_CZ)))


def latent_rows(series: str, codec: Codec, draws: Draws, windows: int) -> list[Row]:
    """Return distance and round-trip changes window by window.

    Args:
        series: Name of the series.
        codec: The autoencoder.
        draws: Tokens (B, L, K) and the latents (B, L, Z) they were decoded from.
        windows: W; chunk i of L belongs to window i * W // L.
    """
    B, L, K = draws.tokens.shape
    tokens_CK, latents_CZ = draws.tokens.flatten(0, 1), draws.latents.flatten(0, 1)
    distance_BL = distance(z_scores(codec, latents_CZ, tokens_CK)).view(B, L)
    changed_BL = round_trip_changes(codec, tokens_CK).float().mean(-1).view(B, L)
    return _windowed(series, DISTANCE, distance_BL, windows, K) + _windowed(series, CHANGED, changed_BL, windows, K)


def token_rows(series: str, text: DriftText, tokens_BT: Tensor, vocabulary: int) -> list[Row]:
    """Return repetition and unigram divergence window by window.

    Args:
        series: Name of the series.
        text: Prompts (they count as seen before), reference and windows.
        tokens_BT: What follows the prompts, (B, T).
        vocabulary: V.
    """
    B, T = tokens_BT.shape
    W = text.windows
    seen_BT = repeated(torch.cat((text.prompts, tokens_BT), dim=1), 4)[:, -T:]
    rows = _windowed(series, REPEATED, seen_BT.float(), W, 1)
    window_RT = tokens_BT.reshape(B * W, T // W)
    for measure, n in ((DISTINCT_1, 1), (DISTINCT_2, 2)):
        rows += _windowed(series, measure, distinct_share(window_RT, n).view(B, W), W, T // W)
    window_WP = window_RT.view(B, W, -1).transpose(0, 1).flatten(1)
    divergence_W = unigram_divergence(window_WP, text.reference, vocabulary).tolist()
    ends = [T // W * (window + 1) for window in range(W)]
    return rows + [Row(NAME, series, DIVERGENCE, _X, end, value) for end, value in zip(ends, divergence_W, strict=True)]


def _windowed(series: str, measure: str, values_BL: Tensor, windows: int, tokens_each: int) -> list[Row]:
    """Return means over rows with their standard errors, a row per window, at the token that ends the window."""
    B, L = values_BL.shape
    mean_BW = torch.stack([part.mean(1) for part in values_BL.double().tensor_split(windows, dim=1)], dim=1)
    error_W = mean_BW.std(0) / B**0.5 if B > 1 else torch.full_like(mean_BW[0], torch.inf)
    ends = [L * tokens_each * (window + 1) / windows for window in range(windows)]
    found = zip(ends, mean_BW.mean(0).tolist(), error_W.tolist(), strict=True)
    return [Row(NAME, series, measure, _X, end, value, error) for end, value, error in found]


def chunk_drift(
    model: ContinuousLM, codec: Codec, text: DriftText, temperatures: Sequence[float], samples: int
) -> list[Row]:
    """Return the rows of a continuous model and of the true text beside it.

    Args:
        model: The continuous language model.
        codec: Its autoencoder.
        text: What is continued.
        temperatures: 1 or 1/n each.
        samples: Pool size S below T = 1.
    """
    K, T = model.K, text.continuation.shape[1]
    rows = latent_rows(TRUE_TEXT, codec, posterior_draws(codec, text.continuation.unflatten(1, (-1, K))), text.windows)
    rows += token_rows(TRUE_TEXT, text, text.continuation, model.vocabulary)
    for temperature in temperatures:
        prompts_BLK = text.prompts.unflatten(1, (-1, K))
        sampling = ChunkSampling(temperature, samples)
        draws = long_continuations(model, codec, prompts_BLK, T // K, sampling, text.documents)
        series = f"CALM T={temperature:.3g}"
        rows += latent_rows(series, codec, draws, text.windows)
        rows += token_rows(series, text, draws.tokens.flatten(1), model.vocabulary)
    return rows


def token_drift(model: TokenLM, text: DriftText, temperatures: Sequence[float], true_text: bool) -> list[Row]:
    """Return the rows of a token model, and with `true_text` those of the true text: there are no latents."""
    rows = token_rows(TRUE_TEXT, text, text.continuation, model.vocabulary) if true_text else []
    documents = [None] * len(text.prompts) if text.documents is None else text.documents
    prompts = [last_document(model.config, *row) for row in zip(text.prompts, documents, strict=True)]
    for temperature in temperatures:
        steps = stream_tokens(model, prompts, text.continuation.shape[1], temperature)
        tokens_BT = torch.tensor([[new for (new,) in step] for step in steps], device=text.prompts.device).T
        rows += token_rows(f"baseline T={temperature:.3g}", text, tokens_BT.contiguous(), model.vocabulary)
    return rows


def finding(rows: Sequence[Row], prompt_tokens: int, trained_tokens: int) -> Finding:
    """Put the rows together.

    Args:
        rows: Of `chunk_drift` and `token_drift`.
        prompt_tokens: Tokens of each prompt.
        trained_tokens: Tokens of the context that the model was trained with.
    """
    one = Finding(NAME, "Does error accumulate over long generations?", tuple(rows), (), (), "", _LIMITS, {})
    table, parts = [], []
    for series in one.series(REPEATED):
        cells = [series]
        for measure in (DISTANCE, CHANGED, REPEATED, DIVERGENCE):
            found = one.select(measure, series)
            shown = (_cell(measure, row.value) for row in (found[0], found[-1])) if found else ("",)
            cells.append(" → ".join(shown))
        table.append(tuple(cells))
    for series in one.series(DISTANCE):
        first, last = (one.select(DISTANCE, series)[place] for place in (0, -1))
        gap = abs(last.value - first.value)
        error = ((first.standard_error or 0) ** 2 + (last.standard_error or 0) ** 2) ** 0.5
        parts.append(
            f"{series} {first.value:.2f} → {last.value:.2f} ({gap / error if error else 0:.1f} standard errors)"
        )
    head = ("first → last window", "distance, sd", "changed, %", "seen 4-grams, %", "unigram KL")
    latents = f"Latent distance, first to last window: {'; '.join(parts)}. " if parts else ""
    says = f"{latents}Read every curve against the true text's: text repeats itself, too."
    return Finding(
        NAME,
        one.title,
        one.rows,
        head,
        tuple(table),
        says,
        _LIMITS,
        {"trained context": trained_tokens - prompt_tokens},
    )


def _cell(measure: str, value: float) -> str:
    return cell(value, 1) if measure in (CHANGED, REPEATED) else f"{value:.2f}"

"""How far is a predicted latent from anything the encoder would produce, and do its tokens survive a round trip?

Shape suffixes: B blocks, T tokens, L chunks, P positions, K tokens per chunk, Z latent dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from calm_lightning.autoencoder.model import draw_posterior
from calm_lightning.diagnostics.latents import (
    LogitCodec,
    confidence,
    decoded,
    distance,
    posterior,
    round_trip_changes,
    z_scores,
)
from calm_lightning.diagnostics.report import Finding, Row, cell, grouped_mean, percent
from calm_lightning.language_model.calm import ContinuousLM
from calm_lightning.sampling.codec import true_latents

NAME = "roundtrip"
TRUE, PREDICTED, MIDPOINT = "true latent", "predicted latent", "midpoint of two"
SERIES = (TRUE, PREDICTED, MIDPOINT)
DISTANCE, CHUNKS_CHANGED, TOKENS_CHANGED = "latent distance (posterior sd)", "chunks changed", "tokens changed"
SIZE, CONFIDENCE, UNSURE = "size (rms of z)", "decoder confidence", f"tokens below {0.9:g} confidence"
DIMENSION_RMS, DIMENSION_MEAN = "z-score of a dimension, rms", "z-score of a dimension, mean"
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SURE = 0.9
_LIMITS = (
    "Distance is measured to the posterior of the very tokens that the latent decodes to, so a wrong but clean "
    "prediction counts as near: this says whether latents look like the encoder's, not whether the text is right."
)


@torch.no_grad()
def held_out_latents(
    model: ContinuousLM, codec: LogitCodec, tokens_BT: Tensor, documents_BT: Tensor | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Return one latent of each kind for every chunk but the first of each block.

    Args:
        model: The continuous language model.
        codec: Its autoencoder.
        tokens_BT: Held-out blocks, (B, T), T a multiple of K and at least 2 K.
        documents_BT: Document of every token, (B, T); needed where the model keeps to documents.

    Returns:
        Latents (P, Z) by name: drawn from the posterior of the true chunk; predicted for it, one draw; halfway between
        a true latent and that of another position. And the block of each position, (P,). Cost: one forward pass.
    """
    chunks_BLK = tokens_BT.unflatten(1, (-1, model.K))
    read_BLK, next_PK = chunks_BLK[:, :-1], chunks_BLK[:, 1:].flatten(0, 1)
    first_BL = model.first_seen(documents_BT)
    read_BL = None if first_BL is None else first_BL[:, :-1]
    hidden_BLD = model(read_BLK, true_latents(model, codec, read_BLK), read_BL)
    mean_PZ, std_PZ = posterior(codec, next_PK)
    true_PZ = draw_posterior(mean_PZ, std_PZ.log(), 1)[0]
    other_P = torch.randperm(len(true_PZ), device=true_PZ.device)
    predicted_PZ = model.head.sample(hidden_BLD.flatten(0, 1), 1)[0].float()
    block_P = torch.arange(len(tokens_BT)).repeat_interleave(read_BLK.shape[1])
    return {TRUE: true_PZ, PREDICTED: predicted_PZ, MIDPOINT: (true_PZ + true_PZ[other_P]) / 2}, block_P


@torch.no_grad()
def latent_rows(series: str, codec: LogitCodec, latents_PZ: Tensor, block_P: Tensor) -> list[Row]:
    """Measure latents: decode them, encode the tokens, compare.

    Args:
        series: What they are called.
        codec: The autoencoder.
        latents_PZ: Latents, (P, Z).
        block_P: Block of each, (P,): positions of one block depend on one another.

    Returns:
        The rows. Cost: two encoder and three decoder passes.
    """
    tokens_PK = decoded(codec, latents_PZ)
    scores_PZ = z_scores(codec, latents_PZ, tokens_PK)
    distance_P, sure_PK = distance(scores_PZ), confidence(codec, latents_PZ)
    changed_PK = round_trip_changes(codec, tokens_PK)
    means = {
        DISTANCE: distance_P,
        TOKENS_CHANGED: changed_PK.float().mean(-1),
        CHUNKS_CHANGED: changed_PK.any(-1).float(),
        SIZE: latents_PZ.square().mean(-1).sqrt(),
        CONFIDENCE: sure_PK.mean(-1),
        UNSURE: (sure_PK < SURE).float().mean(-1),
    }
    rows = [Row(NAME, series, measure, "", None, *grouped_mean(of_P, block_P)) for measure, of_P in means.items()]
    at = torch.tensor(QUANTILES, device=distance_P.device)
    for measure, values in ((DISTANCE, distance_P), (CONFIDENCE, sure_PK.flatten())):
        found = _quantiles(values, at).tolist()
        rows += [Row(NAME, series, measure, "quantile", q, v) for q, v in zip(QUANTILES, found, strict=True)]
    for measure, values in ((DIMENSION_RMS, scores_PZ.square().mean(0).sqrt()), (DIMENSION_MEAN, scores_PZ.mean(0))):
        rows += [Row(NAME, series, measure, "dimension", i, v) for i, v in enumerate(values.tolist())]
    return rows


def _quantiles(values: Tensor, at: Tensor) -> Tensor:
    """Return quantiles of any number of values (`torch.quantile` refuses more than 16 million)."""
    place = (at * (values.numel() - 1)).round().long()
    return values.flatten().sort().values[place]


def finding(rows: list[Row]) -> Finding:
    """Put the rows of all kinds of latents together."""
    one = Finding(
        NAME, "How far is a predicted latent from anything the encoder makes?", tuple(rows), (), (), "", _LIMITS, {}
    )
    head = ("", "distance", "5 to 95 %", "size", "chunks, %", "tokens, %", "unsure, %")
    table = tuple(
        (
            series,
            f"{one.value(DISTANCE, series):.2f}",
            f"{one.value(DISTANCE, series, 0.05):.2f}-{one.value(DISTANCE, series, 0.95):.2f}",
            f"{one.value(SIZE, series):.2f}",
            cell(one.value(CHUNKS_CHANGED, series)),
            cell(one.value(TOKENS_CHANGED, series)),
            cell(one.value(UNSURE, series), 1),
        )
        for series in SERIES
    )
    says = (
        f"Predicted latents lie {one.value(DISTANCE, PREDICTED):.2f} posterior standard deviations from what the "
        f"encoder makes of their tokens (true ones {one.value(DISTANCE, TRUE):.2f}); a round trip changes "
        f"{percent(one.value(CHUNKS_CHANGED, PREDICTED))} of their chunks (of true ones "
        f"{percent(one.value(CHUNKS_CHANGED, TRUE))}). The decoder is less than {SURE:g} sure of "
        f"{percent(one.value(UNSURE, PREDICTED), 1)} of their tokens (of true ones "
        f"{percent(one.value(UNSURE, TRUE), 1)}, of midpoints of two chunks {percent(one.value(UNSURE, MIDPOINT), 1)})."
    )
    return Finding(NAME, one.title, one.rows, head, table, says, _LIMITS, {})

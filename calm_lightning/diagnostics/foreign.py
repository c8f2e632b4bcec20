"""How does the autoencoder fare on text unlike its training data?

Shape suffixes: C chunks, K tokens per chunk, N tokens, V vocabulary, Z latent dimension.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.resources import files

import torch
from torch import Tensor
from torch.nn import functional

from calm_lightning.autoencoder.loss import kl_per_dimension
from calm_lightning.autoencoder.model import draw_posterior
from calm_lightning.diagnostics.latents import LOGITS, LogitCodec, decoded, posterior
from calm_lightning.diagnostics.report import Finding, Row, cell, percent

NAME = "foreign"
OWN = "held-out text"
TOKENS, CHUNKS = "token accuracy, z = mu", "chunk accuracy, z = mu"
TOKENS_DRAWN, CHUNKS_DRAWN = "token accuracy, z drawn", "chunk accuracy, z drawn"
CROSS_ENTROPY, CROSS_ENTROPY_DRAWN = "cross-entropy, z = mu (nats per token)", "cross-entropy, z drawn (nats per token)"
KL, SIGMA, CHUNKS_SEEN = "KL (nats per chunk)", "posterior sigma", "chunks"
_LIMITS = (
    "Passages are short: errors below one in their number of tokens cannot be seen. A low accuracy may come from the "
    "tokenizer's rare tokens as much as from their order; shuffled tokens tell the two apart. Nothing here "
    "says how well a language model continues such text."
)


def passages() -> dict[str, str]:
    """Return the texts that come with the package, by name: other languages, and this project's own code."""
    room = files("calm_lightning")
    texts: dict[str, str] = tomllib.loads((room / "diagnostics" / "passages.toml").read_text(encoding="utf-8"))["text"]
    return texts | {"Python code": (room / "autoencoder" / "model.py").read_text(encoding="utf-8")}


def made_up(tokens_N: Tensor, vocabulary: int, K: int, digits_N: Tensor) -> dict[str, Tensor]:
    """Return token sequences that no one wrote, as many tokens as the text has.

    Args:
        tokens_N: Held-out text, (N,).
        vocabulary: V.
        K: Tokens per chunk.
        digits_N: Random digits, tokenised.
    """
    device = tokens_N.device
    return {
        "digits": digits_N,
        "own tokens, shuffled": tokens_N[torch.randperm(len(tokens_N), device=device)],
        "one token, repeated": tokens_N[::K].repeat_interleave(K),
        "random tokens": torch.randint(vocabulary, (len(tokens_N),), device=device),
    }


@torch.no_grad()
def reconstruction(series: str, codec: LogitCodec, tokens_CK: Tensor) -> list[Row]:
    """Return what comes back of chunks, with standard errors over chunks.

    Args:
        series: What the text is called.
        codec: The autoencoder.
        tokens_CK: Chunks, (C, K).

    Returns:
        The rows. Cost: one encoder and four decoder passes.
    """
    mean_CZ, std_CZ = posterior(codec, tokens_CK)
    drawn_CZ = draw_posterior(mean_CZ, std_CZ.log(), 1)[0]
    right, right_drawn = decoded(codec, mean_CZ) == tokens_CK, decoded(codec, drawn_CZ) == tokens_CK
    values = {
        TOKENS: right.float().mean(-1),
        CHUNKS: right.all(-1).float(),
        TOKENS_DRAWN: right_drawn.float().mean(-1),
        CHUNKS_DRAWN: right_drawn.all(-1).float(),
        CROSS_ENTROPY: _cross_entropy(codec, mean_CZ, tokens_CK),
        CROSS_ENTROPY_DRAWN: _cross_entropy(codec, drawn_CZ, tokens_CK),
        KL: kl_per_dimension(mean_CZ, std_CZ.log()).sum(-1),
        SIGMA: std_CZ.mean(-1),
    }
    C = len(tokens_CK)
    rows = [Row(NAME, series, CHUNKS_SEEN, "", None, C)]
    for measure, of_C in values.items():
        error = float(of_C.double().std()) / C**0.5 if C > 1 else None
        rows.append(Row(NAME, series, measure, "", None, float(of_C.double().mean()), error))
    return rows


def _cross_entropy(codec: LogitCodec, latents_CZ: Tensor, tokens_CK: Tensor) -> Tensor:
    """Return the mean cross-entropy of each chunk's tokens, (C,), nats per token."""
    size = max(1, LOGITS // (codec.K * codec.vocabulary))
    slices = zip(latents_CZ.split(size), tokens_CK.split(size), strict=True)
    losses = [
        functional.cross_entropy(codec.decode(part_CZ).float().flatten(0, 1), true_CK.flatten(), reduction="none")
        for part_CZ, true_CK in slices
    ]
    return torch.cat(losses).view(tokens_CK.shape).mean(-1)


def foreign(codec: LogitCodec, texts: Mapping[str, Tensor]) -> Finding:
    """Measure the reconstruction of every text.

    Args:
        codec: The autoencoder.
        texts: Chunks (C, K) of each text, by name; the autoencoder's own kind under `OWN`.
    """
    rows = [row for name, tokens_CK in texts.items() for row in reconstruction(name, codec, tokens_CK)]
    one = Finding(
        NAME, "How does the autoencoder fare on text unlike its training data?", tuple(rows), (), (), "", "", {}
    )
    head = ("text", "number", "z=mu, %", "drawn, %", "chunks, %", "CE", "KL", "sigma")
    table = tuple(
        (
            name,
            f"{one.value(CHUNKS_SEEN, name):,.0f}",
            *(cell(one.value(measure, name)) for measure in (TOKENS, TOKENS_DRAWN, CHUNKS_DRAWN)),
            f"{one.value(CROSS_ENTROPY_DRAWN, name):.3f}",
            f"{one.value(KL, name):.0f}",
            f"{one.value(SIGMA, name):.3f}",
        )
        for name in texts
    )
    worst = min(texts, key=lambda name: one.value(TOKENS_DRAWN, name))
    says = (
        f"Token accuracy with drawn latents falls from {percent(one.value(TOKENS_DRAWN, OWN))} on its own kind of text "
        f"to {percent(one.value(TOKENS_DRAWN, worst))} on the worst ({worst})."
    )
    return Finding(NAME, one.title, one.rows, head, table, says, _LIMITS, {})

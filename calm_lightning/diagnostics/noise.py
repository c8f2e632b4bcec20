"""How much noise does a latent take before its tokens change, and how many bits of it are needed?

Tokens are compared with those that the posterior's mean decodes to, so that no noise changes nothing; how many of
those are right is the autoencoder's accuracy (see `foreign`).

Shape suffixes: C chunks, K tokens per chunk, Z latent dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from calm_lightning.autoencoder.loss import kl_per_dimension
from calm_lightning.diagnostics.latents import decoded, posterior
from calm_lightning.diagnostics.report import Finding, Row, percent
from calm_lightning.sampling.codec import Codec

NAME = "noise"
TOKENS, CHUNKS = "tokens kept", "chunks kept"
RADIUS, SIGMAS, BITS = "noise radius", "noise in posterior sd", "bits per dimension"
KL_BITS = "KL to the prior (bits per chunk)"
ENOUGH = 0.999
RANDOM, TOWARDS, SCALED, GRID = "random direction", "towards another chunk", "scaled", "grid"
_LIMITS = (
    "Neither direction is that of a language model's errors: `roundtrip` measures those. Bits are those of one uniform "
    "grid per dimension over the observed range, an upper bound: better codes exist. All of this is about one "
    "autoencoder on one text."
)


def kept(codec: Codec, latents_CZ: Tensor, tokens_CK: Tensor) -> Tensor:
    """Return which tokens latents decode to as given, bool (C, K). Cost: one decoder pass."""
    return decoded(codec, latents_CZ) == tokens_CK


def stepped(mean_CZ: Tensor, direction_CZ: Tensor, radius: float) -> Tensor:
    """Return z = mu + r u with u the given directions scaled to length 1, (C, Z)."""
    return mean_CZ + radius * direction_CZ / direction_CZ.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def quantised(mean_CZ: Tensor, bits: int) -> Tensor:
    """Return latents rounded to the middle of 2^bits equal cells of each dimension's observed range, (C, Z)."""
    low_Z, high_Z = mean_CZ.amin(0), mean_CZ.amax(0)
    step_Z = ((high_Z - low_Z) / 2**bits).clamp(min=torch.finfo(mean_CZ.dtype).tiny)
    cell_CZ = ((mean_CZ - low_Z) / step_Z).floor().clamp(0, 2**bits - 1)
    return low_Z + (cell_CZ + 0.5) * step_Z


def crossing(x: Sequence[float], shares: Sequence[float], level: float) -> float:
    """Return where a rising share first reaches a level, between points log-linear in x; infinite where it does not.

    Args:
        x: Positive, rising.
        shares: Share of tokens changed at each.
        level: The level sought.
    """
    for place, share in enumerate(shares):
        if share >= level:
            if place == 0 or shares[place] == shares[place - 1]:
                return x[place]
            part = (level - shares[place - 1]) / (shares[place] - shares[place - 1])
            return math.exp(math.log(x[place - 1]) + part * (math.log(x[place]) - math.log(x[place - 1])))
    return math.inf


@torch.no_grad()
def noise(codec: Codec, tokens_CK: Tensor) -> Finding:
    """Decode latents under noise and quantisation.

    Args:
        codec: The autoencoder.
        tokens_CK: Chunks of held-out text, (C, K).

    Returns:
        The finding. Cost: one encoder pass and about 70 decoder passes over the chunks.
    """
    mean_CZ, std_CZ = posterior(codec, tokens_CK)
    reference_CK = decoded(codec, mean_CZ)
    typical = float(std_CZ.norm(dim=-1).median())
    radii = [typical * 2 ** (half / 2) for half in range(-6, 11)]
    rows: list[Row] = []
    for radius in radii:
        for series, way_CZ in ((RANDOM, torch.randn_like(mean_CZ)), (TOWARDS, _elsewhere(mean_CZ) - mean_CZ)):
            rows += _rows(codec, (series, RADIUS, radius), stepped(mean_CZ, way_CZ, radius), reference_CK)
    for halves in range(21):
        latents_CZ = mean_CZ + halves / 2 * std_CZ * torch.randn_like(mean_CZ)
        rows += _rows(codec, (SCALED, SIGMAS, halves / 2), latents_CZ, reference_CK)
    for bits in range(1, 13):
        rows += _rows(codec, (GRID, BITS, bits), quantised(mean_CZ, bits), reference_CK)
    kl_bits = float(kl_per_dimension(mean_CZ, std_CZ.log()).sum(-1).mean()) / math.log(2)
    rows.append(Row(NAME, "posterior", KL_BITS, "", None, kl_bits))
    return _finding(rows, mean_CZ.shape[1], tokens_CK.shape[1], typical)


def _elsewhere(mean_CZ: Tensor) -> Tensor:
    """Return the latents of other chunks, drawn at random, (C, Z)."""
    C = len(mean_CZ)
    shift_C = torch.randint(1, max(2, C), (C,), device=mean_CZ.device)
    return mean_CZ[(torch.arange(C, device=mean_CZ.device) + shift_C) % C]


def _rows(codec: Codec, place: tuple[str, str, float], latents_CZ: Tensor, reference_CK: Tensor) -> list[Row]:
    series, x_name, x = place
    kept_CK = kept(codec, latents_CZ, reference_CK)
    found = []
    for measure, of_C in ((TOKENS, kept_CK.double().mean(-1)), (CHUNKS, kept_CK.all(-1).double())):
        error = float(of_C.std()) / len(of_C) ** 0.5 if len(of_C) > 1 else None
        found.append(Row(NAME, series, measure, x_name, x, float(of_C.mean()), error))
    return found


def _finding(rows: list[Row], l: int, K: int, typical: float) -> Finding:
    one = Finding(NAME, "How much noise does a latent take before its tokens change?", tuple(rows), (), (), "", "", {})
    table, parts, marks = [], [], {"typical radius of the posterior": typical}
    for series in (RANDOM, TOWARDS):
        points = [(float(row.x or 0), 1 - row.value) for row in one.select(TOKENS, series)]
        few, half = (crossing([x for x, _ in points], [share for _, share in points], level) for level in (0.01, 0.5))
        table += [(f"radius for 1 %, 50 % changed, {series}", f"{_number(few)}, {_number(half)}")]
        parts.append(f"{_number(few)} and {_number(half)} {'in a ' if series == RANDOM else ''}{series}")
    table += [("typical radius of the posterior", f"{typical:.2f}")]
    at_one, at_three = (percent(one.value(TOKENS, SCALED, s)) for s in (1.0, 3.0))
    table += [("tokens kept at 1, 3 posterior sd", f"{at_one}, {at_three}")]
    enough = next((int(row.x or 0) for row in one.select(TOKENS, GRID) if row.value >= ENOUGH), None)
    needed = "over 12" if enough is None else f"{enough} ({enough * l / K:,.0f} per token)"
    table += [(f"bits per dimension for {percent(ENOUGH, 1)} of tokens", needed)]
    table += [("KL to the prior, bits per latent", f"{one.value(KL_BITS, 'posterior'):,.0f}")]
    says = (
        f"1 % and 50 % of tokens change at a radius of {'; of '.join(parts)}; the posterior's own is {typical:.2f}. "
        f"Bits per dimension that keep {percent(ENOUGH, 1)} of tokens, l = {l}: {needed}."
    )
    return Finding(NAME, one.title, one.rows, ("", "value"), tuple(table), says, _LIMITS, marks)


def _number(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "more than was tried"
